"""People's ratings of listener reactions: the table that annotators fill in, read and checked.

A row is one rater's opinion of one candidate, 1 to 5 on the four criteria of the VLA + DPO paper
(section III-D). An empty cell is a missing rating: it is not zero and not the middle of the scale.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rapport.files import atomic

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

IDENTITY = ("prompt_id", "candidate_id", "rater")
COLUMNS = IDENTITY + tuple(CRITERIA)
# What raters fill in; a manifest says which candidate a video shows.
SHEET_COLUMNS = ("video", "rater", *CRITERIA)

Videos = Mapping[str, tuple[str, str]]  # neutral name -> prompt id, candidate id
Row = dict[str, Any]  # column -> cell


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


def read_ratings(path: str | Path, videos: Videos | None = None) -> list[Rating]:
    """Ratings of a `.csv`, `.jsonl` or `.parquet` file, in the file's order.

    Columns: prompt_id, candidate_id (or, in a sheet of a rating package, video), rater, and the
    criteria of `CRITERIA`; a criterion column may be left out when nobody rated it. Rows of a sheet
    that nobody filled in are left out.

    Args:
        path: a file, or a folder, whose files are all read.
        videos: what the videos of a sheet show, from the package's manifest.

    Raises:
        RatingError: unknown columns or videos, a value that is no number or is outside 1 to 5, a
            rater who rated a candidate twice, a file without ratings. Names file and row.
    """
    path = Path(path)
    files = sorted(f for f in path.iterdir() if f.suffix in _READERS) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise RatingError(f"{path}: no such ratings file, and no folder of them")
    if path.suffix not in _READERS and not path.is_dir():
        raise RatingError(f"{path}: expected one of {', '.join(_READERS)}")

    ratings: list[Rating] = []
    places: dict[tuple[str, str, str], str] = {}
    for file in files:
        for place, row in _READERS[file.suffix](file):
            if _is_blank(row):
                continue
            try:
                rating = _to_rating(row, videos)
            except RatingError as error:
                raise RatingError(f"{file}, {place}: {error}") from None
            key = (rating.prompt_id, rating.candidate_id, rating.rater)
            if key in places:
                raise RatingError(
                    f"{file}, {place}: rater {rating.rater!r} already rated candidate "
                    f"{rating.candidate_id!r} of prompt {rating.prompt_id!r} in {places[key]}; "
                    "keep one of the two"
                )
            places[key] = f"{file.name}, {place}"
            ratings.append(rating)
    if not ratings:
        raise RatingError(
            f"{path}: no ratings in it; expected rows with the columns {', '.join(COLUMNS)}"
        )
    return ratings


def write_ratings(path: str | Path, ratings: Iterable[Rating]) -> None:
    """Write ratings in the format that the suffix names; `read_ratings` gives the same back.

    Raises:
        RatingError: an unknown suffix.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise RatingError(f"{path}: expected .csv, .jsonl or .parquet")
    rows = [
        {field.name: getattr(rating, field.name) for field in fields(Rating)} for rating in ratings
    ]
    with atomic(path) as partial:
        if path.suffix == ".csv":
            with open(partial, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
        elif path.suffix == ".jsonl":
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            texts = [(name, pa.string()) for name in IDENTITY]
            numbers = [(name, pa.float64()) for name in CRITERIA]
            schema = pa.schema(texts + numbers)
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial)


def _is_blank(row: Row) -> bool:
    """Whether this is a row of a sheet as it was handed out."""
    return (
        "video" in row and not row.get("rater") and all(row.get(name) is None for name in CRITERIA)
    )


def _to_rating(row: Row, videos: Videos | None) -> Rating:
    unknown = [name for name in row if name not in COLUMNS + SHEET_COLUMNS]
    if unknown:
        raise RatingError(f"unknown columns {unknown}, expected {', '.join(COLUMNS)}")
    if "video" in row:
        if videos is None:
            raise RatingError(
                "a sheet of videos needs the manifest of its rating package (candidates=RUN_DIR)"
            )
        video = str(row["video"]).removesuffix(".mp4")
        if video not in videos:
            raise RatingError(
                f"video {video!r} is not in the package's manifest; is this the sheet of another "
                "run?"
            )
        row = row | dict(zip(("prompt_id", "candidate_id"), videos[video], strict=True))
    cells: Row = {name: _identifier(row.get(name)) for name in IDENTITY}
    cells |= {name: row.get(name) for name in CRITERIA}
    return Rating(**cells)


def _identifier(value: Any) -> Any:
    """An id as text where JSON or Parquet have it as a whole number; `Rating` checks the rest."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _csv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    # "utf-8-sig": spreadsheets put a byte-order mark in front.
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        _check_columns(path, columns)
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row or None in row.values():
                raise RatingError(
                    f"{path}, {place}: not the {len(columns)} cells of the first line"
                )
            yield place, {k: _cell(v) if k in CRITERIA else v.strip() for k, v in row.items()}


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise RatingError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise RatingError(
                    f"{path}, line {number}: expected an object, got {type(row).__name__}"
                )
            yield f"line {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise RatingError(f"{path}: not a Parquet file ({error})") from None
    _check_columns(path, table.column_names)
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"row {number}", row


def _check_columns(path: Path, names: Sequence[str]) -> None:
    columns: Sequence[str] = COLUMNS
    identity: Sequence[str] = IDENTITY
    if "video" in names:
        columns = SHEET_COLUMNS
        identity = ("video", "rater")
    unknown = [name for name in names if name not in columns]
    absent = [name for name in identity if name not in names]
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if unknown or absent or repeated:
        raise RatingError(
            f"{path}: columns {list(names)}; unknown {unknown}, absent {absent}, repeated "
            f"{repeated}; expected {', '.join(columns)}"
        )


def _cell(text: str) -> float | str | None:
    """A CSV cell; empty is missing, and what is no number stays text, which `Rating` refuses."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    ".csv": _csv_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
}
