"""Table III: means and preferences with intervals over raters and over prompts."""

import itertools

import numpy as np
import pytest

from rapport.rewards.ratings.ratings import Rating
from rapport.rewards.ratings.results import estimate, method_means, preference_shares
from rapport.rewards.ratings.scores import difference

WEIGHTS = {"empathy": 0.5, "appropriateness": 0.5}


def rated(grades):
    """Ratings of {(rater, prompt, method): (empathy, appropriateness)}."""
    return [Rating(p, m, r, e, a) for (r, p, m), (e, a) in grades.items()]


SMALL = rated(
    {
        ("ann", "p", "A"): (5, 4),
        ("ann", "p", "B"): (3, 4),
        ("ann", "q", "A"): (2, 2),
        ("ann", "q", "B"): (4, None),
        ("bob", "p", "A"): (4, 4),
        ("bob", "p", "B"): (4, 4),
        ("bob", "q", "B"): (1, 1),
    }
)


def test_means_by_method_and_criterion():
    means = method_means(SMALL, WEIGHTS, resamples=200)
    assert means["A"]["empathy"].mean == pytest.approx(11 / 3)
    assert (means["A"]["empathy"].ratings, means["A"]["empathy"].raters) == (3, 2)
    assert (
        means["B"]["appropriateness"].mean == pytest.approx(3) and means["B"]["engagement"] is None
    )
    assert means["B"]["overall"].mean == pytest.approx((3.5 + 4 + 4 + 1) / 4)


def test_preferences_are_of_one_rater_and_one_prompt_and_ties_count_half():
    shares = preference_shares(SMALL, WEIGHTS, resamples=200)
    # ann: A wins on p, B on q; bob: a tie on p, and q of B alone, which is compared with nothing.
    assert shares["A", "B"].mean == pytest.approx((1 + 0 + 0.5) / 3)
    assert shares["A", "B"].ratings == 3
    assert shares["A", "B"].mean + shares["B", "A"].mean == pytest.approx(1)


def test_two_ratings_are_compared_over_what_both_give_and_equal_ones_are_equal():
    weights = {"empathy": 0.4, "appropriateness": 0.3, "engagement": 0.2, "naturalness": 0.1}
    full, partial = Rating("p", "A", "r", 4, 4, 4, 1), Rating("p", "B", "r", 4, 4, 4, None)
    assert difference(full, partial, weights) == 0.0
    one, other = Rating("p", "A", "r", 1, 1, 1, 3), Rating("p", "B", "r", 1, 1, 2, 1)
    assert difference(one, other, weights) == 0.0 and difference(one, other, WEIGHTS) == 0.0
    assert difference(partial, Rating("p", "A", "r", naturalness=2), weights) is None
    shares = preference_shares([full, partial, one, other], weights, resamples=10)
    assert all(share.mean == 0.5 for share in shares.values())


@pytest.mark.parametrize("varies", ["raters", "prompts"])
def test_the_interval_is_that_of_whatever_varies(varies):
    """With effects of raters alone it is as wide as a bootstrap of raters, whatever the prompts."""
    rng = np.random.default_rng(0)
    effects = rng.normal(3, 0.5, 12)
    people, clips = (12, 40) if varies == "raters" else (40, 12)
    cells = {
        (f"r{r:02d}", f"p{p:02d}"): effects[r if varies == "raters" else p]
        for r, p in itertools.product(range(people), range(clips))
    }
    found = estimate(cells, resamples=4000)
    assert found.mean == pytest.approx(effects.mean())
    plain = rng.choice(effects, (20000, 12)).mean(axis=1)
    expected = np.quantile(plain, 0.975) - np.quantile(plain, 0.025)
    assert found.high - found.low == pytest.approx(expected, rel=0.08)


def test_one_rating_has_no_interval_and_none_has_no_mean():
    alone = estimate({("r", "p"): 4.0}, resamples=100)
    assert (alone.mean, alone.low, alone.high) == (4.0, None, None)
    assert estimate({}, resamples=100) is None


def test_raters_who_never_met_a_prompt_are_left_out_of_a_resample():
    cells = {("a", "p"): 1.0, ("b", "q"): 5.0}
    found = estimate(cells, resamples=500)
    assert found.mean == 3 and 1 <= found.low < found.high <= 5
