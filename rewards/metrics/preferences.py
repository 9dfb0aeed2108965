"""Which method people prefer: comparisons, win rates, Bradley-Terry strengths."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse.csgraph import connected_components

from rapport.rewards.metrics.statistics import Interval, mean_interval, prompt_means


@dataclass(frozen=True)
class Comparison:
    """Two methods shown side by side for one prompt.

    Args:
        outcome: 1 = `a` was preferred, 0 = `b`, 0.5 = neither.
    """

    prompt_id: str
    a: str
    b: str
    outcome: float

    def __post_init__(self) -> None:
        if self.a == self.b:
            raise ValueError(f"prompt {self.prompt_id!r}: {self.a!r} is compared with itself")
        if self.outcome not in (0, 0.5, 1):
            raise ValueError(
                f"prompt {self.prompt_id!r}: outcome {self.outcome}, expected 1 (a), 0 (b), 0.5 "
                "(neither)"
            )


def from_scores(scores: Mapping[str, Mapping[str, float]]) -> list[Comparison]:
    """Every two methods on every prompt that both have, by method -> prompt id -> score; the higher
    one wins.
    """
    return [
        Comparison(
            prompt_id,
            a,
            b,
            0.5
            if scores[a][prompt_id] == scores[b][prompt_id]
            else float(scores[a][prompt_id] > scores[b][prompt_id]),
        )
        for a, b in combinations(scores, 2)
        for prompt_id in scores[a]
        if prompt_id in scores[b]
    ]


def win_rates(
    comparisons: Iterable[Comparison], seed: int = 0, confidence: float = 0.95
) -> dict[str, Interval]:
    """Share of its comparisons that each method won, ties as half wins, with bootstrap intervals
    over prompts.

    A prompt counts once, however often it was compared. Raises `ValueError` when a method has fewer
    than 2 prompts."""
    outcomes: dict[str, list[tuple[str, float]]] = {}
    for c in comparisons:
        outcomes.setdefault(c.a, []).append((c.prompt_id, c.outcome))
        outcomes.setdefault(c.b, []).append((c.prompt_id, 1 - c.outcome))
    return {
        method: mean_interval(prompt_means(given), seed, confidence)
        for method, given in outcomes.items()
    }


def bradley_terry(comparisons: Sequence[Comparison], tolerance: float = 1e-10) -> dict[str, float]:
    """Log-strength of each method, mean 0: P(a beats b) = 1 / (1 + exp(strength b - strength a)).

    Bradley and Terry (1952) by the MM algorithm (Hunter 2004, eq. 3); a tie is half a win for both.

    Raises:
        ValueError: no finite strengths exist, because some methods never lose to, or never meet,
            the rest (Ford 1957); names them.
    """
    methods = sorted({m for c in comparisons for m in (c.a, c.b)})
    if not methods:
        raise ValueError("no comparison to take strengths from")
    index = {method: i for i, method in enumerate(methods)}
    wins = np.zeros((len(methods), len(methods)))  # row beats column
    for c in comparisons:
        wins[index[c.a], index[c.b]] += c.outcome
        wins[index[c.b], index[c.a]] += 1 - c.outcome
    _require_connected(wins, methods)
    met, total = wins + wins.T, wins.sum(axis=1)
    strength = np.ones(len(methods))
    change = math.inf
    while change > tolerance:
        updated = total / np.sum(met / (strength[:, None] + strength[None]), axis=1)
        updated /= np.exp(np.log(updated).mean())
        change = float(np.abs(np.log(updated / strength)).max())
        strength = updated
    return {method: float(np.log(strength[i])) for method, i in index.items()}


def _require_connected(wins: np.ndarray, methods: list[str]) -> None:
    count, part = connected_components(wins > 0, connection="strong")
    if count > 1:
        groups = sorted(
            [m for m, p in zip(methods, part, strict=True) if p == k] for k in range(count)
        )
        raise ValueError(
            f"no finite Bradley-Terry strengths: the groups {groups} never met, or one won every "
            "time; "
            "compare across them, or leave methods out"
        )
