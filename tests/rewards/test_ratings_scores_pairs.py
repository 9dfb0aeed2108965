"""Ratings in, scores by Eq. 10, pairs out."""

import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapport.rewards.ratings.pairs import make_pairs
from rapport.rewards.ratings.ratings import (
    CRITERIA,
    Rating,
    RatingError,
    read_ratings,
    write_ratings,
)
from rapport.rewards.ratings.scores import (
    ScoreConfig,
    check_weights,
    overall,
    score_candidates,
    to_unit_interval,
)

HEADER = "prompt_id,candidate_id,rater,empathy,appropriateness,engagement,naturalness\n"
ROWS = [
    Rating("p1", "a", "ann", 5, 4, 3, 2),
    Rating("p1", "a", "ben", 4, None, 3, 2.5),
    Rating("p1", "b", "ann", None, None, None, None),
    Rating("p2", "a", "ann", 1, 1, 1, 1),
]


def rated(prompt, candidate, rater, *values):
    return Rating(prompt, candidate, rater, *values)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_ratings_survive_the_file(tmp_path, suffix):
    path = tmp_path / f"ratings.{suffix}"
    write_ratings(path, ROWS)
    assert read_ratings(path) == ROWS
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_csv_from_a_spreadsheet(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text(
        "\ufeffrater,prompt_id,candidate_id,empathy\nann,p,c,4\nben,p,c, \n", encoding="utf-8"
    )
    assert read_ratings(path) == [Rating("p", "c", "ann", 4), Rating("p", "c", "ben")]


def test_numeric_ids_of_json_are_texts(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"prompt_id": 7, "candidate_id": 0, "rater": 3, "naturalness": 2}\n')
    assert read_ratings(path) == [Rating("7", "0", "3", naturalness=2)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("p,c,ann,6,1,1,1", "line 3.*empathy is 6, outside 1 to 5"),
        ("p,c,ann,1,0,1,1", "line 3.*appropriateness is 0, outside"),
        ("p,c,ann,1,1,good,1", "line 3.*engagement is 'good', not a number"),
        ("p,c,ann,1,1,1,nan", "line 3.*naturalness is 'nan', not a number"),
        ("p,c,,1,1,1,1", "line 3.*rater is ''"),
        ("p,c,ann,1,1,1", "line 3.*cells"),
        ("p,c,ann,1,1,1,1,1", "line 3.*cells"),
        ("p0,c0,r0,2,2,2,2", "line 3.*already rated candidate 'c0'.*line 2"),
    ],
)
def test_bad_csv_rows_are_named(tmp_path, line, message):
    path = tmp_path / "bad.csv"
    path.write_text(HEADER + "p0,c0,r0,1,2,3,4\n" + line + "\n")
    with pytest.raises(RatingError, match="bad.csv.*" + message):
        read_ratings(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", "", "no ratings"),
        ("r.csv", HEADER, "no ratings"),
        ("r.csv", "prompt_id,candidate_id,rater,empathie\np,c,r,1\n", "unknown .*empathie"),
        ("r.csv", "prompt_id,rater\np,r\n", "absent: .*candidate_id"),
        (
            "r.csv",
            "prompt_id,candidate_id,rater,empathy,empathy\np,c,r,1,1\n",
            "repeated .*empathy",
        ),
        ("r.jsonl", '{"prompt_id": "p"', "line 1.*not JSON"),
        ("r.jsonl", "[1]\n", "line 1.*object"),
        (
            "r.jsonl",
            '{"prompt_id":"p","candidate_id":"c","rater":"r","score":1}\n',
            "no column of empathy.*score",
        ),
        (
            "r.jsonl",
            '{"prompt_id":"p","candidate_id":"c","rater":"r","empathy":true}\n',
            "line 1.*not a number",
        ),
        (
            "r.jsonl",
            '{"prompt_id":"p","candidate_id":"c","rater":"r","empathy":"four"}\n',
            "line 1.*'four', not a number",
        ),
        ("r.jsonl", "\n", "no ratings"),
        ("r.parquet", "PAR1 and no more", "not a Parquet"),
        ("r.parquet", "not parquet", "the columns are .'not parquet'"),
        ("r.xlsx", "", "no ratings"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(RatingError, match=message):
        read_ratings(path)


def test_missing_file_and_parquet_rows_are_named(tmp_path):
    with pytest.raises(RatingError, match="no such"):
        read_ratings(tmp_path / "nothing.csv")
    path = tmp_path / "r.parquet"
    columns = {
        "prompt_id": ["p", "p"],
        "candidate_id": ["a", "b"],
        "rater": ["r", "r"],
        "empathy": [1.0, 9.0],
    }
    pq.write_table(pa.table(columns), path)
    with pytest.raises(RatingError, match="row 2: empathy is 9"):
        read_ratings(path)


def test_equation_10_by_hand():
    weights = {"empathy": 0.4, "appropriateness": 0.3, "engagement": 0.2, "naturalness": 0.1}
    ratings = [
        rated("p", "a", "x", 5, 4, 3, 2),
        rated("p", "a", "y", 3, 2, None, 1),
        rated("p", "b", "x", 1, 1, 1, 1),
    ]
    scores, counts = score_candidates(ratings, weights)
    # means: empathy 4 -> .75, appropriateness 3 -> .5, engagement 3 -> .5 (one rater), naturalness
    # 1.5 -> .125
    assert scores == {"p": {"a": pytest.approx(0.3 + 0.15 + 0.1 + 0.0125), "b": 0.0}}
    assert (counts.ratings, counts.prompts, counts.candidates) == (3, 1, 2)
    assert (
        counts.unrated_candidates,
        counts.renormalised_prompts,
        counts.incomparable_prompts,
    ) == (0, 0, 0)


def test_one_rating_alone_by_hand():
    weights = {"empathy": 0.6, "appropriateness": 0.2, "engagement": 0.2, "naturalness": 0.0}
    assert overall(Rating("p", "c", "r", 5.0, 3.0, 1.0, 2.0), weights) == pytest.approx(3.8)
    assert overall(Rating("p", "c", "r", None, 3.0, 1.0, 2.0), weights) == pytest.approx(2.0)
    assert overall(Rating("p", "c", "r", None, None, None, 2.0), weights) is None


def test_missing_is_not_zero():
    ratings = [rated("p", "a", "x", 5, 5, 5, 5), rated("p", "a", "y"), rated("p", "b", "y")]
    scores, counts = score_candidates(ratings)
    assert scores == {"p": {"a": 1.0, "b": None}}
    assert counts.unrated_candidates == 1


def test_a_group_is_compared_on_what_all_its_members_have():
    ratings = [rated("p", "a", "x", 5, 1, 5, 1), rated("p", "b", "x", 3, None, 1, None)]
    weights = {"empathy": 0.3, "appropriateness": 0.3, "engagement": 0.1, "naturalness": 0.3}
    scores, counts = score_candidates(ratings, weights)
    # only empathy and engagement count, at 3/4 and 1/4: a's bad appropriateness must not weigh
    # against b
    assert scores["p"] == {"a": 1.0, "b": pytest.approx(0.75 * 0.5)}
    assert counts.renormalised_prompts == 1


def test_a_group_without_a_shared_criterion_is_not_scored():
    scores, counts = score_candidates([rated("p", "a", "x", 5), rated("p", "b", "x", None, 5)])
    assert scores == {"p": {"a": None, "b": None}}
    assert (counts.incomparable_prompts, counts.unrated_candidates) == (1, 0)


def test_candidates_that_exist_but_were_not_rated():
    ratings = [rated("p", "a", "x", 1, 1, 1, 1)]
    scores, counts = score_candidates(ratings, candidates={"p": ["a", "b"], "q": ["a"]})
    assert scores == {"p": {"a": 0.0, "b": None}, "q": {"a": None}}
    assert counts.unrated_candidates == 2
    with pytest.raises(RatingError, match="'a' of prompt 'p', which does not exist"):
        score_candidates(ratings, candidates={"p": ["b"]})


@pytest.mark.parametrize(
    "weights",
    [
        {"empathy": 0.9},
        {"empathy": 1.5, "naturalness": -0.5},
        {"charm": 1.0},
        {"empathy": math.nan},
        {},
    ],
)
def test_bad_weights(weights):
    with pytest.raises(ValueError, match="score weights"):
        check_weights(weights)


grade = st.none() | st.integers(1, 5)
rows = st.lists(
    st.tuples(
        st.sampled_from("pq"),
        st.sampled_from("abcd"),
        st.sampled_from("xyz"),
        grade,
        grade,
        grade,
        grade,
    ),
    min_size=1,
    unique_by=lambda row: row[:3],
).map(lambda drawn: [Rating(*row) for row in drawn])


@settings(deadline=None, max_examples=60)
@given(rows, st.randoms(use_true_random=False))
def test_order_of_candidates_and_raters_does_not_matter(ratings, random_: random.Random):
    shuffled = list(ratings)
    random_.shuffle(shuffled)
    assert score_candidates(shuffled) == score_candidates(ratings)
    assert make_pairs(score_candidates(shuffled)[0]) == make_pairs(score_candidates(ratings)[0])


@settings(deadline=None, max_examples=60)
@given(rows)
def test_scores_lie_in_the_unit_interval_and_groups_add_up(ratings):
    scores, _ = score_candidates(ratings)
    assert all(s is None or 0 <= s <= 1 for group in scores.values() for s in group.values())
    pairs, n = make_pairs(scores)
    assert n.groups == n.pairs + n.unscored + n.single_member + n.all_tied + n.below_margin
    assert n.pairs == len(pairs) and all(pair.margin > 0 for pair in pairs)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.integers(1, 4)] * 4), min_size=2, max_size=6))
