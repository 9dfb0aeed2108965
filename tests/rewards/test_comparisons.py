"""Choices between two: pairs, agreement, strengths; files that come back as they were."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from rapport.rewards.ratings.comparisons import (
    CHOICES,
    Comparison,
    bradley_terry,
    compared_pairs,
    comparison_alpha,
    holds_comparisons,
    read_comparisons,
    strengths,
    survey_comparisons,
    vote_shares,
    write_comparisons,
)
from rapport.rewards.ratings.ratings import Rating, RatingError, write_ratings

MEMBERS = {"p": ["a", "b", "c"], "q": ["a", "b"]}


def choice(first, second, preferred, rater="ann", prompt="p"):
    return Comparison(prompt, first, second, rater, preferred)


def logistic_strengths(wins):
    """Bradley-Terry as a logistic regression on differences: another method, another library."""
    rows, labels, weights = [], [], []
    for i, j in itertools.permutations(range(len(wins)), 2):
        row = np.zeros(len(wins))
        row[i], row[j] = 1, -1
        # Of each pair both orders, so that both labels appear.
        rows += [row, -row]
        labels += [1, 0]
        weights += [wins[i, j]] * 2
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
    fitted.fit(np.array(rows), labels, sample_weight=weights)
    return fitted.coef_[0] - fitted.coef_[0].mean()


def test_strengths_equal_those_of_a_logistic_regression():
    wins = np.array([[0, 7, 9.5, 4], [3, 0, 6, 5], [0.5, 4, 0, 2], [6, 5, 8, 0]])
    assert bradley_terry(wins) == pytest.approx(logistic_strengths(wins), abs=1e-4)


def test_strengths_of_two_are_their_odds():
    wins = np.array([[0, 3.0], [1, 0]])
    low, high = sorted(bradley_terry(wins))
    assert high - low == pytest.approx(np.log(3))


def test_who_never_lost_is_not_infinitely_strong_with_a_prior_and_refused_without():
    wins = np.array([[0, 5.0], [0, 0]])
    with pytest.raises(ValueError, match="never lost"):
        bradley_terry(wins)
    strong, weak = bradley_terry(wins, prior=1.0)
    assert 1 < strong - weak < 10
    more = bradley_terry(10 * wins, prior=1.0)
    assert more[0] > strong, "more wins are stronger"


@settings(deadline=None)
@given(st.permutations(range(4)), st.integers(0, 2**31))
def test_strengths_do_not_depend_on_the_order_of_the_players(order, seed):
    wins = np.random.default_rng(seed).integers(1, 9, (4, 4)).astype(float)
    np.fill_diagonal(wins, 0)
    order = list(order)
    moved = bradley_terry(wins[np.ix_(order, order)], prior=0.5)
    assert moved == pytest.approx(bradley_terry(wins, prior=0.5)[order], abs=1e-6)


def test_players_are_compared_over_all_prompts():
    players = {
        ("p", "a"): "people",
        ("p", "b"): "policy",
        ("q", "a"): "policy",
        ("q", "b"): "people",
    }
    said = [choice("a", "b", "first", "ann"), choice("a", "b", "second", "ann", "q")]
    said += [choice("b", "a", "first", "bert")]
    found = strengths(said, players)
    assert list(found) == ["people", "policy"], "strongest first"
    assert found["people"] == -found["policy"] > 0
    assert strengths([], players) == {}


def test_a_couple_is_the_same_on_either_side():
    said = [choice("a", "b", "first"), choice("b", "a", "second", "bert")]
    assert vote_shares(said) == {("p", "a", "b"): 1.0}
    assert vote_shares([choice("b", "a", "tie")]) == {("p", "a", "b"): 0.5}


def test_the_majority_makes_the_pair():
    said = [
        choice("a", "b", "first", "ann"),
        choice("b", "a", "second", "bert"),
        choice("a", "b", "second", "cleo"),
        choice("b", "c", "tie", "ann"),
        choice("a", "b", "first", "ann", "q"),
        choice("a", "b", "second", "bert", "q"),
    ]
    pairs, scores, counts = compared_pairs(said, 0.0, MEMBERS)
    [pair] = pairs
    assert (pair.prompt_id, pair.chosen_id, pair.rejected_id) == ("p", "a", "b")
    assert (pair.chosen_score, pair.rejected_score) == pytest.approx((2 / 3, 1 / 3))
    assert scores["p"] == pytest.approx({"a": 2 / 3, "b": (1 / 3 + 0.5) / 2, "c": 0.5})
    assert (counts["couples"], counts["tied_couples"], counts["comparisons"]) == (3, 2, 6)
    assert compared_pairs(said, 0.5, MEMBERS)[0] == [], "a third is less than the margin"
    with pytest.raises(RatingError, match="'z' of prompt 'p', which does not exist"):
        compared_pairs([choice("a", "z", "first")], 0.0, MEMBERS)


def test_nobody_compared_is_no_score_and_not_zero():
    assert compared_pairs([choice("a", "b", "first")], 0.0, MEMBERS)[1]["q"] == {
        "a": None,
        "b": None,
    }


def test_agreement_is_one_for_the_same_choice_on_other_sides_and_below_0_for_the_opposite():
    same = [choice("a", "b", "first"), choice("b", "a", "second", "bert")]
    same += [choice("b", "c", "first"), choice("c", "b", "second", "bert")]
    same += [choice("c", "a", "first"), choice("c", "a", "first", "bert")]
    assert comparison_alpha(same) == pytest.approx(1.0)
    against = [choice("a", "b", "first"), choice("a", "b", "second", "bert")]
    against += [choice("b", "c", "second"), choice("b", "c", "first", "bert")]
    assert comparison_alpha(against) < 0
    assert comparison_alpha([choice("a", "b", "first")]) is None


def test_agreement_does_not_depend_on_names():
    rng = np.random.default_rng(0)
    for names in (("0", "people"), ("people", "0"), ("z", "people")):
        said = [
            Comparison(f"p{n}", *(names if n % 2 else names[::-1]), rater, preferred)
            for n in range(40)
            for rater in ("ann", "bert", "cem")
            for preferred in [rng.choice(["first", "second"], p=[0.9, 0.1])]
        ]
        turned = [
            Comparison(c.prompt_id, c.first_id, f"a{c.second_id}", c.rater, c.preferred)
            for c in said
        ]
        assert comparison_alpha(said) == pytest.approx(comparison_alpha(turned))
    always = [
        Comparison(f"p{n}", "0", "people", rater, "second") for n in range(9) for rater in "ab"
    ]
    assert comparison_alpha(always) == pytest.approx(1.0), "they do agree"


def test_a_survey_counts_candidates_and_names_what_nobody_saw():
    said = [choice("a", "b", "first"), choice("a", "b", "first", "bert"), choice("b", "c", "tie")]
    found = survey_comparisons(said, MEMBERS)
    assert (found.candidates, found.rated, found.rated_twice) == (5, 3, 2)
    assert found.raters == {"ann": 3, "bert": 2} and found.raters_per_candidate == 5 / 3
    assert "2 of 5 candidates were rated by nobody" in found.warnings


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_file_gives_back_what_was_written(tmp_path, suffix):
    said = [
        choice("0", "1", side, rater, "007") for side, rater in zip(CHOICES, "abc", strict=True)
    ]
    file = tmp_path / f"choices{suffix}"
    write_comparisons(file, said)
    assert holds_comparisons(file) and read_comparisons(file) == said


def test_grades_are_no_choices(tmp_path):
    write_ratings(tmp_path / "r.csv", [Rating("p", "a", "ann", 1, 2, 3, 4)])
    assert not holds_comparisons(tmp_path / "r.csv") and not holds_comparisons(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("p,a,a,ann,first", "line 2: candidate 'a' is compared with itself"),
        ("p,a,b,ann,left", "line 2: preferred is 'left', expected first, second, tie"),
        ("p,a,,ann,first", "line 2: second_id is ''"),
        ("p,a,b,ann,first\np,b,a,ann,tie", "line 3: rater 'ann' compared .* before"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    file = tmp_path / "choices.csv"
    file.write_text(f"prompt_id,first_id,second_id,rater,preferred\n{row}\n")
    with pytest.raises(RatingError, match=message):
        read_comparisons(file)
