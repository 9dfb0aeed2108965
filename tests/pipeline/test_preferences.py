"""From ratings to pairs: what is written, counted and said, and when there are too few."""

from types import SimpleNamespace

import pytest

from rapport.pipeline.rundir import Phase, RunError
from rapport.pipeline.steps.preferences import keep_ratings, pairs_of
from rapport.rewards.ratings.ratings import Rating, read_ratings
from rapport.rewards.ratings.scores import ScoreConfig

GRADES = {"q": {"a": 1, "b": 5, "c": 3}, "p": {"a": 4, "b": 2, "c": 2}, "tied": {"a": 3, "b": 3}}
RATINGS = [
    Rating(prompt, candidate, "r", grade, grade, grade, grade)
    for prompt, grades in GRADES.items()
    for candidate, grade in grades.items()
]
MEMBERS = {prompt: list(grades) for prompt, grades in GRADES.items()}


@pytest.fixture
def phase(tmp_path):
    logged = []
    return Phase("pair", "pair", tmp_path, SimpleNamespace(log=logged.append, logged=logged))


def test_best_and_worst_of_a_group_make_a_pair(phase, capsys):
    pairs, counts = pairs_of(
        phase, RATINGS, MEMBERS, ScoreConfig(), batch_size=2, recorded={("p", "a"), ("q", "a")}
    )
    assert {p.prompt_id: (p.chosen_id, p.margin) for p in pairs} == {
        "q": ("b", 1.0),
        "p": ("a", 0.5),
    }
    assert (counts["groups"], counts["pairs"], counts["all_tied"]) == (3, 2, 1)
    assert phase.logger.logged == [{"pairs": 2, "ground_truth_chosen": 0.5}]
    assert "2 pairs, mean margin 0.750, recorded listener chosen in 50%" in capsys.readouterr().out


def test_fewer_pairs_than_a_batch_are_an_error_that_says_why(phase):
    with pytest.raises(
        RunError, match=r"2 pairs are fewer than one batch \(dpo.batch_size=4\): .*'all_tied': 1"
    ):
        pairs_of(phase, RATINGS, MEMBERS, ScoreConfig(), batch_size=4, recorded=set())


def test_ratings_are_kept_in_order(phase):
    kept = keep_ratings(phase, RATINGS, "one SIMULATED rater")
    assert kept.engines == {"raters": "one SIMULATED rater"}
    found = read_ratings(kept.artifacts["ratings"])
    assert found == sorted(RATINGS, key=lambda r: (r.prompt_id, r.candidate_id))
