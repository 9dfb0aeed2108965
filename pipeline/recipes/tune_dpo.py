"""A sweep of `dpo`: what its trials share, what each does by itself, how all of them are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rapport.actors.learner import Milestones
from rapport.pipeline.config import DpoRecipeConfig
from rapport.pipeline.data.candidates import read_candidates
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.data.vla import prompt_of
from rapport.pipeline.recipes.dpo import align, earlier, pair, rate
from rapport.pipeline.recipes.evaluate import (
    Judge,
    held_out_tokens,
    mean_given,
    reward_pool,
    to_answers,
)
from rapport.pipeline.recipes.preflight import preflight
from rapport.pipeline.recipes.prepare import prepare
from rapport.pipeline.recipes.rollout import roll_out, start_fleet
from rapport.pipeline.recipes.sft import train_sft
from rapport.pipeline.rundir import Run, Workspace
from rapport.policies.vla.divergence import sequence_kl
from rapport.policies.vla.loading import load_checkpoint
from rapport.rewards.metrics.statistics import mean_interval, prompt_means

COST = "fd"  # what a good rating should not be bought with


@dataclass(frozen=True)
class DpoTrials:
    """All that a trial needs of what was done before. Picklable.

    Args:
        start: the SFT policy, also the reference.
        pairs: the training table.
        folder: for reference log-probs, which the first trial computes and the others read.
    """

    start: Path
    pairs: Path
    folder: Path

    def learn(self, config: DpoRecipeConfig, part: Workspace, milestones: Milestones) -> Path:
        steps = config.dpo.first_steps
        file = (
            self.folder / f"reference-{'all' if steps is None else f'first-{steps}'}-steps.parquet"
        )
        return align(config, self.start, self.start, self.pairs, part, 1, file, milestones)

    @staticmethod
    def demand(config: DpoRecipeConfig) -> dict[str, float]:
        """Resources of a trial that learns."""
        c = config.learner
        return {"CPU": c.world_size * c.cpus, "GPU": c.world_size * c.gpus}


@contextmanager
def shared(
    config: DpoRecipeConfig, run: Run
) -> Iterator[tuple[DpoTrials, Callable[[Path], dict[str, float]]]]:
    """Corpus, SFT, candidates, ratings and pairs, once; and a judge with one fleet that is updated
    in place.
    """
    if config.cluster.preflight:
        preflight(config, run)
    given = config.candidates
    corpus = prepare(config.corpus, run) if given is None else Corpus(earlier(given, "corpus"))
    checkpoint = train_sft(config, corpus, run) if given is None else earlier(given, "sft_policy")
    sft = load_checkpoint(checkpoint)
    with start_fleet(config, checkpoint, sft, corpus, run) as fleet, reward_pool(config) as rewards:
        groups = (
            roll_out(config, corpus, sft, fleet, run)
            if given is None
            else read_candidates(earlier(given, "candidates"))
        )
        ratings = rate(config, corpus, sft, groups, rewards, run, 1)
        pairs = pair(config, corpus, sft, groups, ratings, run, 1)
        judge = Judge.of(config, corpus, sft.actions.space.layout, rewards, run)

        def verdict(path: Path) -> dict[str, float]:
            policy = load_checkpoint(path)
            fleet.update(policy.model)
            tokens = held_out_tokens(config.evaluation, config.seed, corpus, policy, fleet)
            row = judge(to_answers(tokens, policy))
            kl = prompt_means(
                (
                    i,
                    sequence_kl(
                        policy.model,
                        sft.model,
                        prompt_of(judge.clips[i], policy),
                        np.stack(sampled),
                    ),
                )
                for i, sampled in tokens.items()
            )
            values = row.metrics | {"truth_affect_error": mean_given(row.truth_errors.values())}
            return (
                {name: float(value) for name, value in values.items() if value is not None}
                | with_interval("simulated_rating", row.scores, config.evaluation.bootstrap)
                | with_interval("kl", kl, config.evaluation.bootstrap)
            )

        yield DpoTrials(checkpoint, pairs, run.directory), verdict


def with_interval(name: str, by_prompt: dict[str, float], bootstrap: int) -> dict[str, float]:
    """NAME, NAME/low, NAME/high; no bounds of a single prompt, nothing of none."""
    if len(by_prompt) < 2:
        return {name: float(np.mean(list(by_prompt.values())))} if by_prompt else {}
    interval = mean_interval(by_prompt, resamples=bootstrap)
    return {name: interval.mean, f"{name}/low": interval.low, f"{name}/high": interval.high}
