"""The trials of a sweep: what all share, what each does by itself, how all are judged.

Whatever the policy: a trial of `dpo` aligns on the pairs that all learn from, one of `gdpo` runs
the loop of its recipe from the policy that all start from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from rapport.actors.learner import Milestones
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.plan import Piece
from rapport.pipeline.rundir import Phase, PhaseResult, Run, Workspace, phase
from rapport.pipeline.settings import JudgedOfFlow, Preferences, Rewarded
from rapport.pipeline.steps.alignment import dpo_objective, learn_pairs
from rapport.pipeline.steps.checks import demand, preflight
from rapport.pipeline.steps.imitation import as_trained, imitate
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.preferences import pair, rate, reward_pool
from rapport.pipeline.steps.sampling import candidates, fleet_of, judged_sampler, starting_point
from rapport.pipeline.steps.verdicts import Verdict
from rapport.pipeline.tune_settings import Sweep, SweptPreferences


class Trials(Protocol):
    """What a trial does by itself. Picklable, as each runs in a process of its own."""

    @property
    def start(self) -> Path:
        """Folder of the policy that all start from."""

    def learn(self, config: Any, part: Workspace, milestones: Milestones) -> Path:
        """Align with the recipe's config of this trial; returns the policy's folder."""

    def demand(self, config: Any) -> Mapping[str, float]:
        """CPUs and GPUs of a trial that learns."""


@contextmanager
def shared(
    run: Run, config: Sweep, recipe: ModuleType
) -> Iterator[tuple[Trials, Callable[[Path], dict[str, float]]]]:
    """What all trials have in common, done once; yields the trials and their judge.

    Args:
        run: the sweep's.
        config: of the sweep.
        recipe: the module of the recipe that is swept.
    """
    config = as_trained(config)
    of_all = _shared_pairs if isinstance(config, SweptPreferences) else _shared_start
    with of_all(run, config, recipe) as both:
        yield both


# -- DPO --


@dataclass(frozen=True)
class DpoTrials:
    """Trials of `dpo`.

    Args:
        start: the policy to align, also the reference.
        pairs: the training table.
        folder: for log-likelihoods of the reference, which the first trial computes and the others
            read.
    """

    start: Path
    pairs: Path
    folder: Path

    def learn(self, config: Preferences, part: Workspace, milestones: Milestones) -> Path:
        """Align on the shared pairs."""
        return _align(part, config, self, milestones=milestones).artifacts["dpo_policy"]

    def demand(self, config: Preferences) -> dict[str, float]:
        """The fleet that all are judged with stands anyway; learners are a trial's own."""
        return _resources(piece for piece in demand(config)["dpo"] if piece.what == "learner")


@phase("dpo")
def _align(
    step: Phase, config: Preferences, trials: DpoTrials, milestones: Milestones
) -> PhaseResult:
    """As `align`, with what trials share."""
    steps = config.dpo.counted_steps
    counted = "all" if steps is None else f"first-{steps}"
    file = trials.folder / f"reference-{counted}-steps.parquet"
    start = trials.start
    objective = dpo_objective(config, start, start, pairs=trials.pairs, reference_file=file)
    return learn_pairs(step, config, objective, milestones=milestones)


@contextmanager
def _shared_pairs(run: Run, config: Any, recipe: ModuleType) -> Iterator[tuple[DpoTrials, Verdict]]:
    """Corpus, imitating policy, candidates, ratings and pairs."""
    preflight(run, config)
    imitated = starting_point(run, config)
    with (
        fleet_of(run, config, imitated) as fleet,
        reward_pool(config) as raters,
    ):
        groups = candidates(run, config, imitated, fleet=fleet, renderers=None)
        ratings = rate(run, config, imitated, groups=groups, raters=raters)
        pairs = pair(run, config, imitated, groups=groups, ratings=ratings)
        verdict = Verdict.of_run(run, config, imitated, fleet=fleet, raters=raters)
        yield DpoTrials(imitated.policy_path, pairs, run.directory), verdict


# -- GDPO --


@dataclass(frozen=True)
class GdpoTrials:
    """Trials of `gdpo`.

    Args:
        corpus: whose listeners are imitated.
        start: the policy to align, also the reference.
        windows: encoded in advance, where they are.
        post_train: the recipe's loop.
    """

    corpus: Path
    start: Path
    windows: Path | None
    post_train: Callable[..., PhaseResult]

    def learn(self, config: Rewarded, part: Workspace, milestones: Milestones) -> Path:
        """Run the recipe's loop, with a rollout fleet of the trial's own."""
        imitated = Imitated(Corpus(self.corpus), self.start, self.windows)
        with fleet_of(part, config, imitated) as fleet:
            aligned = self.post_train(part, config, imitated, fleet=fleet, milestones=milestones)
        return aligned.artifacts["gdpo_policy"]

    def demand(self, config: Rewarded) -> dict[str, float]:
        """Learners and the rollout fleet; raters judge all trials."""
        return _resources(piece for piece in demand(config)["gdpo"] if piece.what != "rater")


@contextmanager
def _shared_start(
    run: Run, config: Any, recipe: ModuleType
) -> Iterator[tuple[GdpoTrials, Verdict]]:
    """Corpus and imitating policy."""
    imitated = imitate(run, config)
    trials = GdpoTrials(
        corpus=imitated.corpus.path.absolute(),
        start=imitated.policy_path,
        windows=imitated.windows,
        post_train=recipe.post_train,
    )
    if isinstance(config, JudgedOfFlow):
        # AR-Flow answers held-out windows here, by the ODE, and is judged by how it moves.
        yield trials, Verdict.of_run(run, config, imitated)
        return
    sampler = judged_sampler(config, imitated.policy)
    with (
        fleet_of(run, config, imitated, sampler=sampler) as fleet,
        reward_pool(config) as raters,
    ):
        yield trials, Verdict.of_run(run, config, imitated, fleet=fleet, raters=raters)


def _resources(pieces: Iterable[Piece]) -> dict[str, float]:
    """CPUs and GPUs of some processes together."""
    pieces = list(pieces)
    return {
        "CPU": sum(piece.cpus for piece in pieces),
        "GPU": sum(piece.gpus for piece in pieces),
    }
