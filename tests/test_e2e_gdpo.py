"""The recipe `gdpo` as a person starts it, very small; killed in its last phase it goes on to the same policy."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]
LEAN = ["corpus.train_clips=16", "corpus.test_clips=8", "corpus.seconds=2", "corpus.frames=1", "vae.steps=4",
        "flow.steps=4", "gdpo.iterations=3", "gdpo.sync_every=2", "gdpo.group_size=2", "gdpo.batch_size=2",
        "learner.checkpoint_every=2", "rollout.workers=1", "judge.windows=4", "judge.omegas=[2]",
        "judge.long_frames=96", "tracking.system_metrics=false"]


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen([sys.executable, "-m", "pipeline.run", "gdpo", "--run-dir", str(folder), *arguments],
                            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)


def finished(process: subprocess.Popen, folder: Path) -> dict:
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said[-6000:]
    return json.loads((folder / "summary.json").read_text())


def test_gdpo_runs_and_a_killed_run_goes_on_to_the_same_policy(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    summary = finished(start(whole, *LEAN), whole)
    assert (summary["status"], summary["counts"]["gdpo_steps"], summary["counts"]["rollouts"]) == ("finished", 6, 24)
    assert summary["engines"]["gdpo_learner"]["world_size"] == 2 and "tiny-t5" in summary["engines"]["encoders"]["text"]
    metrics = summary["metrics"]
    for row in (metrics["coded"], metrics["before"], metrics["after"]):
        assert {"listen/unils/FDD", "listen/gdpo_paper/PDD", "listen/variance_ratio/expr", "speak/unils/LVE",
                "listen/P-FD/rot", "listen/rPCC/eyelid"} <= set(row)
        assert all(np.isfinite(value) for value in row.values())
    assert "listen/unils/FDD" in (whole / "judgement.md").read_text()
    lines = [json.loads(line) for line in (whole / "gdpo" / "steps.jsonl").read_text().splitlines()]
    assert ["reward/expr" in line for line in lines] == [True, False] * 3
    assert lines[0]["ratio"] == pytest.approx(1, abs=1e-6)

    # As if killed in the last phase: what earlier phases left is there, and the learner has some steps behind it.
    shutil.copytree(whole, killed)
    for path in ("judge", "gdpo"):
        shutil.rmtree(killed / path)
        (killed / "phases" / f"{path}.json").unlink()
    process = start(killed, "--resume")
    steps, deadline = killed / "gdpo" / "steps.jsonl", time.monotonic() + 200
    while not (steps.is_file() and len(steps.read_text().splitlines()) >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished(start(killed, "--resume"), killed)
    weights, others = (load_file(folder / "gdpo" / "policy" / "model.safetensors") for folder in (whole, killed))
    for name, weight in weights.items():
        np.testing.assert_array_equal(others[name], weight, err_msg=name)