def test_a_more_lenient_rater_changes_no_pair(grades):
    def pairs(shift):
        group = [
            Rating("p", str(i), "x", *(g + shift for g in row)) for i, row in enumerate(grades)
        ]
        return [(p.chosen_id, p.rejected_id) for p in make_pairs(score_candidates(group)[0])[0]]

    assert pairs(0) == pairs(1)


def test_best_against_worst():
    (pair,), counts = make_pairs({"p": {"a": 0.2, "truth": 0.9, "c": None, "d": 0.5}})
    assert (pair.prompt_id, pair.chosen_id, pair.rejected_id) == ("p", "truth", "a")
    assert (pair.chosen_score, pair.rejected_score, pair.margin) == (0.9, 0.2, pytest.approx(0.7))
    assert (counts.pairs, counts.unscored_candidates, counts.ties_broken) == (1, 1, 0)


def test_groups_that_give_no_pair_are_counted():
    scores = {
        "single": {"a": 0.3, "b": None},
        "empty": {"a": None},
        "tied": {"a": 0.3, "b": 0.3, "c": 0.3},
        "close": {"a": 0.3, "b": 0.35},
        "clear": {"a": 0.3, "b": 0.5},
    }
    pairs, n = make_pairs(scores, minimum_margin=0.1)
    assert [p.prompt_id for p in pairs] == ["clear"]
    assert (n.groups, n.single_member, n.unscored, n.all_tied, n.below_margin) == (5, 1, 1, 1, 1)
    assert n.unscored_candidates == 2
    with pytest.raises(ValueError, match="minimum_margin"):
        make_pairs(scores, minimum_margin=2)


def test_shared_best_scores_favour_no_name():
    scores = {str(i): {"ground_truth": 1.0, "sample_0": 1.0, "sample_1": 0.0} for i in range(200)}
    pairs, n = make_pairs(scores)
    chosen = sum(p.chosen_id == "ground_truth" for p in pairs)
    assert n.ties_broken == n.pairs == 200
    assert 70 < chosen < 130
    turned = {p: dict(reversed(group.items())) for p, group in scores.items()}
    assert make_pairs(turned)[0] == pairs


def test_unit_interval_and_default_weights():
    assert [to_unit_interval(r) for r in (1, 2, 3, 4, 5)] == [0, 0.25, 0.5, 0.75, 1]
    weights = ScoreConfig().weights
    assert list(CRITERIA) == list(weights) and sum(weights.values()) == 1


def test_weights_of_a_config_sum_to_one():
    with pytest.raises(ValueError, match="the four weights must sum to 1, they sum to 1.25"):
        ScoreConfig(empathy=0.5)


def test_a_pair_at_the_margin_is_one():
    pairs, counts = make_pairs({"p": {"a": 0.85, "b": 0.75}}, minimum_margin=0.1)
    assert len(pairs) == 1 and counts.below_margin == 0
