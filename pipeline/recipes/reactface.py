"""`reactface`: imitate, answer each held-out speaker ten times, judge (ReactFace, section 4)."""

from __future__ import annotations

from rapport.pipeline.report.page import write_report
from rapport.pipeline.rundir import Run
from rapport.pipeline.settings import ReactFaceConfig
from rapport.pipeline.steps.checks import cluster_of
from rapport.pipeline.steps.imitation import imitate
from rapport.pipeline.steps.jury import Jury
from rapport.pipeline.steps.preferences import reward_pool
from rapport.pipeline.steps.sampling import fleet_of
from rapport.pipeline.steps.showing import render_pool


def run(config: ReactFaceConfig, run: Run) -> None:
    """Learn several appropriate reactions to a speaker, and show them."""
    with cluster_of(config):
        imitated = imitate(run, config)
        with fleet_of(run, config, imitated) as fleet, reward_pool(config) as raters:
            jury = Jury.of_run(run, config, imitated, raters)
            jury.hear(imitated.policy, fleet)
            jury.tabulate()
        jury.move()
        with render_pool(config) as renderers:
            jury.show(renderers)
    write_report(run)
