"""`distil`: an AR-Flow learns to answer with few evaluations of its velocity (reflow)."""

from __future__ import annotations

from rapport.pipeline.rundir import Run
from rapport.pipeline.settings import DistilConfig
from rapport.pipeline.steps.checks import cluster_of
from rapport.pipeline.steps.distilling import answers, compare, distil, teacher_of
from rapport.pipeline.steps.imitation import as_trained, imitate


def run(config: DistilConfig, run: Run) -> None:
    """The teacher answers, a copy of it learns to go there straight, both are compared."""
    config = as_trained(config)
    with cluster_of(config):
        imitated = imitate(run, config)
        teacher = teacher_of(config, imitated)
        answered = answers(run, config, imitated, teacher=teacher)
        distilled = distil(run, config, teacher=teacher, answered=answered)
    compare(run, config, imitated, teacher=teacher, distilled=distilled)
