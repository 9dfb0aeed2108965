"""`rollout`: sample candidate reactions and render them for people to rate (paper III-D)."""

from __future__ import annotations

from rapport.pipeline.rundir import Run
from rapport.pipeline.settings import (
    RolloutOfFlow,
    RolloutOfOther,
    RolloutOfReactFace,
    RolloutOfVla,
)
from rapport.pipeline.steps.checks import cluster_of
from rapport.pipeline.steps.imitation import imitate
from rapport.pipeline.steps.sampling import fleet_of, package, roll_out


def run(
    config: RolloutOfVla | RolloutOfFlow | RolloutOfReactFace | RolloutOfOther, run: Run
) -> None:
    """Imitate, sample, hand out."""
    with cluster_of(config):
        imitated = imitate(run, config)
        with fleet_of(run, config, imitated) as fleet:
            groups = roll_out(run, config, imitated, fleet=fleet)
        package(run, config, imitated, groups=groups)
