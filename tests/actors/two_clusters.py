"""A run of its own for `test_two_clusters.py`: a local cluster in which two learners fit a line.

    python two_clusters.py FOLDER WANTED

It learns once FOLDER has the names of WANTED runs that have their clusters, and keeps its own until
all have learnt.
"""

import json
import os
import sys
import time
from pathlib import Path

import ray
import torch

from rapport.actors.cluster import cluster
from rapport.actors.learner import fit
from rapport.actors.settings import LearnerConfig
from rapport.policies.tables import generator_of


class Line:
    """y = 2 x by least squares."""

    steps = 4
    learning_rate = 0.1
    weight_decay = 0.0
    refresh_every = None

    def module(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return torch.nn.Linear(1, 1)

    def prepare(self, forward, rank, world_size):
        self.seen = {
            name: os.environ.get(name) for name in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES")
        } | {"cluster": ray.get_runtime_context().gcs_address}

    def batch(self, step, rank, world_size):
        return {"x": torch.rand(4, 1, generator=generator_of(rank, step))}

    def loss(self, forward, batch):
        error = (forward(batch["x"]) - 2 * batch["x"]).square().mean()
        return error, {}

    def save(self, state, directory):
        directory.mkdir()
        (directory / "seen.json").write_text(json.dumps(self.seen))


def wait_for(files, wanted):
    deadline = time.monotonic() + 120
    while len(list(files())) < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{list(files())} are fewer than {wanted}")
        time.sleep(0.2)


def main(folder: Path, wanted: int) -> None:
    own = folder / str(os.getpid())
    with cluster(None, 2):
        own.mkdir()
        wait_for(lambda: [path for path in folder.iterdir() if path.is_dir()], wanted)
        fit(
            Line(),
            LearnerConfig(world_size=2, cpus=0.4, max_failures=0, timeout_s=120),
            own / "learner",
            log=lambda metrics, step: None,
            say=print,
        )
        time.sleep(3)  # Train's cleaner looks for its cluster once a second
        wait_for(lambda: folder.glob("*/learner/policy/seen.json"), wanted)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
