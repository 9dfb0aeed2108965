"""`gdpo`: imitate, group reward-decoupled policy optimisation, judge (GDPO-Listener, 3.3)."""

from __future__ import annotations

from rapport.actors.fleet import Fleet
from rapport.actors.learner import Experience, Milestones
from rapport.pipeline.report.page import write_report
from rapport.pipeline.rundir import Phase, PhaseResult, Run, phase
from rapport.pipeline.settings import Rewarded
from rapport.pipeline.steps.alignment import gdpo_learners, sampled_by
from rapport.pipeline.steps.checks import cluster_of
from rapport.pipeline.steps.imitation import as_trained, imitate
from rapport.pipeline.steps.jury import Jury
from rapport.pipeline.steps.learning import Imitated, learnt
from rapport.pipeline.steps.perceiving import perceive
from rapport.pipeline.steps.preferences import reward_pool
from rapport.pipeline.steps.rewarding import rollouts_of, scenes_of
from rapport.pipeline.steps.sampling import fleet_of
from rapport.pipeline.steps.showing import render_pool
from rapport.policies.policy import load_policy


def run(config: Rewarded, run: Run) -> None:
    """Align any policy with automatic rewards."""
    config = as_trained(config)
    with cluster_of(config):
        imitated = imitate(run, config)
        with fleet_of(run, config, imitated) as fleet, reward_pool(config) as raters:
            jury = Jury.of_run(run, config, imitated, raters)
            jury.hear(imitated.policy, fleet, round_index=0)
            trained = post_train(run, config, imitated, fleet=fleet)
            path = trained.artifacts["gdpo_policy"]
            aligned = load_policy(path)
            fleet.update(aligned.weights(), aligned)
            jury.hear(aligned, fleet, round_index=1)
            perceive(run, config, imitated.corpus, path, aligned=True)
            jury.conclude()
        with render_pool(config) as renderers:
            jury.show(renderers)
    write_report(run)


@phase("gdpo")
def post_train(
    step: Phase,
    config: Rewarded,
    imitated: Imitated,
    fleet: Fleet,
    milestones: Milestones | None = None,
) -> PhaseResult:
    """Sync and sample, reward, find advantages, learn; then again with the new weights."""
    scenes = scenes_of(step, config, imitated)
    with (
        sampled_by(fleet, scenes, config) as sample,
        gdpo_learners(step, config, imitated, scenes=scenes, milestones=milestones) as learners,
    ):
        for iteration in learners.iterations():
            batch = scenes.of_iteration(iteration.index)
            groups = sample(iteration.weights, iteration.index)
            rewards = scenes.rewards(batch, groups, config.reward)
            rollouts = rollouts_of(batch, groups, rewards, config, scenes.names)
            learners.learn(Experience(rollouts, scenes.metrics(batch, rewards, config.reward)))
    return learnt(learners.result, step, rollouts=config.gdpo.answered * config.gdpo.group_size)
