"""People as measuring instruments: how they use the scale, how far they agree, what they covered."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rapport.rewards.ratings.ratings import CRITERIA, Rating

TENTATIVE_ALPHA = 0.667  # below it, Krippendorff (2004) draws not even tentative conclusions
USEFUL_RELIABILITY = 0.5  # below it, most of what tells two candidates apart is the raters' noise


def anonymous(ratings: Iterable[Rating]) -> list[Rating]:
    """Raters as rater-1, rater-2, ... in the order of their first rating."""
    names: dict[str, str] = {}
    return [replace(r, rater=names.setdefault(r.rater, f"rater-{len(names) + 1}")) for r in ratings]


@dataclass(frozen=True)
class RaterScales:
    """Grades freed of how lenient a rater is and how much of the scale they use.

    A grade becomes panel mean + panel std * (grade - rater's mean) / rater's std, by criterion; it
    may leave 1 to 5. A rater who always gives the same grade is only shifted. It takes for granted
    that raters saw alike sets of candidates; with few ratings each, or sets of unlike quality, it
    removes what it should keep."""

    raters: Mapping[tuple[str, str], tuple[float, float]]  # (rater, criterion) -> mean, std
    panel: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, ratings: Sequence[Rating]) -> RaterScales:
        given: dict[tuple[str, str], list[float]] = defaultdict(list)
        for rating in ratings:
            for name in CRITERIA:
                if (value := getattr(rating, name)) is not None:
                    given[rating.rater, name].append(value)
        by_criterion = {
            name: [v for (_, n), values in given.items() if n == name for v in values]
            for name in CRITERIA
        }
        return cls(
            {key: _mean_std(values) for key, values in given.items()},
            {name: _mean_std(values) for name, values in by_criterion.items() if values},
        )

    def __call__(self, rating: Rating, criterion: str) -> float:
        """The grade on the panel's scale; the criterion must have been rated."""
        (mean, std), (panel_mean, panel_std) = (
            self.raters[rating.rater, criterion],
            self.panel[criterion],
        )
        return panel_mean + (getattr(rating, criterion) - mean) * (
            panel_std / std if std > 0 else 1.0
        )


def krippendorff_alpha(ratings: Iterable[Rating], criterion: str) -> float | None:
    """Agreement on a criterion, ordinal alpha (Krippendorff 2011, "Computing Krippendorff's
    alpha-reliability").

    1 = perfect, 0 = as by chance. Candidates rated once do not count. None where no candidate was
    rated twice, or where all grades are the same (there is nothing to agree on)."""
    units: dict[tuple[str, str], list[float]] = defaultdict(list)
    for rating in ratings:
        if (value := getattr(rating, criterion)) is not None:
            units[rating.prompt_id, rating.candidate_id].append(value)
    return ordinal_alpha(list(units.values()))


def ordinal_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """`krippendorff_alpha` of the values given to each unit."""
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
    upto = (
        np.cumsum(totals) - totals / 2
    )  # between two grades lie those in between and half of each
    distances = (upto[:, None] - upto[None]) ** 2
    observed = (coincidences * distances).sum()
    expected = (np.outer(totals, totals) * distances).sum() / (totals.sum() - 1)
    return float(1 - observed / expected)


def panel_reliability(alpha: float, raters: float) -> float:
    """Reliability of the mean of several raters who agree by `alpha` (Spearman 1910, Brown 1910)."""
    return max(0.0, raters * alpha / (1 + (raters - 1) * alpha)) if alpha > 0 else 0.0


@dataclass(frozen=True)
class Survey:
    """What a file of ratings holds.

    Args:
        raters: rater -> candidates they rated.
        candidates, rated, rated_twice: members of all groups, and how many of them somebody (two)
            rated.
        raters_per_candidate: mean over the rated ones.
        alpha: criterion -> agreement, None where it cannot be computed.
        reliability: criterion -> reliability of the panel's mean grade.
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
        """What makes these ratings a poor teacher, with the way out."""
        found = []
        if self.rated < self.candidates:
            found.append(
                f"{self.candidates - self.rated} of {self.candidates} candidates were rated by "
                "nobody"
            )
        if not self.rated_twice:
            found.append("no candidate was rated by two people: how far they agree is not known")
        for name, alpha in self.alpha.items():
            if alpha is None:
                continue
            if self.reliability[name] < USEFUL_RELIABILITY:
                found.append(
                    f"{name}: raters hardly agree (alpha {alpha:.2f}); the mean of "
                    f"{self.raters_per_candidate:.1f} raters is more noise than signal "
                    "(reliability "
                    f"{self.reliability[name]:.2f}): more raters, clearer instructions, or "
                    f"score.{name}=0"
                )
            elif alpha < TENTATIVE_ALPHA:
                found.append(
                    f"{name}: alpha {alpha:.2f} is below {TENTATIVE_ALPHA}; single opinions are "
                    "unsafe, the "
                    f"mean of the panel has reliability {self.reliability[name]:.2f}"
                )
        return found


def survey(ratings: Sequence[Rating], candidates: Mapping[str, Iterable[str]]) -> Survey:
    """Coverage and agreement of `ratings` over the groups `candidates` (prompt id -> candidate
    ids).
    """
    opinions: dict[tuple[str, str], set[str]] = defaultdict(set)
    raters: dict[str, int] = defaultdict(int)
    for rating in ratings:
        if any(getattr(rating, name) is not None for name in CRITERIA):
            opinions[rating.prompt_id, rating.candidate_id].add(rating.rater)
            raters[rating.rater] += 1
    counts = [len(who) for who in opinions.values()]
    each = float(np.mean(counts)) if counts else 0.0
    alpha = {name: krippendorff_alpha(ratings, name) for name in CRITERIA}
    return Survey(
        raters=dict(raters),
        candidates=sum(len(list(group)) for group in candidates.values()),
        rated=len(counts),
        rated_twice=sum(count > 1 for count in counts),
        raters_per_candidate=each,
        alpha=alpha,
        reliability={
            name: None if a is None else panel_reliability(a, each) for name, a in alpha.items()
        },
    )


def _mean_std(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
