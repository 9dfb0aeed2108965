"""Preference scores: several people's ratings of a candidate become one number (Eq. 10).

    S = w_E * Empathy + w_A * Appropriateness + w_En * Engagement + w_N * Naturalness

with ratings normalised to [0, 1] by (r - 1) / 4 and weights that sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rapport.rewards.ratings.raters import RaterScales
from rapport.rewards.ratings.ratings import CRITERIA, HIGHEST, LOWEST, Rating, RatingError

EQUAL_WEIGHTS: dict[str, float] = {name: 1 / len(CRITERIA) for name in CRITERIA}

# Score of every candidate of every prompt; None = nobody rated it, or it cannot be compared in its
# group.
Scores = dict[str, dict[str, float | None]]


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
        incomparable_prompts: groups whose rated members share no weighted criterion; all missing.
    """

    ratings: int
    prompts: int
    candidates: int
    unrated_candidates: int
    renormalised_prompts: int
    incomparable_prompts: int


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights per criterion, in the order of `CRITERIA`; one not named weighs 0.

    Raises `ValueError` on unknown criteria, negative weights, or a sum other than 1.
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


def normalise(rating: float) -> float:
    """A rating from 1 to 5 on the scale [0, 1]."""
    return (rating - LOWEST) / (HIGHEST - LOWEST)


def criterion_means(
    ratings: Iterable[Rating], scales: RaterScales | None = None
) -> dict[str, float]:
    """Mean over raters of each criterion that somebody rated, on [0, 1]. Missing ratings are left
    out.
    """
    given: dict[str, list[float]] = {name: [] for name in CRITERIA}
    for rating in ratings:
        for name in CRITERIA:
            value = getattr(rating, name)
            if value is not None:
                given[name].append(normalise(value if scales is None else scales(rating, name)))
    # fsum: the mean does not depend on the order of the raters, so neither do ties.
    return {name: math.fsum(values) / len(values) for name, values in given.items() if values}


def shared_weights(
    means: Iterable[Mapping[str, float]], weights: Mapping[str, float]
) -> dict[str, float]:
    """Weights over the criteria that every rated candidate has, renormalised to sum 1; empty when
    none is left.

    A candidate is never compared on other criteria than its rivals.
    """
    rated = [m for m in means if m]
    shared = {
        name: w for name, w in weights.items() if w > 0 and rated and all(name in m for m in rated)
    }
    total = math.fsum(shared.values())
    return {name: w / total for name, w in shared.items()}


def weighted_score(means: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Eq. 10 for one candidate. Rounded to 12 digits, so that equal ratings are equal scores."""
    return round(math.fsum(w * means[name] for name, w in weights.items()), 12)


def overall(rating: Rating, weights: Mapping[str, float]) -> float | None:
    """Eq. 10 for one rating alone, on its own scale 1 to 5, over the criteria it gives; None when
    it gives none.
    """
    given = {name: w for name, w in weights.items() if w > 0 and getattr(rating, name) is not None}
    total = math.fsum(given.values())
    return (
        math.fsum(w * getattr(rating, name) for name, w in given.items()) / total if total else None
    )


def score_candidates(
    ratings: Sequence[Rating],
    weights: Mapping[str, float] = EQUAL_WEIGHTS,
    candidates: Mapping[str, Iterable[str]] | None = None,
    scales: RaterScales | None = None,
) -> tuple[Scores, ScoreCounts]:
    """Score every candidate of every prompt by Eq. 10.

    Args:
        ratings: rows of any number of raters, in any order.
        weights: per criterion, summing to 1.
        candidates: the candidates that exist, per prompt, where more exist than were rated; by
            default those that appear in `ratings`. A rating of one that does not exist raises
            `RatingError`.
        scales: of raters whose leniency and use of the scale are to be taken out.

    Returns:
        prompt id -> candidate id -> score in [0, 1] (with `scales`, a little beyond) or None, both
        in sorted order; and the counts.
    """
    weights = check_weights(weights)
    rows = _group(ratings, candidates)

    scores: Scores = {}
    unrated = renormalised = incomparable = 0
    for prompt_id in sorted(rows):
        group = rows[prompt_id]
        means = {
            candidate: criterion_means(group[candidate], scales) for candidate in sorted(group)
        }
        shared = shared_weights(means.values(), weights)
        is_rated = any(means.values())
        unrated += sum(not m for m in means.values())
        renormalised += bool(shared) and set(shared) != {
            name for name, w in weights.items() if w > 0
        }
        incomparable += is_rated and not shared
        scores[prompt_id] = {
            c: weighted_score(m, shared) if m and shared else None for c, m in means.items()
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


def _group(
    ratings: Sequence[Rating], candidates: Mapping[str, Iterable[str]] | None
) -> dict[str, dict[str, list[Rating]]]:
    rows: dict[str, dict[str, list[Rating]]] = {}
    if candidates is not None:
        rows = {
            prompt_id: {candidate: [] for candidate in group}
            for prompt_id, group in candidates.items()
        }
    for rating in ratings:
        if candidates is not None and rating.candidate_id not in rows.get(rating.prompt_id, {}):
            raise RatingError(
                f"rater {rating.rater!r} rated candidate {rating.candidate_id!r} of prompt "
                f"{rating.prompt_id!r}, "
                f"which does not exist; are these the ratings of another run?"
            )
        rows.setdefault(rating.prompt_id, {}).setdefault(rating.candidate_id, []).append(rating)
    return rows
