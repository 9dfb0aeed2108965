"""From ratings to pairs: what is written, counted and said, and when there are too few."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapport.pipeline.data.candidates import COLUMNS
from rapport.pipeline.data.rating_package import write_package
from rapport.pipeline.rundir import Phase, RunError
from rapport.pipeline.settings import DpoOfVla
from rapport.pipeline.steps.preferences import (
    check_ratings,
    keep_ratings,
    pairs_of,
    peoples_ratings,
    require_batch,
    sheets_of,
)
from rapport.rewards.ratings.ratings import Rating, RatingError, read_ratings, write_ratings
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
    pairs, scores, counts = pairs_of(
        phase, RATINGS, MEMBERS, ScoreConfig(), recorded={("p", "a"), ("q", "a")}
    )
    assert scores["q"] == {"a": 0.0, "b": 1.0, "c": 0.5}
    assert {p.prompt_id: (p.chosen_id, p.margin) for p in pairs} == {
        "q": ("b", 1.0),
        "p": ("a", 0.5),
    }
    assert (counts["groups"], counts["pairs"], counts["all_tied"]) == (3, 2, 1)
    assert phase.logger.logged == [{"rated_pairs": 2, "ground_truth_chosen": 0.5}]
    assert (
        "2 rated pairs, mean margin 0.750, recorded listener chosen in 50%"
        in capsys.readouterr().out
    )


def test_fewer_pairs_than_a_batch_are_an_error_that_says_why(phase):
    _, _, counts = pairs_of(phase, RATINGS, MEMBERS, ScoreConfig(), recorded=set())
    require_batch(counts, 2)
    with pytest.raises(
        RunError, match=r"2 pairs are fewer than one batch \(dpo.batch_size=4\): .*'all_tied': 1"
    ):
        require_batch(counts, 4)


def test_ratings_are_kept_in_order(phase):
    kept = keep_ratings(phase, RATINGS, "one SIMULATED rater")
    assert kept.engines == {"raters": "one SIMULATED rater"}
    found = read_ratings(kept.artifacts["ratings"])
    assert found == sorted(RATINGS, key=lambda r: (r.prompt_id, r.candidate_id))


VIDEOS = {"0001-a": ("p", "a"), "0001-b": ("p", "b"), "0002-a": ("q", "a"), "0002-b": ("q", "b")}


@pytest.fixture
def rollout(tmp_path):
    """Folder of a `rollout` run whose candidates were handed out, and a folder for sheets."""
    folder = tmp_path / "rollout"
    folder.mkdir()
    write_package(folder, VIDEOS)
    ids = dict(zip(("prompt_id", "candidate_id"), zip(*VIDEOS.values(), strict=True), strict=True))
    rest = {name: pa.nulls(len(VIDEOS)) for name in COLUMNS if name not in ids}
    pq.write_table(pa.table({name: (ids | rest)[name] for name in COLUMNS}), folder / "c.parquet")
    artifacts = {"manifest": folder / "manifest.csv", "candidates": folder / "c.parquet"}
    texts = {name: str(path) for name, path in artifacts.items()}
    (folder / "summary.json").write_text(json.dumps({"artifacts": texts}))
    (tmp_path / "sheets").mkdir()
    return DpoOfVla(candidates=folder, ratings=tmp_path / "sheets")


def sheet(config, name, text):
    (config.ratings / name).write_text(text)


def test_sheets_are_checked_before_anything_starts(rollout, capsys):
    sheet(rollout, "annaliese.csv", "video;Rater;empathy;notes\n0001-a;Annaliese;4,5;nice\n")
    check_ratings(rollout)
    told = capsys.readouterr().out
    assert "sheets: other columns, which were not read: 1 (notes)" in told
    assert "criteria without a column: 3 (appropriateness in annaliese.csv, " in told
    sheet(rollout, "bert.csv", "video,rater,empathy\n0001-a,Bert,7\n")
    with pytest.raises(RatingError, match="bert.csv, line 2: empathy is 7, outside 1 to 5"):
        check_ratings(rollout)


def test_the_folder_of_a_rate_run_is_what_it_left(rollout):
    asked = rollout.ratings
    ratings = [Rating("p", candidate, "Ann", 3, 3, 3, 3) for candidate in "ab"]
    for suffix in ("csv", "parquet"):
        write_ratings(asked / f"ratings.{suffix}", ratings)
    left = {"artifacts": {"ratings": "ratings.parquet", "ratings_csv": "ratings.csv"}}
    (asked / "summary.json").write_text(json.dumps(left))
    assert sheets_of(rollout) == asked / "ratings.parquet"
    check_ratings(rollout)


def test_a_rating_of_no_candidate_is_found_before_anything_starts(rollout):
    # A spreadsheet takes the zeros from an id of digits, 007.
    sheet(rollout, "a.csv", "prompt_id,candidate_id,rater,empathy\n7,a,Ann,4\n")
    with pytest.raises(RatingError, match="candidate 'a' of prompt '7', which does not exist"):
        check_ratings(rollout)


def test_without_a_run_of_candidates_or_without_sheets_there_is_nothing_to_compare(rollout):
    check_ratings(DpoOfVla())
    (rollout.candidates / "summary.json").unlink()
    with pytest.raises(RunError, match="no summary.json there"):
        check_ratings(rollout)


def test_what_was_left_out_stands_in_the_summary_without_names(rollout, phase, capsys):
    sheet(rollout, "annaliese.csv", "video,rater,empathy\n0001-a,Annaliese,4\n0001-b,annaliese,2\n")
    sheet(rollout, "bert.docx", "")
    members = {"p": ["a", "b"], "q": ["a", "b"]}
    ratings, described = peoples_ratings(phase, rollout, members)
    assert {rating.rater for rating in ratings} == {"rater-1"}
    assert described["warnings"][:4] == [
        "criteria without a column: 3",
        "files without a sheet's suffix, which were not read: 1",
        "raters who wrote their name in several ways: 1",
        "2 of 4 candidates were rated by nobody",
    ]
    told = capsys.readouterr().out + json.dumps(described)
    assert "WARNING: files without a sheet's suffix" in told
    assert "nnaliese" not in told and "bert" not in told
