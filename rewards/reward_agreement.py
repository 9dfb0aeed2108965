"""How far scores agree with people's: of candidates of one prompt, and over all.

Pairs are made within a group of candidates, so what counts is their order there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from rapport.rewards.metrics.statistics import Interval, mean_interval, prompt_means
from rapport.rewards.ratings.raters import RaterScales
from rapport.rewards.ratings.ratings import Rating
from rapport.rewards.ratings.scores import Scores, score_candidates

CHANCE = 0.5  # of the share of couples in the right order


@dataclass(frozen=True)
class Agreement:
    """How far scores agree with people's.

    Args:
        accuracy: share of couples of a group that stand in people's order, where a tie counts half
            and couples that people rate alike do not count; mean over groups, with an interval over
            conversations.
        within: mean over groups of Spearman's correlation, 0 where scores do not differ.
        over_all: Spearman's over all candidates.
    """

    accuracy: Interval
    within: float
    over_all: float

    def to_json(self) -> dict[str, Any]:
        """As summaries have it."""
        return {
            "accuracy": self.accuracy.to_json(),
            "within": self.within,
            "over_all": self.over_all,
        }


def agreement(
    judged: Iterable[tuple[Scores, Scores]], conversations: Mapping[str, str], *, bootstrap: int
) -> Agreement | None:
    """Of scores with those of people; None where fewer than two groups can be compared.

    Args:
        judged: scores and people's scores, several where several judges are averaged over.
        conversations: prompt id -> of whom.
        bootstrap: resamples of the interval.
    """
    right: list[tuple[str, float | None]] = []
    within: list[tuple[str, float | None]] = []
    over_all = []
    for scores, actual in judged:
        rows = couples(scores, actual)
        for prompt_id, (own, theirs) in rows.items():
            right.append((prompt_id, right_order(own, theirs)))
            varies = len(own) > 2 and np.ptp(theirs) > 0
            within.append((prompt_id, _spearman(own, theirs) if varies else None))
        if rows:
            own, theirs = (np.concatenate(x) for x in zip(*rows.values(), strict=True))
            over_all.append(_spearman(own, theirs))
    accuracies = prompt_means(right)
    if len(accuracies) < 2:
        return None
    correlations = list(prompt_means(within).values())
    return Agreement(
        mean_interval(accuracies, resamples=bootstrap, groups=conversations),
        within=float(np.mean(correlations)) if correlations else 0.0,
        over_all=float(np.mean(over_all)),
    )


def couples(scores: Scores, actual: Scores) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Prompt id -> scores and people's, of the candidates that have both; of two or more."""
    rows = {}
    for prompt_id, group in actual.items():
        own = scores.get(prompt_id, {})
        both = [
            (own[candidate], value)
            for candidate, value in group.items()
            if value is not None and own.get(candidate) is not None
        ]
        if len(both) > 1:
            first, second = np.array(both, np.float64).T
            rows[prompt_id] = (first, second)
    return rows


def right_order(scores: np.ndarray, actual: np.ndarray) -> float | None:
    """Share of couples whose order is that of `actual`, ties half; None where all are alike."""
    difference = np.sign(actual[:, None] - actual)
    told = np.sign(scores[:, None] - scores)[difference > 0]
    return float(np.mean(0.5 + 0.5 * told)) if len(told) else None


def accuracy(scores: Scores, actual: Scores) -> float:
    """As of `Agreement`, without an interval; NaN where nothing can be compared."""
    rows = couples(scores, actual).values()
    right = [share for own, theirs in rows if (share := right_order(own, theirs)) is not None]
    return float(np.mean(right)) if right else float("nan")


def raters_left_out(
    ratings: Sequence[Rating], weights: Mapping[str, float], scales: RaterScales | None = None
) -> list[tuple[Scores, Scores]]:
    """Each rater's scores, and those of the others: how well one person foretells the rest.

    Args:
        ratings: people's.
        weights: of the criteria.
        scales: of the raters, where each one's scale is taken into account.
    """
    judged = []
    for rater in sorted({rating.rater for rating in ratings}):
        own = [rating for rating in ratings if rating.rater == rater]
        others = [rating for rating in ratings if rating.rater != rater]
        judged.append(
            (
                score_candidates(own, weights, scales=scales)[0],
                score_candidates(others, weights, scales=scales)[0],
            )
        )
    return judged


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of the ranks; 0 where one of them does not differ."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
