"""Means with bootstrap confidence intervals, resampled over prompts.

Several values of one prompt are not independent, so they are averaged first and prompts are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its confidence interval over `n` prompts."""

    mean: float
    low: float
    high: float
    n: int
    confidence: float

    def to_json(self) -> dict[str, float]:
        """As summaries have it, without the confidence, which is theirs throughout."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}

    def __str__(self) -> str:
        return (
            f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n}, {self.confidence:.0%})"
        )


def prompt_means(values: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Mean value of each prompt, from `(prompt_id, value)`, sorted by prompt id.

    None is left out, and so is a prompt with nothing else.
    """
    values_by_prompt: dict[str, list[float]] = {}
    for prompt_id, value in values:
        if value is not None:
            values_by_prompt.setdefault(prompt_id, []).append(float(value))
    return {
        prompt_id: math.fsum(values_by_prompt[prompt_id]) / len(values_by_prompt[prompt_id])
        for prompt_id in sorted(values_by_prompt)
    }


def mean_interval(
    values: Mapping[str, float],
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = 10_000,
    groups: Mapping[str, str] | None = None,
) -> Interval:
    """Mean over prompts with its percentile-bootstrap interval (Efron 1979).

    The same values, in whatever order, and the same seed give the same interval.

    Args:
        values: prompt id -> value.
        seed: of the resampling.
        confidence: share of resampled means that the interval holds.
        resamples: how many means are drawn.
        groups: prompt id -> what is drawn instead of single prompts, say its conversation, as
            prompts of one conversation are alike (cluster bootstrap). None, or prompts that are
            all of one group = prompts are drawn.

    Raises:
        ValueError: fewer than two prompts, or a value that is not finite.
    """
    prompts = sorted(values)
    x = np.array([values[prompt_id] for prompt_id in prompts], dtype=np.float64)
    if len(x) < 2:
        raise ValueError(f"an interval needs at least 2 prompts, got {len(x)}")
    if not np.isfinite(x).all():
        raise ValueError("a value is not finite; leave out what is missing")
    if not 0 < confidence < 1:
        raise ValueError(
            f"confidence is {confidence:g}, expected something between 0 and 1 such as 0.95"
        )
    rng = np.random.default_rng(seed)
    sums: np.ndarray = x
    sizes: np.ndarray = np.ones(len(x))
    if groups is not None and len({groups[prompt_id] for prompt_id in prompts}) > 1:
        names, of_prompt = np.unique([groups[i] for i in prompts], return_inverse=True)
        sums = np.bincount(of_prompt, weights=x, minlength=len(names))
        sizes = np.bincount(of_prompt, minlength=len(names)).astype(np.float64)
    # How often each prompt is drawn, which saves a (resamples, n) gather of floats.
    draws = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)
    means = (draws @ sums) / (draws @ sizes)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(
        mean=float(x.mean()), low=float(low), high=float(high), n=len(x), confidence=confidence
    )


def paired_interval(
    before: Mapping[str, float],
    after: Mapping[str, float],
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = 10_000,
    groups: Mapping[str, str] | None = None,
) -> Interval:
    """Mean of `after - before` over the prompts that both have, with its interval.

    `n` says how many prompts they share. Arguments as in `mean_interval`.
    """
    shared = before.keys() & after.keys()
    differences = {prompt_id: after[prompt_id] - before[prompt_id] for prompt_id in shared}
    return mean_interval(
        differences, seed=seed, confidence=confidence, resamples=resamples, groups=groups
    )
