"""Processes know their own cluster, and no GPU that is not theirs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from rapport.actors.cluster import worker_environment

pytestmark = pytest.mark.engine


@ray.remote(num_cpus=0)
class Surroundings:
    """What its process sees."""

    def variables(self):
        names = ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR")
        return {name: os.environ.get(name) for name in names}

    def inner(self):
        """Of an actor that this one starts, as Ray Train's controller does."""
        return ray.get(Surroundings.remote().variables.remote())


def test_processes_know_their_cluster_whatever_else_they_are_told(local_ray):
    own = ray.get_runtime_context().gcs_address
    plain = Surroundings.remote()
    told = Surroundings.options(runtime_env={"env_vars": worker_environment(1)}).remote()
    assert ray.get(plain.variables.remote())["RAY_ADDRESS"] == own
    assert ray.get(told.variables.remote())["RAY_ADDRESS"] == own
    assert ray.get(told.inner.remote())["RAY_ADDRESS"] == own


@pytest.mark.long
def test_two_clusters_on_one_machine_learn_side_by_side(tmp_path):
    script = Path(__file__).with_name("two_clusters.py")
    runs = [
        subprocess.Popen(
            [sys.executable, script, tmp_path, "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    for run, output in zip(runs, outputs, strict=True):
        assert run.returncode == 0, output
        assert "multiple active Ray instances" not in output
        seen = json.loads(
            (tmp_path / str(run.pid) / "learner" / "policy" / "seen.json").read_text()
        )
        assert seen["RAY_ADDRESS"] == seen["cluster"]
        assert seen["CUDA_VISIBLE_DEVICES"] == "", "a learner without a share sees no GPU"
