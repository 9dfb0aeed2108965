"""`tune SUBJECT`: Ray Tune over keys of `dpo` or `gdpo`, whatever the policy.

Trials share all that does not depend on what is swept, so an alignment and a judgement are all that
one costs.
"""

from __future__ import annotations

import importlib

from rapport.log import logger
from rapport.pipeline.rundir import Run
from rapport.pipeline.steps.checks import cluster_of
from rapport.pipeline.steps.outcomes import outcome_of, report, sorted_outcomes
from rapport.pipeline.steps.sweeping import (
    judge_start,
    require_metric,
    require_room,
    search,
    trial_count,
)
from rapport.pipeline.steps.trials import shared
from rapport.pipeline.tune_settings import Sweep


def run(config: Sweep, run: Run) -> None:
    """Judge where trials start, let them run, report."""
    # A trial of `gdpo` runs the loop of that recipe as it stands there.
    recipe = importlib.import_module(f"rapport.pipeline.recipes.{config.subject}")
    sweep = config.tune
    with (
        cluster_of(config),
        shared(run, config, recipe) as (trials, verdict),
    ):
        baseline = judge_start(run, verdict, trials.start).value
        require_metric(config, baseline)
        require_room(config, trials.demand(config))
        swept = ", ".join(f"{key}={form}" for key, form in sweep.space.items())
        logger.info(
            f"[tune] {trial_count(sweep)} trials by {sweep.search} search, "
            f"{sweep.concurrent} at a time: {swept}"
        )
        results = search(run, config, trials, verdict=verdict)
    outcomes = sorted_outcomes([outcome_of(result, config) for result in results], config)
    report(run, config, outcomes, baseline=baseline)
