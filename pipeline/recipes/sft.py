"""`sft`: train a policy to imitate listeners (paper III-C3, Eq. 7-9; GDPO-Listener, stage 1)."""

from __future__ import annotations

from rapport.actors.cluster import cluster
from rapport.pipeline.rundir import Run
from rapport.pipeline.settings import Learning
from rapport.pipeline.steps.imitation import imitate


def run(config: Learning, run: Run) -> None:
    """Imitate."""
    with cluster(config.cluster.address, config.cluster.cpus):
        imitate(run, config)
