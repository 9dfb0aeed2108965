"""A cluster of four nodes with marks: work stands where it is planned, and a lost node is survived
in each phase.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rapport.actors.cluster import on_nodes

ROOT = Path(__file__).parents[2]
MARKS = {"n-1": ("rollout", "learner"), "n-2": ("rollout", "render"), "n-3": ("render", "learner")}


def test_no_mark_asks_for_nothing():
    assert on_nodes(None) == {} and on_nodes("render") == {"render": 0.001}


@pytest.mark.long
@pytest.mark.timeout(400)
def test_every_phase_stands_where_it_is_planned_and_survives_a_lost_node(
    ray_cluster, tiny_corpus, tiny_checkpoint, tmp_path
):
    def start(name):
        resources = json.dumps({name: 1} | dict.fromkeys(MARKS[name], 1))
        return ray_cluster.add(
            f"--address={ray_cluster.address}",
            "--node-ip-address=127.0.0.1",
            "--num-cpus=1",
            f"--resources={resources}",
        )

    nodes = {name: start(name) for name in MARKS}
    environment = ray_cluster.environment | {
        "RAY_ADDRESS": ray_cluster.address,
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        "-m",
        "tests.actors.four_nodes",
        str(tiny_checkpoint),
        str(tiny_corpus.path),
        str(tmp_path),
    ]
    lost, printed = [], []
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        for line in process.stdout:
            printed.append(line)
            if line.startswith("LOSE "):
                name = line.split()[1]
                ray_cluster.kill(nodes.pop(name))
                lost.append(name)
                nodes[name] = start(
                    name
                )  # another machine in its place; meanwhile the workers notice
                process.stdin.write("lost\n")
                process.stdin.flush()
    assert process.returncode == 0, (tmp_path / "errors").read_text()[-3000:] + "".join(printed)[
        -2000:
    ]
    found = json.loads(printed[-1])
    assert "rollout fleet: no place" in found["refused"] and "'gpu-node': 0.001" in found["refused"]
    assert len(lost) == 4
    assert {name for name in MARKS if "rollout" in MARKS[name]} >= set(found["rollout"]["groups"])
    for phase, mark, wanted in (
        ("rollout", "rollout", found["prompts"]),
        ("render", "render", list(range(24))),
        ("reward", "render", list(range(24))),
    ):
        assert {name for name in MARKS if mark in MARKS[name]} >= set(found[phase]["homes"]), phase
        assert found[phase]["lost"] >= 1 and found[phase]["seen"] == wanted, (
            f"{phase}: everything once"
        )
    learner = found["learner"]
    assert set(MARKS[learner["home"]]) >= {"learner"} and learner["lost"] == lost[3:]
    assert learner["logged"] == list(range(1, 9)) and learner["policy"]
