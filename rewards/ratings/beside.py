"""Reactions rated beside their own speaker and beside others: what was answered to this speaker.

A face that pleases whoever speaks is rated alike beside everybody. So the difference between the
rating beside the own speaker and those beside speakers of other conversations is what was answered
to the own one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rapport.rewards.metrics.statistics import prompt_means
from rapport.rewards.ratings.ratings import Rating
from rapport.rewards.ratings.scores import overall
from rapport.rewards.ratings.visible import VisibleMotion


@dataclass(frozen=True, eq=False)
class Beside:
    """Candidates of one prompt, rated beside their own speaker and beside others.

    Args:
        own: ratings beside their own speaker.
        others: the same raters' beside each other speaker.
        seen: what is seen of each candidate.
    """

    own: list[Rating]
    others: list[list[Rating]]
    seen: dict[str, VisibleMotion]

    def differences(self, weights: Mapping[str, float]) -> list[float]:
        """Rating beside the own speaker less that beside another, for every candidate and other.

        Args:
            weights: of the criteria; candidates without any weighed criterion are left out.
        """
        own = mean_overall(self.own, weights)
        return [
            own[candidate] - value
            for ratings in self.others
            for candidate, value in mean_overall(ratings, weights).items()
            if candidate in own
        ]


def mean_overall(ratings: Iterable[Rating], weights: Mapping[str, float]) -> dict[str, float]:
    """Candidate -> mean over raters of the weighted rating, 1 to 5."""
    return prompt_means((rating.candidate_id, overall(rating, weights)) for rating in ratings)


def share_matched(differences: Iterable[float]) -> float | None:
    """Share of differences in favour of the own speaker, where none counts half; None of none."""
    won = [0.5 + 0.5 * ((d > 0) - (d < 0)) for d in differences]
    return sum(won) / len(won) if won else None
