"""The rating package: names that tell nothing, a sheet that finds its way back to candidates."""

import csv
from types import SimpleNamespace

import pytest

from rapport.pipeline.data.rating_package import (
    HAND_OUT,
    neutral_names,
    read_manifest,
    write_package,
)
from rapport.pipeline.rundir import RunError
from rapport.pipeline.steps.sampling import whole_groups
from rapport.rewards.ratings.ratings import CRITERIA, RatingError, read_ratings

GROUPS = {f"clip-{i}": ["0", "1", "2", "recorded"] for i in range(30)}


@pytest.fixture
def package(tmp_path):
    """Folder and names of a package of three groups."""
    names = neutral_names(dict(list(GROUPS.items())[:3]), seed=0)
    write_package(tmp_path, names)
    return tmp_path, names


def test_names_say_which_belong_together_and_nothing_else():
    names = neutral_names(GROUPS, seed=0)
    assert len(names) == 120 and sorted(names.values()) == sorted(
        (p, c) for p, g in GROUPS.items() for c in g
    )
    by_number = {}
    for name, (prompt, _) in names.items():
        by_number.setdefault(name.split("-")[0], set()).add(prompt)
    assert all(len(prompts) == 1 for prompts in by_number.values())
    letters = [
        name.split("-")[1] for name, (_, candidate) in names.items() if candidate == "recorded"
    ]
    assert set(letters) == set("abcd"), "the recording is not always the same letter"
    assert [p for p, _ in names.values()][::4] != sorted(GROUPS), "nor do numbers follow the clips"
    assert neutral_names(GROUPS, seed=0) == names != neutral_names(GROUPS, seed=1)


def test_letters_go_on_after_z():
    names = neutral_names({"p": [str(i) for i in range(30)]}, seed=0)
    assert {"0001-a", "0001-z", "0001-aa", "0001-ad"} <= set(names) and len(names) == 30


def test_what_is_handed_out_does_not_tell_samples_from_recordings(package):
    folder, names = package
    text = "".join(file.read_text() for file in (folder / HAND_OUT).iterdir() if file.is_file())
    assert (
        "recorded" not in text
        and "clip-" not in text
        and all(meaning in text for meaning in CRITERIA.values())
    )
    assert read_manifest(folder / "manifest.csv") == names


def test_a_filled_sheet_finds_its_candidates(package):
    folder, names = package
    with (folder / HAND_OUT / "sheet.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == list(names)
    for row, grade in zip(rows[:5], (1, 2, 3, 4, 5), strict=True):
        row |= {"rater": "anna", "empathy": grade}
    rows[1]["video"] += ".mp4"  # as people write it
    sheet = folder / "anna.csv"
    with sheet.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    ratings = read_ratings(sheet, read_manifest(folder / "manifest.csv"))
    assert [(r.prompt_id, r.candidate_id) for r in ratings] == list(names.values())[:5], (
        "blank rows are left out"
    )
    assert [r.empathy for r in ratings] == [1, 2, 3, 4, 5] and ratings[0].naturalness is None
    with pytest.raises(RatingError, match="needs the manifest"):
        read_ratings(sheet)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0009-a,anna,1,1,1,1", "video '0009-a' is not in the package's manifest"),
        ("0001-a,,1,1,1,1", "rater is ''"),
        ("0001-a,anna,6,1,1,1", "empathy is 6, outside 1 to 5"),
        ("0001-a,anna,good,1,1,1", "empathy is 'good', not a number"),
    ],
)
def test_bad_rows_of_a_sheet_are_named(package, row, message):
    folder, names = package
    sheet = folder / "filled.csv"
    sheet.write_text("video,rater,empathy,appropriateness,engagement,naturalness\n" + row + "\n")
    with pytest.raises(RatingError, match=f"filled.csv, line 2: .*{message}"):
        read_ratings(sheet, names)


def test_a_folder_of_sheets_is_all_of_them_and_a_rating_given_twice_names_both(package):
    folder, names = package
    sheets = folder / "sheets"
    sheets.mkdir()
    with pytest.raises(RatingError, match="no such ratings file"):
        read_ratings(sheets, names)
    for rater in ("anna", "bert"):
        (sheets / f"{rater}.csv").write_text(f"video,rater,empathy\n0001-a,{rater},3\n")
    assert [r.rater for r in read_ratings(sheets, names)] == ["anna", "bert"]
    (sheets / "copy.csv").write_text("video,rater,empathy\n0001-a,anna,3\n")
    with pytest.raises(RatingError, match="already rated.*anna.csv, line 2"):
        read_ratings(sheets, names)


def test_a_manifest_that_is_none_is_refused(tmp_path):
    with pytest.raises(RatingError, match="no manifest"):
        read_manifest(tmp_path / "manifest.csv")
    (tmp_path / "manifest.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RatingError, match="expected video, prompt_id, candidate_id"):
        read_manifest(tmp_path / "manifest.csv")


def test_groups_are_rated_as_a_whole():
    groups = {name: [SimpleNamespace()] * 4 for name in "abc"}
    assert list(whole_groups(groups, 11)) == ["a", "b"] and list(whole_groups(groups, 12)) == [
        "a",
        "b",
        "c",
    ]
    with pytest.raises(RunError, match="render.videos=3 is less than one group of 4"):
        whole_groups(groups, 3)
