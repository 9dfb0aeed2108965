"""A run of its own for `test_failing_loop.py`: what its driver does while learners learn fails.

    python failing_loop.py FOLDER PLACE

PLACE is "loop" for what the learners ask for, "log" for what is done with their numbers.
"""

import sys
import time
from pathlib import Path

import torch

from rapport.actors.cluster import cluster
from rapport.actors.learner import Learners
from rapport.actors.settings import LearnerConfig


class Line:
    """y = 2 x by least squares, for longer than anybody waits."""

    steps = 100_000
    learning_rate = 0.1
    weight_decay = 0.0

    def __init__(self, refresh_every):
        self.refresh_every = refresh_every

    def module(self):
        return torch.nn.Linear(1, 1)

    def prepare(self, forward, rank, world_size):
        pass

    def batch(self, step, rank, world_size):
        time.sleep(0.05)
        return {"x": torch.ones(4, 1)}

    def loss(self, forward, batch):
        return (forward(batch["x"]) - 2 * batch["x"]).square().mean(), {}


def main(folder: Path, place: str) -> None:
    def log(metrics, step):
        raise AttributeError("no such metric")

    config = LearnerConfig(
        world_size=1, cpus=0.4, max_failures=3, checkpoint_every=100_000, timeout_s=120
    )
    line = Line(refresh_every=1 if place == "loop" else None)
    with cluster(None, 2), Learners(line, config, folder, log=log, say=print) as learners:
        for _ in learners.iterations():
            raise AttributeError("no such reward")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
