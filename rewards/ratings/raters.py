"""People as measuring instruments: how they use the scale, how far they agree, what they rated."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rapport.rewards.ratings.ratings import CRITERIA, Rating

TENTATIVE_ALPHA = 0.667  # below it, Krippendorff (2004) draws not even tentative conclusions
USEFUL_RELIABILITY = 0.5  # below it, most of what tells two candidates apart is the raters' noise


def anonymous(ratings: Sequence[Rating]) -> list[Rating]:
    """The ratings with raters called by their neutral names."""
    names = neutral_raters(rating.rater for rating in ratings)
    return [replace(rating, rater=names[rating.rater]) for rating in ratings]


def neutral_raters(raters: Iterable[str]) -> dict[str, str]:
    """Rater -> rater-1, rater-2, ... in the order of their first opinion."""
    return {name: f"rater-{number}" for number, name in enumerate(dict.fromkeys(raters), 1)}


@dataclass(frozen=True)
class RaterScales:
    """Takes out of a grade how lenient its rater is and how much of the scale they use.

    A grade becomes panel mean + panel std * (grade - rater's mean) / rater's std, criterion by
    criterion; it may leave 1 to 5. A rater who always gives the same grade is only shifted. This
    assumes that raters saw similar sets of candidates. With few ratings each, or sets of unlike
    quality, it takes out what it should keep.

    Args:
        raters: (rater, criterion) -> mean and standard deviation of their grades.
        panel: criterion -> mean and standard deviation of everybody's grades.
    """

    raters: Mapping[tuple[str, str], tuple[float, float]]
    panel: Mapping[str, tuple[float, float]]

    @classmethod
    def fit(cls, ratings: Sequence[Rating]) -> RaterScales:
        """The scales of everybody who rated."""
        grades_by_rater: dict[tuple[str, str], list[float]] = defaultdict(list)
        for rating in ratings:
            for name in CRITERIA:
                grade = getattr(rating, name)
                if grade is not None:
                    grades_by_rater[rating.rater, name].append(grade)
        panel = {}
        for name in CRITERIA:
            grades = [
                grade
                for (_, criterion), rater_grades in grades_by_rater.items()
                if criterion == name
                for grade in rater_grades
            ]
            if grades:
                panel[name] = _mean_std(grades)
        raters = {key: _mean_std(grades) for key, grades in grades_by_rater.items()}
        return cls(raters, panel)

    def __call__(self, rating: Rating, criterion: str) -> float:
        """The grade on the panel's scale; the criterion must have been rated."""
        mean, std = self.raters[rating.rater, criterion]
        panel_mean, panel_std = self.panel[criterion]
        stretch = panel_std / std if std > 0 else 1.0
        grade: float = getattr(rating, criterion)
        return panel_mean + (grade - mean) * stretch


def krippendorff_alpha(ratings: Iterable[Rating], criterion: str) -> float | None:
    """How far raters agree on a criterion: Krippendorff's ordinal alpha.

    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability".

    Returns:
        1 = perfect, 0 = as by chance. Candidates that one person rated do not count. None where no
        candidate was rated twice, or where all grades are the same and there is nothing to agree
        on.
    """
    grades_by_candidate: dict[tuple[str, str], list[float]] = defaultdict(list)
    for rating in ratings:
        grade = getattr(rating, criterion)
        if grade is not None:
            grades_by_candidate[rating.prompt_id, rating.candidate_id].append(grade)
    return ordinal_alpha(grades_by_candidate.values())


def ordinal_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's ordinal alpha of the values that each unit was given.

    See `krippendorff_alpha`.
    """
    pairable = [values for values in units if len(values) > 1]
    grades = sorted({v for values in pairable for v in values})
    if len(grades) < 2:
        return None
    index = {grade: i for i, grade in enumerate(grades)}
    coincidences = np.zeros((len(grades), len(grades)))
    for values in pairable:
        counts = np.bincount([index[v] for v in values], minlength=len(grades)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(values) - 1)
    totals = coincidences.sum(axis=1)
    # Between two grades lie those in between and half of each of the two.
    ranks = np.cumsum(totals) - totals / 2
    distances = (ranks[:, None] - ranks[None]) ** 2
    observed = (coincidences * distances).sum()
    expected = (np.outer(totals, totals) * distances).sum() / (totals.sum() - 1)
    return float(1 - observed / expected)


def panel_reliability(alpha: float, raters: float) -> float:
    """Reliability of the mean of `raters` raters who agree by `alpha` (Spearman 1910, Brown 1910).

    Returns:
        From 0 (noise) to 1.
    """
    if alpha <= 0:
        return 0.0
    return max(0.0, raters * alpha / (1 + (raters - 1) * alpha))


@dataclass(frozen=True)
class Survey:
    """What a file of ratings holds.

    Args:
        raters: rater -> how many candidates they rated.
        candidates: members of all groups.
        rated: how many of them somebody rated.
        rated_twice: how many of them two people or more rated.
        raters_per_candidate: mean over the rated ones.
        alpha: criterion -> agreement, None where it cannot be computed.
        reliability: criterion -> reliability of the panel's mean grade, None likewise.
    """

    raters: dict[str, int]
    candidates: int
    rated: int
    rated_twice: int
    raters_per_candidate: float
    alpha: dict[str, float | None]
    reliability: dict[str, float | None]

    @property
    def warnings(self) -> list[str]:
        """Why these ratings teach little, each with what to do about it."""
        warnings = []
        if self.rated < self.candidates:
            warnings.append(
                f"{self.candidates - self.rated} of {self.candidates} candidates were rated by "
                "nobody"
            )
        if not self.rated_twice:
            warnings.append("no candidate was rated by two people: how far they agree is not known")
        for name, alpha in self.alpha.items():
            reliability = self.reliability[name]
            if alpha is None or reliability is None:
                continue
            if reliability < USEFUL_RELIABILITY:
                warnings.append(
                    f"{name}: raters hardly agree (alpha {alpha:.2f}); the mean of "
                    f"{self.raters_per_candidate:.1f} raters is more noise than signal "
                    f"(reliability {reliability:.2f}): more raters, clearer instructions, or "
                    f"score.{name}=0"
                )
            elif alpha < TENTATIVE_ALPHA:
                warnings.append(
                    f"{name}: alpha {alpha:.2f} is below {TENTATIVE_ALPHA}; single opinions are "
                    f"unsafe, the mean of the panel has reliability {reliability:.2f}"
                )
        return warnings


def survey(ratings: Sequence[Rating], candidates: Mapping[str, Iterable[str]]) -> Survey:
    """How much of `candidates` was rated, and how far raters agree.

    Args:
        ratings: rows of any number of raters, in any order.
        candidates: prompt id -> ids of the candidates that exist.
    """
    raters_by_candidate: dict[tuple[str, str], set[str]] = defaultdict(set)
    candidates_by_rater: dict[str, int] = defaultdict(int)
    for rating in ratings:
        if any(getattr(rating, name) is not None for name in CRITERIA):
            raters_by_candidate[rating.prompt_id, rating.candidate_id].add(rating.rater)
            candidates_by_rater[rating.rater] += 1
    counts = [len(raters) for raters in raters_by_candidate.values()]
    raters_per_candidate = float(np.mean(counts)) if counts else 0.0
    alpha = {name: krippendorff_alpha(ratings, name) for name in CRITERIA}
    reliability = {
        name: None if value is None else panel_reliability(value, raters_per_candidate)
        for name, value in alpha.items()
    }
    return Survey(
        raters=dict(candidates_by_rater),
        candidates=sum(len(list(group)) for group in candidates.values()),
        rated=len(counts),
        rated_twice=sum(count > 1 for count in counts),
        raters_per_candidate=raters_per_candidate,
        alpha=alpha,
        reliability=reliability,
    )


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    if min(values) == max(values):
        return values[0], 0.0  # their mean is another number, by rounding
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
    return mean, math.sqrt(variance)
