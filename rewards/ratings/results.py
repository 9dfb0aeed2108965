"""What people think of results: methods rated beside each other (VLA + DPO paper, IV-D, Table III).

A candidate's id is the name of its method here. Ratings of one person are not independent, nor are
those of one prompt, so both are resampled (Owen 2007, "The pigeonhole bootstrap").
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rapport.rewards.ratings.ratings import CRITERIA, Rating
from rapport.rewards.ratings.scores import difference, overall


@dataclass(frozen=True)
class Estimate:
    """A mean over raters and prompts.

    Args:
        mean: of all ratings.
        low: lower bound of the 95 % interval; None where one rater rated one prompt.
        high: upper bound likewise.
        ratings: how many there are.
        raters: how many people gave them.
        prompts: how many prompts they are about.
    """

    mean: float
    low: float | None
    high: float | None
    ratings: int
    raters: int
    prompts: int


def method_means(
    ratings: Sequence[Rating], weights: Mapping[str, float], *, resamples: int, seed: int = 0
) -> dict[str, dict[str, Estimate | None]]:
    """Method -> criterion, and "overall" by Eq. 10 -> mean, 1 to 5; None where nobody rated it.

    Args:
        ratings: candidate ids are methods.
        weights: of the criteria in "overall".
        resamples: of the intervals.
        seed: of the resampling.
    """
    means: dict[str, dict[str, Estimate | None]] = {}
    for method in dict.fromkeys(rating.candidate_id for rating in ratings):
        own = [rating for rating in ratings if rating.candidate_id == method]
        values: dict[str, list[float | None]] = {
            name: [getattr(rating, name) for rating in own] for name in CRITERIA
        }
        values["overall"] = [overall(rating, weights) for rating in own]
        means[method] = {
            name: estimate(_cells(own, column), resamples=resamples, seed=seed)
            for name, column in values.items()
        }
    return means


def preference_shares(
    ratings: Sequence[Rating], weights: Mapping[str, float], *, resamples: int, seed: int = 0
) -> dict[tuple[str, str], Estimate]:
    """(A, B) -> how often somebody rated A above B for the same prompt; ties count half.

    Two ratings are compared over the criteria that both give. A pair that nobody rated both of is
    left out.

    Args:
        ratings: candidate ids are methods.
        weights: of the criteria, by which a rating is one number (Eq. 10).
        resamples: of the intervals.
        seed: of the resampling.
    """
    by_method: dict[str, dict[tuple[str, str], Rating]] = {}
    for rating in ratings:
        by_method.setdefault(rating.candidate_id, {})[rating.rater, rating.prompt_id] = rating
    shares = {}
    for one, other in itertools.permutations(by_method, 2):
        both = sorted(by_method[one].keys() & by_method[other].keys())
        apart = {
            place: difference(by_method[one][place], by_method[other][place], weights)
            for place in both
        }
        cells = {
            place: 0.5 + 0.5 * float(np.sign(value))
            for place, value in apart.items()
            if value is not None
        }
        share = estimate(cells, resamples=resamples, seed=seed)
        if share is not None:
            shares[one, other] = share
    return shares


def estimate(
    cells: Mapping[tuple[str, str], float], *, resamples: int, seed: int = 0
) -> Estimate | None:
    """The mean of some values and its interval; None of no value.

    Args:
        cells: (rater, prompt) -> value.
        resamples: of raters and, independently, of prompts.
        seed: of the resampling.
    """
    if not cells:
        return None
    raters = sorted({rater for rater, _ in cells})
    prompts = sorted({prompt for _, prompt in cells})
    values = np.zeros((len(raters), len(prompts)))
    present = np.zeros_like(values)
    for (rater, prompt), value in cells.items():
        place = raters.index(rater), prompts.index(prompt)
        values[place] = value
        present[place] = 1
    bounds: tuple[float | None, float | None] = (None, None)
    if len(raters) > 1 or len(prompts) > 1:
        rng = np.random.default_rng(seed)
        people = _multiplicities(len(raters), resamples, rng)
        clips = _multiplicities(len(prompts), resamples, rng)
        counts = np.einsum("br,rp,bp->b", people, present, clips)
        sums = np.einsum("br,rp,bp->b", people, values, clips)
        # A resample of people and prompts that never met has no mean.
        low, high = np.quantile(sums[counts > 0] / counts[counts > 0], [0.025, 0.975])
        bounds = float(low), float(high)
    return Estimate(
        mean=float(values.sum() / present.sum()),
        low=bounds[0],
        high=bounds[1],
        ratings=len(cells),
        raters=len(raters),
        prompts=len(prompts),
    )


def _multiplicities(size: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples, size) how often each is drawn; a single one is always drawn once."""
    return rng.multinomial(size, np.full(size, 1 / size), size=resamples)


def _cells(
    ratings: Sequence[Rating], values: Sequence[float | None]
) -> dict[tuple[str, str], float]:
    return {
        (rating.rater, rating.prompt_id): value
        for rating, value in zip(ratings, values, strict=True)
        if value is not None
    }
