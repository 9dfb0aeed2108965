"""Raters' scales and agreement against published and hand-computed values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapport.rewards.ratings.raters import (
    RaterScales,
    anonymous,
    krippendorff_alpha,
    ordinal_alpha,
    panel_reliability,
    survey,
)
from rapport.rewards.ratings.ratings import Rating
from rapport.rewards.ratings.scores import score_candidates


def published_units():
    """Krippendorff 2011, "Computing Krippendorff's alpha-reliability": four observers, twelve
    units, gaps.
    """
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    return [[v for v in column if v is not None] for column in zip(*table, strict=True)]


def opinion(rater, candidate, grade, prompt="p"):
    return Rating(prompt, candidate, rater, empathy=grade)


def test_alpha_of_the_published_example():
    assert ordinal_alpha(published_units()) == pytest.approx(0.815, abs=5e-4)


def test_alpha_of_extremes():
    assert ordinal_alpha([[1, 1], [3, 3], [5, 5]]) == 1
    assert ordinal_alpha([[2, 2], [2, 2]]) is None, "nothing to agree on"
    assert ordinal_alpha([[1], [5]]) is None, "nobody rated the same thing"
    assert ordinal_alpha([[1, 5], [5, 1], [1, 5]]) < 0
    rng = np.random.default_rng(0)
    assert abs(ordinal_alpha(rng.integers(1, 6, (4000, 3)).tolist())) < 0.03


def test_alpha_by_hand():
    """Two raters, three units 1 1, 1 2, 2 2. Ordinal with two grades is nominal: 1 - 5 * 2 / (2 * 3
    * 3).
    """
    assert ordinal_alpha([[1, 1], [1, 2], [2, 2]]) == pytest.approx(1 - 5 * 2 / 18)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=2, max_size=8),
    st.randoms(),
)
def test_alpha_does_not_depend_on_order_or_on_names_of_grades(units, random_):
    shuffled = [random_.sample(values, len(values)) for values in random_.sample(units, len(units))]
    stretched = [
        [v * v for v in values] for values in units
    ]  # ordinal: only the order of grades counts
    alpha = ordinal_alpha(units)
    for other in (ordinal_alpha(shuffled), ordinal_alpha(stretched)):
        assert other == (None if alpha is None else pytest.approx(alpha))


def test_reliability_of_a_panel_by_hand():
    assert panel_reliability(0.5, 1) == 0.5
    assert panel_reliability(0.5, 3) == pytest.approx(0.75)
    assert panel_reliability(-0.2, 5) == 0


def test_scales_take_out_leniency_and_spread():
    """Anna uses 1 to 3, Bert 3 to 5: the same opinion."""
    ratings = [opinion("anna", c, g) for c, g in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    ratings += [opinion("bert", c, g + 2) for c, g in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    scales = RaterScales.fit(ratings)
    values = {(r.rater, r.candidate_id): scales(r, "empathy") for r in ratings}
    for candidate in "abc":
        assert values["anna", candidate] == pytest.approx(values["bert", candidate])
    assert values["anna", "b"] == pytest.approx(3.0)  # the panel's mean
    everything = list(values.values())
    assert np.mean(everything) == pytest.approx(3.0) and np.std(everything) == pytest.approx(
        np.std([1, 2, 3, 3, 4, 5])
    )


@pytest.mark.parametrize("grade", [5.0, 3.3])  # three of the latter have another mean, by rounding
def test_a_rater_who_always_says_the_same_says_nothing(grade):
    ratings = [opinion("flat", c, grade) for c in "abc"] + [
        opinion("anna", c, g) for c, g in (("a", 1.0), ("b", 2.0), ("c", 3.0))
    ]
    scales = RaterScales.fit(ratings)
    wanted = pytest.approx((grade + 2.0) / 2)
    assert scales(ratings[0], "empathy") == scales(ratings[1], "empathy") == wanted


def test_uneven_panels_are_compared_fairly_by_scale():
    """Only the harsh rater saw a, only the lenient one b; on the rest they agree. Raw grades prefer
    b, wrongly.
    """
    common = [(f"{i}", g) for i, g in enumerate((1.0, 2.0, 3.0, 2.0))]
    ratings = [opinion("harsh", c, g, prompt="q") for c, g in common] + [opinion("harsh", "a", 3.0)]
    ratings += [opinion("lenient", c, g + 2, prompt="q") for c, g in common] + [
        opinion("lenient", "b", 4.0)
    ]
    weights = {"empathy": 1.0}
    raw, _ = score_candidates(ratings, weights)
    fair, _ = score_candidates(ratings, weights, scales=RaterScales.fit(ratings))
    assert raw["p"]["b"] > raw["p"]["a"] and fair["p"]["a"] > fair["p"]["b"]


def test_names_are_left_behind():
    ratings = [opinion("bert", "a", 1.0), opinion("anna", "a", 2.0), opinion("bert", "b", 3.0)]
    assert [r.rater for r in anonymous(ratings)] == ["rater-1", "rater-2", "rater-1"]
    assert [r.empathy for r in anonymous(ratings)] == [1.0, 2.0, 3.0]


def test_a_survey_counts_and_warns():
    ratings = [
        opinion("x", "a", 1.0),
        opinion("y", "a", 5.0),
        opinion("x", "b", 5.0),
        opinion("y", "b", 1.0),
        opinion("x", "c", 3.0),
    ]
    found = survey(ratings, {"p": ["a", "b", "c", "d"]})
    assert (found.candidates, found.rated, found.rated_twice) == (4, 3, 2)
    assert found.raters == {"x": 3, "y": 2} and found.raters_per_candidate == pytest.approx(5 / 3)
    assert found.alpha["empathy"] < 0 and found.alpha["naturalness"] is None
    text = "\n".join(found.warnings)
    assert (
        "1 of 4 candidates were rated by nobody" in text and "empathy: raters hardly agree" in text
    )
    assert "score.empathy=0" in text and "naturalness" not in text


def test_raters_who_agree_raise_no_warning():
    ratings = [opinion(r, c, g) for r in "xyz" for c, g in (("a", 1.0), ("b", 3.0), ("c", 5.0))]
    found = survey(ratings, {"p": ["a", "b", "c"]})
    assert found.warnings == [] and found.alpha["empathy"] == found.reliability["empathy"] == 1
    alone = survey(ratings[:3], {"p": ["a", "b", "c"]})
    assert any("rated by two people" in text for text in alone.warnings)
    assert krippendorff_alpha(ratings[:3], "empathy") is None
