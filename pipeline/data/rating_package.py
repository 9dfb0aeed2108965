"""What people are given to rate, and what links their answers to candidates.

package/for_raters/    videos with neutral names, INSTRUCTIONS.md, sheet.csv: hand this out
package/manifest.csv   which candidate a video shows: keep it
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from rapport.pipeline.rundir import write_atomic
from rapport.rewards.ratings.ratings import CRITERIA, HIGHEST, LOWEST, SHEET_COLUMNS, RatingError

MANIFEST_COLUMNS = ("video", "prompt_id", "candidate_id")
HAND_OUT = "for_raters"


def neutral_names(groups: Mapping[str, Iterable[str]], seed: int) -> dict[str, tuple[str, str]]:
    """Video name -> prompt id, candidate id. The number is the group's, the letter says nothing:
    both are shuffled.
    """
    rng = np.random.default_rng(seed)
    prompts = sorted(groups)
    names = {}
    for number, index in enumerate(rng.permutation(len(prompts)), start=1):
        prompt = prompts[index]
        candidates = sorted(groups[prompt])
        for place, which in enumerate(rng.permutation(len(candidates))):
            names[f"{number:04d}-{_letters(place)}"] = (prompt, candidates[which])
    return names


def write_package(folder: Path, names: Mapping[str, tuple[str, str]]) -> None:
    """Everything but the videos, which belong into `for_raters/videos`."""
    (folder / HAND_OUT).mkdir(exist_ok=True)
    write_atomic(folder / HAND_OUT / "INSTRUCTIONS.md", instructions())
    write_atomic(
        folder / HAND_OUT / "sheet.csv", _table(SHEET_COLUMNS, ((name,) for name in names))
    )
    rows = ((name, prompt, candidate) for name, (prompt, candidate) in names.items())
    write_atomic(folder / "manifest.csv", _table(MANIFEST_COLUMNS, rows))


def read_manifest(file: Path) -> dict[str, tuple[str, str]]:
    """`neutral_names` of a package. Raises `RatingError` when it is not there or not one."""
    if not file.is_file():
        raise RatingError(
            f"{file}: no manifest; a sheet of videos needs the one that was written with it"
        )
    with file.open(newline="", encoding="utf-8") as text:
        reader = csv.DictReader(text)
        if tuple(reader.fieldnames or ()) != MANIFEST_COLUMNS:
            raise RatingError(
                f"{file}: columns {reader.fieldnames}, expected {', '.join(MANIFEST_COLUMNS)}"
            )
        return {row["video"]: (row["prompt_id"], row["candidate_id"]) for row in reader}


def instructions() -> str:
    """What raters read before they begin."""
    criteria = "\n".join(f"- **{name}**: {meaning}" for name, meaning in CRITERIA.items())
    return f"""# How to rate

Each video shows a person who speaks (left) and a face that listens (right). Judge the listener.

1. Copy `sheet.csv` and open the copy in a spreadsheet. There is one row for each video in `videos/`.
2. Write your name, or any name that is always the same, into the column `rater`.
3. Watch a video with sound, to its end, as often as you like. Videos whose names begin with the same number have
   the same speaker: watch them one after the other before you rate the first.
4. Give each criterion a whole number from {LOWEST} to {HIGHEST}. Leave a cell empty when you cannot tell.
5. Use the whole scale. There is no right answer and no number of good ones; some videos may be recordings of people.

{criteria}
"""


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows((*row, *[""] * (len(columns) - len(row))) for row in rows)
    return text.getvalue()


def _letters(place: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = ""
    place += 1
    while place:
        place, letter = divmod(place - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return letters
