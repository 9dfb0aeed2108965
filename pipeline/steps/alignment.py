"""Alignment: what DPO and GDPO hand to the learners, and rollouts that overlap learning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from rapport.actors.fleet import Fleet
from rapport.actors.learner import Learners, Milestones, milestone_step
from rapport.pipeline.objectives.dpo import Dpo
from rapport.pipeline.objectives.gdpo import Gdpo
from rapport.pipeline.objectives.pathwise import Pathwise, RewardTerms
from rapport.pipeline.rundir import Phase, PhaseResult, phase
from rapport.pipeline.settings import GdpoOfFlow, Learning, OfVla, Preferences, Rewarded
from rapport.pipeline.steps.learning import Imitated, learn
from rapport.pipeline.steps.rewarding import Scenes, reward_weights
from rapport.pipeline.steps.sampling import fleet_sampler
from rapport.policies.policy import Reaction, load_policy

Rolled = TypeVar("Rolled")


def policy_config(config: Learning) -> Any:
    """The policy's own section, with adapters and frozen parts; None = it has none."""
    return config.vla if isinstance(config, OfVla) else None


@phase("dpo")
def align(
    step: Phase,
    config: Preferences,
    initial: Path,
    reference: Path,
    pairs: Path,
    *,
    round_index: int = 1,
) -> PhaseResult:
    """DPO from the policy in `initial` against the frozen one in `reference`.

    `curve.points` policies are written on the way, the last one included: `value["milestones"]` is
    steps -> the folder's name.

    Args:
        step: the phase.
        config: of the recipe.
        initial: folder of the policy that learns.
        reference: folder of the frozen one.
        pairs: table of pairs.
        round_index: of the loop.
    """
    file = step.directory / "reference.parquet"
    objective = dpo_objective(
        config, initial, reference, pairs=pairs, reference_file=file, round_index=round_index
    )
    if not config.curve.points:
        return learn_pairs(step, config, objective)
    written: list[Path] = []
    milestones = Milestones(config.curve.points, written.append)
    result = learn_pairs(step, config, objective, milestones=milestones)
    on_the_way = {milestone_step(folder): folder.name for folder in written}
    return replace(result, value=result.value | {"milestones": on_the_way})


def dpo_objective(
    config: Preferences,
    initial: Path,
    reference: Path,
    pairs: Path,
    *,
    reference_file: Path,
    round_index: int = 1,
) -> Dpo:
    """What the learners of DPO optimise; see `align`.

    Args:
        config: of the recipe.
        initial: folder of the policy that learns.
        reference: folder of the frozen one.
        pairs: table of pairs.
        reference_file: of the reference's log-likelihoods; computed where it is not there.
        round_index: of the loop.
    """
    return Dpo(
        initial,
        reference,
        pairs,
        config=config.dpo,
        seed=config.seed + round_index - 1,
        reference_file=reference_file,
        policy_config=policy_config(config),
    )


def learn_pairs(
    step: Phase, config: Preferences, objective: Dpo, milestones: Milestones | None = None
) -> PhaseResult:
    """Train on pairs; returns the phase's result."""
    step.say(
        f"{len(objective.rows)} pairs, {objective.steps} steps, beta {config.dpo.beta:g}, "
        f"{config.dpo.loss}"
    )
    return learn(objective, config.learner, step, milestones=milestones)


def gdpo_learners(
    step: Phase,
    config: Rewarded,
    imitated: Imitated,
    scenes: Scenes,
    *,
    milestones: Milestones | None = None,
) -> Learners:
    """The learners of GDPO; they ask for an experience whenever they need one.

    Args:
        step: the phase.
        config: of the recipe.
        imitated: the policy that learns, also the reference.
        scenes: training prompts.
        milestones: policies to write on the way.
    """
    return Learners(
        gdpo_objective(config, imitated, scenes),
        config.learner,
        step.directory,
        log=step.logger.log,
        say=step.say,
        milestones=milestones,
    )


def gdpo_objective(config: Rewarded, imitated: Imitated, scenes: Scenes) -> Gdpo:
    """What the learners of GDPO optimise: the clipped objective, or the rewards themselves."""
    sampler = fleet_sampler(config, imitated.policy)
    learnt_from = (imitated.policy_path, scenes.table)
    if isinstance(config, GdpoOfFlow) and config.gdpo.estimator == "pathwise":
        weights = reward_weights(config.reward, config.groups, scenes.names)
        terms = RewardTerms(config.reward, weights, scenes.limits)
        return Pathwise(*learnt_from, config.gdpo, seed=config.seed, sampler=sampler, terms=terms)
    own = policy_config(config)
    return Gdpo(*learnt_from, config.gdpo, seed=config.seed, sampler=sampler, policy_config=own)


@contextmanager
def sampled_by(
    fleet: Fleet, scenes: Scenes, config: Rewarded
) -> Iterator[Callable[[Any, int], list[list[Reaction]]]]:
    """Yields a function of the learners' weights and the iteration's number: groups of reactions.

    It gives the fleet the weights, then asks it. With `gdpo.asynchronous`, reactions of the next
    iteration are sampled while this one is learnt.
    """
    behaviour = load_policy(scenes.initial)  # holds the weights that the fleet was given last

    def roll_out(weights: Any, index: int) -> list[list[Reaction]]:
        batch = scenes.of_iteration(index)
        behaviour.load_learnt(weights)
        fleet.update(scenes.policy.weights(weights), behaviour)
        groups = fleet.groups(batch.prompts, config.gdpo.group_size, batch.seeds)
        return [groups[place] for place in batch.order]

    if not config.gdpo.asynchronous:
        yield roll_out
        return
    with OneAhead(roll_out, config.gdpo.iterations) as ahead:
        yield ahead


class OneAhead(Generic[Rolled]):
    """Hands out what was begun an iteration before, and begins the next; a context manager.

    It leaves nothing begun behind: a fleet that ends meanwhile would be taken for one that is lost.

    Staleness is bounded: what is handed out was sampled with the weights of the iteration before,
    never older ones; the first time, and after a restart, with the present ones.

    Args:
        work: `work(weights, index)` samples for an iteration.
        iterations: how many there are.
    """

    def __init__(self, work: Callable[[Any, int], Rolled], iterations: int) -> None:
        self.work = work
        self.iterations = iterations
        self._thread = ThreadPoolExecutor(1)
        self._begun: Future[Rolled] | None = None
        self._begun_for: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def __call__(self, weights: Any, index: int) -> Rolled:
        """What iteration `index` is given; begins the following one with `weights`."""
        if self._begun is not None and self._begun_for == index:
            found = self._begun.result()
        else:
            found = self.work(weights, index)
        self._begun = None
        if index + 1 < self.iterations:
            self._begun_for = index + 1
            self._begun = self._thread.submit(self.work, weights, index + 1)
        return found
