"""`sft`: train a policy to imitate listeners (paper III-C3, Eq. 7-9; GDPO-Listener, stage 1)."""

from __future__ import annotations

from rapport.pipeline.rundir import Run
from rapport.pipeline.settings import Learning
from rapport.pipeline.steps.checks import cluster_of
from rapport.pipeline.steps.imitation import imitate


def run(config: Learning, run: Run) -> None:
    """Imitate."""
    with cluster_of(config):
        imitate(run, config)
