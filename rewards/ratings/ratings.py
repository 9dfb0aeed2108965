"""People's ratings of listener reactions: the table that annotators fill in, read and checked.

A row is one rater's opinion of one candidate, 1 to 5 on the four criteria of the VLA + DPO paper
(section III-D). An empty cell is a missing rating: it is not zero and not the middle of the scale.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# The texts double as the instructions that raters read.
CRITERIA: dict[str, str] = {
    "empathy": "The listener seems to feel with the speaker: the face follows what the speaker goes through, "
    "after a natural moment. 1 = untouched by it, 5 = clearly with the speaker.",
    "appropriateness": "The reaction fits what is said, in kind and in strength: no smile at bad news, no frown at a "
    "joke, no drama about small things. 1 = out of place, 5 = just what one would expect.",
    "engagement": "The listener is attentive: looks alive, nods or reacts at the right moments, is neither frozen nor "
    "fidgeting. 1 = absent, 5 = fully present.",
    "naturalness": "The face moves as people's faces move: smooth, at human speed, without jumps, trembling or "
    "impossible poses. 1 = broken, 5 = could be a person.",
}
LOWEST, HIGHEST = 1, 5

IDENTITY = ("prompt_id", "candidate_id", "rater")
COLUMNS = IDENTITY + tuple(CRITERIA)
SHEET_COLUMNS = (
    "video",
    "rater",
    *CRITERIA,
)  # what raters fill in; a manifest says which candidate a video shows

Videos = Mapping[str, tuple[str, str]]  # neutral name -> prompt id, candidate id


class RatingError(ValueError):
    """A ratings file cannot be taken as it is; the message names the row and the way out."""


@dataclass(frozen=True)
class Rating:
    """One rater's opinion of one candidate; each criterion from 1 to 5, or None where it was not
    rated.
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
    """Ratings of a `.csv`, `.jsonl` or `.parquet` file, in the file's order; of a folder, those of
    all files in it.

    Columns: prompt_id, candidate_id (or, in a sheet of a rating package, video), rater, and the
    criteria of `CRITERIA`; a criterion column may be left out when nobody rated it. Rows of a sheet
    that nobody filled in are left out. Raises `RatingError`, naming file and row, on unknown
    columns or videos, on a value that is no number or is outside 1 to 5, on a rater who rated a
    candidate twice, and on a file without ratings.

    Args:
        videos: what the videos of a sheet show, from the package's manifest.
    """
    path = Path(path)
    files = sorted(f for f in path.iterdir() if f.suffix in _READERS) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise RatingError(f"{path}: no such ratings file, and no folder of them")
    if path.suffix not in _READERS and not path.is_dir():
        raise RatingError(f"{path}: expected one of {', '.join(_READERS)}")

    ratings: list[Rating] = []
    seen: dict[tuple[str, str, str], str] = {}
    rows = ((file, place, row) for file in files for place, row in _READERS[file.suffix](file))
    for path, place, row in rows:
        if _is_blank(row):
            continue
        try:
            rating = _to_rating(row, videos)
        except RatingError as error:
            raise RatingError(f"{path}, {place}: {error}") from None
        key = (rating.prompt_id, rating.candidate_id, rating.rater)
        if key in seen:
            raise RatingError(
                f"{path}, {place}: rater {rating.rater!r} already rated candidate "
                f"{rating.candidate_id!r} of prompt "
                f"{rating.prompt_id!r} in {seen[key]}; keep one of the two"
            )
        seen[key] = f"{path.name}, {place}"
        ratings.append(rating)
    if not ratings:
        raise RatingError(
            f"{path}: no ratings in it; expected rows with the columns {', '.join(COLUMNS)}"
        )
    return ratings


def write_ratings(path: str | Path, ratings: Iterable[Rating]) -> None:
    """Write ratings in the format that the suffix names, so that `read_ratings` gives the same
    back.
    """
    path = Path(path)
    rows = [
        {field.name: getattr(rating, field.name) for field in fields(Rating)} for rating in ratings
    ]
    partial = path.with_name(path.name + ".partial")
    if path.suffix == ".csv":
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        types = [(name, pa.string()) for name in IDENTITY] + [
            (name, pa.float64()) for name in CRITERIA
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(types)), partial)
    else:
        raise RatingError(f"{path}: expected .csv, .jsonl or .parquet")
    os.replace(partial, path)


def _is_blank(row: dict[str, Any]) -> bool:
    """A row of the sheet as it was handed out."""
    return (
        "video" in row and not row.get("rater") and all(row.get(name) is None for name in CRITERIA)
    )


def _to_rating(row: dict[str, Any], videos: Videos | None) -> Rating:
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
    identity = {name: _identifier(row.get(name)) for name in IDENTITY}
    return Rating(**identity, **{name: row.get(name) for name in CRITERIA})


def _identifier(value: Any) -> Any:
    """Ids written as whole numbers (JSON, Parquet) are taken as text; anything else is checked by
    `Rating`.
    """
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(
        path, newline="", encoding="utf-8-sig"
    ) as file:  # spreadsheets put a byte-order mark in front
        reader = csv.DictReader(file)
        _check_columns(path, reader.fieldnames or [])
        for row in reader:
            place = f"line {reader.line_num}"
            if None in row or None in row.values():
                raise RatingError(
                    f"{path}, {place}: not the {len(reader.fieldnames or [])} cells of the first "
                    "line"
                )
            yield place, {k: _cell(v) if k in CRITERIA else v.strip() for k, v in row.items()}


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
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
                    f"{path}, line {number}: expected an object, found {type(row).__name__}"
                )
            yield f"line {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise RatingError(f"{path}: not a Parquet file ({error})") from None
    _check_columns(path, table.column_names)
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"row {number}", row


def _check_columns(path: Path, names: Sequence[str]) -> None:
    columns, identity = (
        (SHEET_COLUMNS, ("video", "rater")) if "video" in names else (COLUMNS, IDENTITY)
    )
    unknown = [name for name in names if name not in columns]
    absent = [name for name in identity if name not in names]
    repeated = [name for name in names if list(names).count(name) > 1]
    if unknown or absent or repeated:
        raise RatingError(
            f"{path}: columns {list(names)}; unknown {unknown}, absent {absent}, repeated "
            f"{sorted(set(repeated))}; "
            f"expected {', '.join(columns)}"
        )


def _cell(text: str) -> float | str | None:
    """A CSV cell: empty is missing, and what is no number stays text, for `Rating` to refuse."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]] = {
    ".csv": _csv_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
}
