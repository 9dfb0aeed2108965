"""`evaluate`: judge a policy and the baselines on held-out clips (VLA + DPO, section IV).

With `--pred` it scores files by any protocol instead, see `steps.scoring`.
"""

from __future__ import annotations

from rapport.pipeline.report.page import write_report
from rapport.pipeline.rundir import Run
from rapport.pipeline.settings import EvaluateOfFlow, EvaluateOfOther, EvaluateOfVla
from rapport.pipeline.steps.checks import cluster_of
from rapport.pipeline.steps.imitation import as_trained, imitate, of_checkpoint
from rapport.pipeline.steps.jury import Jury
from rapport.pipeline.steps.preferences import reward_pool
from rapport.pipeline.steps.sampling import fleet_of
from rapport.pipeline.steps.scoring import score_files
from rapport.pipeline.steps.showing import render_pool


def run(config: EvaluateOfVla | EvaluateOfFlow | EvaluateOfOther, run: Run) -> None:
    """Score files, or judge a policy."""
    if config.files.pred is not None:
        score_files(config, run)
        return
    config = as_trained(config)
    with cluster_of(config):
        if config.checkpoint is None:
            imitated = imitate(run, config)
        else:
            imitated = of_checkpoint(run, config, config.checkpoint)
        with fleet_of(run, config, imitated) as fleet, reward_pool(config) as raters:
            jury = Jury.of_run(run, config, imitated, raters)
            jury.hear(imitated.policy, fleet, name="policy")
            jury.tabulate()
        with render_pool(config) as renderers:
            jury.show(renderers)
    write_report(run)
