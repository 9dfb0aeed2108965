"""How far scores agree with people's: counted by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from rapport.rewards.ratings.ratings import Rating
from rapport.rewards.ratings.scores import ScoreConfig
from rapport.rewards.reward_agreement import agreement, raters_left_out, right_order

PEOPLE = {
    "p": {"a": 0.1, "b": 0.5, "c": 0.9, "d": None},
    "q": {"a": 0.2, "b": 0.8},
    "alone": {"a": 0.4},
}
OF = {"p": "first", "q": "second", "alone": "second"}


def test_couples_in_the_right_order():
    actual = np.array([0.1, 0.5, 0.9])
    assert right_order(actual, actual) == 1
    assert right_order(-actual, actual) == 0
    assert right_order(np.zeros(3), actual) == 0.5, "ties count half"
    assert right_order(np.array([1, 0, 2]), actual) == pytest.approx(2 / 3)
    assert right_order(np.array([1, 2]), np.array([0.5, 0.5])) is None


def test_agreement_is_within_groups_and_over_all():
    scores = {"p": {"a": 2, "b": 1, "c": 3, "d": 0}, "q": {"a": 8, "b": 9}}
    row = agreement([(scores, PEOPLE)], OF, bootstrap=200)
    assert row.accuracy.mean == pytest.approx((2 / 3 + 1) / 2) and row.accuracy.n == 2
    assert row.within == pytest.approx(0.5), "of the group of three"
    over_all = spearmanr([2, 1, 3, 8, 9], [0.1, 0.5, 0.9, 0.2, 0.8]).statistic
    assert row.over_all == pytest.approx(over_all)
    nothing = {prompt: dict.fromkeys(group, 0.0) for prompt, group in PEOPLE.items()}
    flat = agreement([(nothing, PEOPLE)], OF, bootstrap=200)
    assert (flat.accuracy.mean, flat.within, flat.over_all) == (0.5, 0, 0)
    assert agreement([({}, PEOPLE)], OF, bootstrap=200) is None


def test_every_rater_is_held_against_the_others():
    grades = {"Ann": (1, 3, 5), "Bob": (2, 3, 4), "Cem": (5, 4, 1)}
    ratings = [
        Rating(prompt, candidate, rater, *[grade] * 4)
        for prompt in ("p", "q")
        for rater, row in grades.items()
        for candidate, grade in zip("abc", row, strict=True)
    ]
    judged = raters_left_out(ratings, ScoreConfig().weights)
    shares = [
        right_order(np.array([*own["p"].values()]), np.array([*others["p"].values()]))
        for own, others in judged
    ]
    # Ann against (3.5, 3.5, 2.5); Bob against (3, 3.5, 3); Cem against (1.5, 3, 4.5).
    assert shares == [0, pytest.approx(0.5), 0]
    row = agreement(judged, OF, bootstrap=200)
    assert row.accuracy.mean == pytest.approx(0.5 / 3)
