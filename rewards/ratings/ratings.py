"""People's ratings of listener reactions: the table that annotators fill in, read and checked.

A row is one rater's opinion of one candidate, 1 to 5 on the four criteria of the VLA + DPO paper
(section III-D). An empty cell is a missing rating: it is not zero and not the middle of the scale.
"""

from __future__ import annotations

import csv
import json
import math
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rapport.files import atomic
from rapport.log import logger
from rapport.rewards.ratings.forms import Row, Videos, is_form, is_manifest, read_form
from rapport.rewards.ratings.sheets import SUFFIXES, SheetError, files_of, read_sheets
from rapport.wording import first_few

# The texts double as the instructions that raters read.
CRITERIA: dict[str, str] = {
    "empathy": (
        "The listener seems to feel with the speaker: the face follows what the speaker goes "
        "through, after a natural moment. 1 = untouched by it, 5 = clearly with the speaker."
    ),
    "appropriateness": (
        "The reaction fits what is said, in kind and in strength: no smile at bad news, no frown "
        "at a joke, no drama about small things. 1 = out of place, 5 = just what one would expect."
    ),
    "engagement": (
        "The listener is attentive: looks alive, nods or reacts at the right moments, is neither "
        "frozen nor fidgeting. 1 = absent, 5 = fully present."
    ),
    "naturalness": (
        "The face moves as people's faces move: smooth, at human speed, without jumps, trembling "
        "or impossible poses. 1 = broken, 5 = could be a person."
    ),
}
LOWEST, HIGHEST = 1, 5
DIGITS = 12  # to which scores and margins are rounded, so that equal ratings tie

IDENTITY = ("prompt_id", "candidate_id", "rater")
COLUMNS = IDENTITY + tuple(CRITERIA)
# What raters fill in; a manifest says which candidate a video shows.
SHEET_COLUMNS = ("video", "rater", *CRITERIA)
INSTRUCTIONS = "INSTRUCTIONS.md"  # lies beside the sheet that raters are given


class RatingError(ValueError):
    """A ratings file cannot be taken as it is; the message names the row and the way out."""


@dataclass(frozen=True)
class Rating:
    """One rater's opinion of one candidate.

    Each criterion is a number from 1 to 5, or None where it was not rated.

    Raises:
        RatingError: an empty id, or a value that is no number or is outside 1 to 5.
    """

    prompt_id: str
    candidate_id: str
    rater: str
    empathy: float | None = None
    appropriateness: float | None = None
    engagement: float | None = None
    naturalness: float | None = None

    def __post_init__(self) -> None:
        for name in IDENTITY:
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise RatingError(f"{name} is {value!r}, expected a text that is not empty")
        for name in CRITERIA:
            value = getattr(self, name)
            if value is None:
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not math.isfinite(value)
            ):
                raise RatingError(
                    f"{name} is {value!r}, not a number; leave it empty where it was not rated"
                )
            if not LOWEST <= value <= HIGHEST:
                raise RatingError(f"{name} is {value:g}, outside {LOWEST} to {HIGHEST}")


@dataclass(frozen=True)
class Remark:
    """Something in the sheets that was not read, or not as it is written.

    Args:
        what: is meant, without anybody's name: it may stand in a summary.
        names: files, columns or raters that it is about.
    """

    what: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.anonymous} ({first_few(self.names, most=12)})"

    @property
    def anonymous(self) -> str:
        """With a count for the names, which may be people's."""
        return f"{self.what}: {len(self.names)}"


def _warn(remark: Remark) -> None:
    logger.warning(f"WARNING: {remark}")


def read_ratings(
    path: str | Path, videos: Videos | None = None, say: Callable[[Remark], None] = _warn
) -> list[Rating]:
    """The ratings of a sheet or of a folder of sheets, in the order of the files and their rows.

    A file is a table of text (with commas, semicolons, tabs or bars; UTF-8, UTF-16, cp1252 or Mac
    Roman), an Excel workbook, JSON lines or Parquet; see `rapport.rewards.ratings.forms` for its
    columns. Of a folder, all files in it and its subfolders are read but hidden ones and those that
    are no sheets. The same name in another case is the same rater.

    Args:
        path: a file, or a folder.
        videos: what the videos of a sheet show, from the package's manifest.
        say: is told what was left out: files, columns, rows. None of it is a rating.

    Raises:
        RatingError: a file that cannot be read, columns or videos that are not known, a value that
            is no number or is outside 1 to 5, a rater who rated a candidate twice, no ratings at
            all. Names file and row.
    """
    path = Path(path)
    remarks: dict[str, list[str]] = defaultdict(list)
    ratings: dict[tuple[str, str, str], Rating] = {}
    places: dict[tuple[str, str, str], str] = {}
    spellings: dict[str, dict[str, None]] = defaultdict(dict)
    for file in _sheets_at(path, videos or {}, remarks):
        name = file.name if file == path else str(file.relative_to(path))
        for place, row in _rows(file, name, videos, remarks):
            try:
                rating = _rating(row, spellings)
            except RatingError as error:
                raise _refusal(file, place, error) from None
            key = (rating.prompt_id, rating.candidate_id, rating.rater)
            if key in ratings:
                raise RatingError(
                    f"{file}, {place}: rater {row['rater']!r} already rated candidate "
                    f"{rating.candidate_id!r} of prompt {rating.prompt_id!r} in {places[key]}; "
                    "keep one of the two, or tell apart two people of one name"
                )
            ratings[key] = rating
            places[key] = f"{name}, {place}"
    if not ratings:
        raise RatingError(
            f"{path}: no ratings in it; expected rows with the columns {', '.join(COLUMNS)}"
        )
    for written in spellings.values():
        if len(written) > 1:
            remarks["raters who wrote their name in several ways"].append(" = ".join(written))
    for what, names in remarks.items():
        say(Remark(what, tuple(dict.fromkeys(names))))
    return list(ratings.values())


