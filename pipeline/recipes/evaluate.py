"""`evaluate`: judge a policy and the baselines on held-out clips (VLA + DPO, section IV).

With `reactions` it judges again what an earlier run kept, by other raters, protocols or people.
With `--pred` it scores files by any protocol instead, see `steps.scoring`.
"""

from __future__ import annotations

from rapport.pipeline.report.page import write_report
from rapport.pipeline.rundir import Run
from rapport.pipeline.settings import (
    EvaluateOfFlow,
    EvaluateOfOther,
    EvaluateOfReactFace,
    EvaluateOfVla,
)
from rapport.pipeline.steps.checks import cluster_of
from rapport.pipeline.steps.imitation import as_trained, imitate, of_checkpoint
from rapport.pipeline.steps.jury import Jury
from rapport.pipeline.steps.preferences import reward_pool
from rapport.pipeline.steps.rejudging import judge_again
from rapport.pipeline.steps.sampling import fleet_of
from rapport.pipeline.steps.scoring import score_files
from rapport.pipeline.steps.showing import render_pool
from rapport.pipeline.steps.study import hand_out, read_study

Config = EvaluateOfVla | EvaluateOfFlow | EvaluateOfReactFace | EvaluateOfOther


def run(config: Config, run: Run) -> None:
    """Score files, judge a policy, or judge again what was answered before."""
    if config.files.pred is not None:
        score_files(config, run)
        return
    with cluster_of(config):
        if config.reactions is None:
            judge_policy(config, run)
        else:
            judge_again(run, config, config.reactions)
        if config.study.prompts:
            hand_out(run, config)
    if config.ratings is not None:
        read_study(run, config)
    write_report(run)


def judge_policy(config: Config, run: Run) -> None:
    """Ask the policy about held-out clips; judge its answers beside those of the baselines."""
    config = as_trained(config)
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
