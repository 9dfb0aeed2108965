"""Nodes kept for one role: marked work runs there and nowhere else, and an absent mark is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from actors.cluster import on_nodes

ROOT = Path(__file__).parents[2]
# Where six marked actors run, and what a reservation on nodes that do not exist says.
SCRIPT = """
import json
import ray
from actors.cluster import ClusterError, on_nodes, reserve

@ray.remote(num_cpus=0.1, resources=on_nodes("render"))
class Renderer:
    def node(self):
        return ray.get_runtime_context().get_node_id()

ray.init(address="auto", log_to_driver=False)
marked = [node["NodeID"] for node in ray.nodes() if "render" in node["Resources"]]
found = ray.get([Renderer.remote().node.remote() for _ in range(6)], timeout=60)
try:
    reserve([{"CPU": 0.1} | on_nodes("learner")], "learners", 2)
    error = None
except ClusterError as e:
    error = str(e)
print(json.dumps({"marked": marked, "found": found, "nodes": len(ray.nodes()), "error": error}))
"""


def test_no_mark_asks_for_nothing():
    assert on_nodes(None) == {} and on_nodes("render") == {"render": 0.001}


@pytest.mark.engine
def test_marked_actors_run_on_marked_nodes(ray_cluster):
    ray_cluster.add(f"--address={ray_cluster.address}", "--node-ip-address=127.0.0.1", "--num-cpus=1",
                    '--resources={"render": 1}')
    environment = ray_cluster.environment | {"RAY_ADDRESS": ray_cluster.address, "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True,
                             timeout=120)
    assert process.returncode == 0, process.stderr[-2000:]
    told = json.loads(process.stdout.splitlines()[-1])
    assert told["nodes"] == 2 and len(told["marked"]) == 1
    assert set(told["found"]) == set(told["marked"])
    assert "learners: no place" in told["error"] and "'learner': 0.001" in told["error"]
