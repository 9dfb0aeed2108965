"""Preference scores: several people's ratings of a candidate become one number.

    S = w_E * Empathy + w_A * Appropriateness + w_En * Engagement + w_N * Naturalness

Source: Eq. 10 of the VLA + DPO paper. Ratings are put on [0, 1] by (r - 1) / 4; weights sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field, model_validator

from rapport.rewards.ratings.raters import RaterScales
from rapport.rewards.ratings.ratings import CRITERIA, DIGITS, HIGHEST, LOWEST, Rating, RatingError
from rapport.settings import Section

# Prompt id -> candidate id -> score; None = nobody rated it, or it cannot be compared in its group.
Scores = dict[str, dict[str, float | None]]


class ScoreConfig(Section):
    """How ratings become scores and pairs."""

    empathy: float = Field(default=0.25, ge=0)
    """w_E (Eq. 10)"""
    appropriateness: float = Field(default=0.25, ge=0)
    """w_A (Eq. 10)"""
    engagement: float = Field(default=0.25, ge=0)
    """w_En (Eq. 10)"""
    naturalness: float = Field(default=0.25, ge=0)
    """w_N (Eq. 10); the four sum to 1"""
    rater_scales: bool = True
    """take out how lenient each person is and how much of the scale they use (people's ratings)"""
    minimum_margin: float = Field(default=0.0, ge=0, le=1)
    """pairs whose scores (0 to 1) differ by less are dropped"""
    learnt: bool = False
    """groups that people had no time for are rated by a model of their ratings, where it proves
    better than chance"""

    @model_validator(mode="after")
    def _sums_to_one(self) -> ScoreConfig:
        total = sum(self.weights.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the four weights must sum to 1, they sum to {total:g}")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each criterion, in the order of `CRITERIA`."""
        return {name: getattr(self, name) for name in CRITERIA}


@dataclass(frozen=True)
class ScoreCounts:
    """What the scores were made of.

    Args:
        ratings: rows read.
        prompts: candidate groups.
        candidates: members of those groups.
        unrated_candidates: members that nobody rated on anything.
        renormalised_prompts: groups scored on fewer criteria than the weights name, because a rated
            member lacked one of them.
        incomparable_prompts: groups whose rated members share no weighted criterion; all their
            scores are missing.
    """

    ratings: int
    prompts: int
    candidates: int
    unrated_candidates: int
    renormalised_prompts: int
    incomparable_prompts: int


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights of all criteria, in the order of `CRITERIA`; one that is not named weighs 0.

    Raises:
        ValueError: unknown criteria, negative weights, or a sum other than 1.
    """
    unknown = [name for name in weights if name not in CRITERIA]
    if unknown:
        raise ValueError(
            f"score weights name unknown criteria {unknown}, expected some of {list(CRITERIA)}"
        )
    full = {name: float(weights.get(name, 0.0)) for name in CRITERIA}
    if not all(math.isfinite(w) and w >= 0 for w in full.values()):
        raise ValueError(f"score weights {full} must be finite and not negative")
    if not math.isclose(math.fsum(full.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"score weights {full} sum to {math.fsum(full.values()):g}, not to 1")
    return full


def to_unit_interval(rating: float) -> float:
    """A rating from 1 to 5 on the scale [0, 1]."""
    return (rating - LOWEST) / (HIGHEST - LOWEST)


def criterion_means(
    ratings: Iterable[Rating], scales: RaterScales | None = None
) -> dict[str, float]:
    """Mean over raters of each criterion that somebody rated, on [0, 1].

    Args:
        ratings: of one candidate; what a rater left empty is left out.
        scales: see `score_candidates`.
    """
    values_by_criterion: dict[str, list[float]] = {name: [] for name in CRITERIA}
    for rating in ratings:
        for name in CRITERIA:
            grade = getattr(rating, name)
            if grade is None:
                continue
            if scales is not None:
                grade = scales(rating, name)
            values_by_criterion[name].append(to_unit_interval(grade))
    # fsum: the mean does not depend on the order of the raters, so neither do ties.
    return {
        name: math.fsum(values) / len(values)
        for name, values in values_by_criterion.items()
        if values
    }


def shared_weights(
    means: Iterable[Mapping[str, float]], weights: Mapping[str, float]
) -> dict[str, float]:
    """Weights over the criteria that every rated candidate has, renormalised to sum 1.

    So a candidate is never compared on other criteria than its rivals. Empty when none is left.

    Args:
        means: `criterion_means` of every candidate of a group.
        weights: of all criteria.
    """
    rated = [m for m in means if m]
    shared = {
        name: w for name, w in weights.items() if w > 0 and rated and all(name in m for m in rated)
    }
    total = math.fsum(shared.values())
    return {name: w / total for name, w in shared.items()}


def weighted_score(means: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Eq. 10 for one candidate. Rounded to 12 digits, so that equal ratings are equal scores."""
    return round(math.fsum(w * means[name] for name, w in weights.items()), DIGITS)


def overall(rating: Rating, weights: Mapping[str, float]) -> float | None:
    """Eq. 10 for one rating alone, on its own scale 1 to 5.

    Over the criteria that it gives; None when it gives none that weighs anything.
    """
    rated = {name: w for name, w in weights.items() if w > 0 and getattr(rating, name) is not None}
    total = math.fsum(rated.values())
    if not total:
        return None
    return math.fsum(w * getattr(rating, name) for name, w in rated.items()) / total


def difference(one: Rating, other: Rating, weights: Mapping[str, float]) -> float | None:
    """By how much one rating is above another, over the criteria that both give.

    None where they share none that weighs anything. Rounded, so that equal ratings are equal.
    """
    shared = {
        name: w
        for name, w in weights.items()
        if w > 0 and getattr(one, name) is not None and getattr(other, name) is not None
    }
    total = math.fsum(shared.values())
    if not total:
        return None
    apart = (w * (getattr(one, name) - getattr(other, name)) for name, w in shared.items())
    return round(math.fsum(apart) / total, DIGITS)


def score_candidates(
    ratings: Sequence[Rating],
    weights: Mapping[str, float] = ScoreConfig().weights,
    candidates: Mapping[str, Iterable[str]] | None = None,
    scales: RaterScales | None = None,
) -> tuple[Scores, ScoreCounts]:
    """Score every candidate of every prompt by Eq. 10.

    Args:
        ratings: rows of any number of raters, in any order.
        weights: per criterion, summing to 1.
        candidates: prompt id -> ids of the candidates that exist, where more exist than were rated;
            None = those that appear in `ratings`.
        scales: of raters whose leniency and use of the scale are to be taken out.

    Returns:
        prompt id -> candidate id -> score in [0, 1] (with `scales`, a little beyond) or None, both
        in sorted order; and the counts.

    Raises:
        RatingError: a rating of a candidate that does not exist.
        ValueError: weights that `check_weights` refuses.
    """
    weights = check_weights(weights)
    weighted = {name for name, weight in weights.items() if weight > 0}
    ratings_by_candidate = _group(ratings, candidates)

    scores: Scores = {}
    unrated = renormalised = incomparable = 0
    for prompt_id in sorted(ratings_by_candidate):
        group = ratings_by_candidate[prompt_id]
        means = {
            candidate: criterion_means(group[candidate], scales) for candidate in sorted(group)
        }
        shared = shared_weights(means.values(), weights)
        unrated += sum(not m for m in means.values())
        renormalised += bool(shared) and set(shared) != weighted
        incomparable += any(means.values()) and not shared
        scores[prompt_id] = {
            candidate: weighted_score(m, shared) if m and shared else None
            for candidate, m in means.items()
        }

    counts = ScoreCounts(
        ratings=len(ratings),
        prompts=len(scores),
        candidates=sum(len(group) for group in scores.values()),
        unrated_candidates=unrated,
        renormalised_prompts=renormalised,
        incomparable_prompts=incomparable,
    )
    return scores, counts


def rated_groups(scores: Scores) -> list[str]:
    """Prompts of which two candidates or more have a score, so that they can be compared."""
    return [
        prompt_id
        for prompt_id, group in scores.items()
        if sum(score is not None for score in group.values()) > 1
    ]


def _group(
    ratings: Sequence[Rating], candidates: Mapping[str, Iterable[str]] | None
) -> dict[str, dict[str, list[Rating]]]:
    """Prompt id -> candidate id -> its ratings, possibly none."""
    groups: dict[str, dict[str, list[Rating]]] = {}
    if candidates is not None:
        for prompt_id, members in candidates.items():
            groups[prompt_id] = {candidate: [] for candidate in members}
    for rating in ratings:
        if candidates is not None and rating.candidate_id not in groups.get(rating.prompt_id, {}):
            raise RatingError(
                f"rater {rating.rater!r} rated candidate {rating.candidate_id!r} of prompt "
                f"{rating.prompt_id!r}, which does not exist; are these the ratings of another run?"
            )
        groups.setdefault(rating.prompt_id, {}).setdefault(rating.candidate_id, []).append(rating)
    return groups
