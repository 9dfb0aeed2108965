"""Ranks of methods by a metric, and where two variants of the metric disagree about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

Best = Literal["lowest", "highest", "nearest"]

# Which value of a metric is best. For what measures how much a face moves, it is the one nearest to
# the ground truth's: a face that trembles has the highest. The FRDiv of the ground truth is 0, as
# it has one reaction a speaker: there more is better.
BEST: dict[str, Best] = {
    **dict.fromkeys(
        (
            "L2",
            "FD",
            "P-FD",
            "L2 Affect",
            "MSE",
            "STS",
            "rPCC",
            "LVE",
            "MHD",
            "FDD",
            "PDD",
            "JDD",
            "FRDist",
            "FRSyn",
        ),
        "lowest",
    ),
    **dict.fromkeys(("FRCorr", "FRDiv"), "highest"),
    **dict.fromkeys(("Variation", "Diversity", "SID", "FRVar", "FRDvs"), "nearest"),
}


# Numbers that rank nobody: the right one is people's, of which a ground truth of one reaction a
# speaker tells nothing.
UNRANKED = ("share",)


def best_of(metric: str) -> Best:
    """Which value of a metric is best, by its name with or without the suffix of a group.

    Raises:
        ValueError: a metric that `BEST` lacks.
    """
    name = metric.partition("_")[0]
    if name not in BEST:
        raise ValueError(
            f"no rank by {metric!r}: say in rapport.rewards.metrics.ranking.BEST which value of "
            f"{name} is best"
        )
    return BEST[name]


def ranks(
    values: Mapping[str, float | None], best: Best, truth: float | None = None
) -> dict[str, int]:
    """Method -> 1 + how many methods are better.

    Values that are equal, but for rounding, share a rank (1, 2, 2, 4).

    Args:
        values: of each method; one that has none, or NaN, has no rank.
        best: which value is best.
        truth: the ground truth's value, for "nearest"; where it is missing, nobody has a rank.
    """
    if best == "nearest" and (truth is None or math.isnan(truth)):
        return {}
    costs = {
        method: _cost(value, best, truth)
        for method, value in values.items()
        if value is not None and not math.isnan(value)
    }
    return {
        method: 1 + sum(_less(other, own) for other in costs.values())
        for method, own in costs.items()
    }


def swaps(before: Mapping[str, int], after: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs (a, b), a ranked before b by `before` and behind b by `after`.

    A tie that is made or broken is no swap.
    """
    both = [method for method in before if method in after]
    return [(a, b) for a in both for b in both if before[a] < before[b] and after[a] > after[b]]


def _cost(value: float, best: Best, truth: float | None) -> float:
    """What is lowest for the best value."""
    if best == "lowest":
        return value
    if best == "highest":
        return -value
    assert truth is not None, "nothing is near to a missing value"
    return abs(value - truth)


def _less(x: float, y: float) -> bool:
    return x < y and not math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-12)