def write_ratings(path: str | Path, ratings: Iterable[Rating]) -> None:
    """Write ratings in the format that the suffix names; `read_ratings` gives the same back.

    Raises:
        RatingError: an unknown suffix.
    """
    rows = [
        {field.name: getattr(rating, field.name) for field in fields(Rating)} for rating in ratings
    ]
    texts = [(name, pa.string()) for name in IDENTITY]
    numbers = [(name, pa.float64()) for name in CRITERIA]
    write_rows(path, rows, pa.schema(texts + numbers))


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write a table in the format that the suffix names; nothing is half written.

    Args:
        path: .csv, .jsonl or .parquet.
        rows: a value for each column of the schema.
        schema: names and types.

    Raises:
        RatingError: an unknown suffix.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".jsonl", ".parquet"):
        raise RatingError(f"{path}: expected .csv, .jsonl or .parquet")
    with atomic(path) as partial:
        if path.suffix == ".csv":
            with open(partial, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, schema.names)
                writer.writeheader()
                writer.writerows(rows)
        elif path.suffix == ".jsonl":
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), partial)


def _sheets_at(path: Path, videos: Videos, remarks: dict[str, list[str]]) -> Iterator[Path]:
    """The file, or the sheets of a folder."""
    if os.path.isfile(path):
        yield path
        return
    try:
        files = list(files_of(path)) if os.path.isdir(path) else []
    except SheetError as error:
        raise RatingError(str(error)) from None
    if not any(file.suffix.lower() in SUFFIXES for file in files):
        found = f"; it holds {', '.join(file.name for file in files[:5])}" if files else ""
        raise RatingError(f"{path}: no such ratings file, and no folder of them{found}")
    sheets = [file for file in files if file.suffix.lower() in SUFFIXES]
    # A video of several faces is called as they are, without their letters.
    handed_out = {*videos, *(name.rpartition("-")[0] for name in videos)}
    others = [
        str(file.relative_to(path))
        for file in files
        if file not in sheets
        and file.name != INSTRUCTIONS
        and not (file.suffix == ".mp4" and file.stem in handed_out)
    ]
    if len(others) > len(sheets):
        raise RatingError(
            f"{path}: {len(others)} files are no sheets ({first_few(others)}) beside "
            f"{len(sheets)} that are: save them as .csv or .xlsx, or take them out of the folder"
        )
    yield from sheets
    if others:
        remarks["files without a sheet's suffix, which were not read"] += others


def _rows(
    file: Path, name: str, videos: Videos | None, remarks: dict[str, list[str]]
) -> Iterator[tuple[str, Row]]:
    """Place and cells of every opinion in a file, which remarks call by `name`."""
    try:
        sheets = read_sheets(file)
        forms = [sheet for sheet in sheets if is_form(sheet, tuple(CRITERIA))]
        for sheet in sheets:
            if is_manifest(sheet):
                continue  # a package's own, which holds no ratings
            if forms and sheet not in forms:
                remarks["worksheets without ratings"].append(f"{sheet.name!r} of {name}")
                continue
            form = read_form(sheet, tuple(CRITERIA), videos)
            for column in form.other:
                remarks["other columns, which were not read"].append(column)
            for criterion in form.absent:
                remarks["criteria without a column"].append(f"{criterion} in {name}")
            if form.rater.strip().casefold() != "rater":
                remarks["columns taken as the rater"].append(f"{form.rater} in {name}")
            if form.unfilled:
                remarks["sheets with rows that nobody filled in"].append(
                    f"{name}: {form.unfilled} of {len(sheet.rows)}"
                )
            elif not form.rows:
                remarks["sheets without rows"].append(name)
            yield from form.rows
    except SheetError as error:
        raise _refusal(file, error.place, error) from None


def _refusal(file: Path, place: str | None, error: Exception) -> RatingError:
    """One line, however much of the file stands in the error."""
    why = " ".join(str(error).split())
    where = str(file) if place is None else f"{file}, {place}"
    return RatingError(f"{where}: {why if len(why) <= 500 else why[:500] + ' ...'}")


def _rating(row: Row, spellings: dict[str, dict[str, None]]) -> Rating:
    """A row's rating, by the rater's name as it was written first."""
    rating = Rating(**row)
    written = " ".join(rating.rater.split())
    names = spellings[unicodedata.normalize("NFC", written).casefold()]
    names[written] = None
    first = next(iter(names))
    return rating if rating.rater == first else replace(rating, rater=first)
