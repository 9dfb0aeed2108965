"""`dpo`: imitate, roll out, rate, pair, align with DPO, judge (VLA + DPO, III-D, Eq. 10-11)."""

from __future__ import annotations

from rapport.pipeline.report.page import write_report
from rapport.pipeline.rundir import Run
from rapport.pipeline.settings import Preferences
from rapport.pipeline.steps.alignment import align
from rapport.pipeline.steps.checks import cluster_of, preflight
from rapport.pipeline.steps.curve import follow
from rapport.pipeline.steps.imitation import as_trained
from rapport.pipeline.steps.jury import Jury
from rapport.pipeline.steps.perceiving import perceive
from rapport.pipeline.steps.preferences import pair, rate, reward_pool
from rapport.pipeline.steps.rating import rating_page
from rapport.pipeline.steps.sampling import candidates, fleet_of, starting_point
from rapport.pipeline.steps.showing import render_pool
from rapport.policies.policy import load_policy


def run(config: Preferences, run: Run) -> None:
    """Align any policy with preferences; `dpo.rounds` repeats the loop with the aligned policy."""
    config = as_trained(config)
    with rating_page(run, config) as page, cluster_of(config):
        preflight(run, config)
        imitated = starting_point(run, config)
        with (
            fleet_of(run, config, imitated) as fleet,
            reward_pool(config) as raters,
            render_pool(config) as renderers,
        ):
            jury = Jury.of_run(run, config, imitated, raters, baselines=True)
            jury.hear(imitated.policy, fleet, round_index=0)
            current = imitated.policy_path
            for n in range(1, config.dpo.rounds + 1):
                groups = candidates(
                    run, config, imitated, fleet=fleet, renderers=renderers, round_index=n
                )
                ratings = rate(
                    run, config, imitated, groups=groups, raters=raters, page=page, round_index=n
                )
                pairs = pair(run, config, imitated, groups=groups, ratings=ratings, round_index=n)
                reference = imitated.policy_path if config.dpo.reference == "sft" else current
                aligned = align(
                    run, config, current, reference=reference, pairs=pairs, round_index=n
                )
                current = aligned.artifacts["dpo_policy"]
                follow(run, config, imitated, aligned, fleet=fleet, raters=raters, round_index=n)
                policy = load_policy(current)
                fleet.update(policy.weights(), policy)
            jury.hear(policy, fleet, round_index=config.dpo.rounds)
            perceive(run, config, imitated.corpus, current, aligned=True)
            jury.conclude()
            jury.show(renderers, pairs)
    write_report(run)
