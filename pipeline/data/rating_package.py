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

from rapport.files import write_atomic
from rapport.rewards.ratings.ratings import (
    CRITERIA,
    HIGHEST,
    INSTRUCTIONS,
    LOWEST,
    SHEET_COLUMNS,
    RatingError,
)
from rapport.rewards.ratings.sheets import SheetError, read_sheets

MANIFEST_COLUMNS = ("video", "prompt_id", "candidate_id")
HAND_OUT = "for_raters"


def neutral_names(groups: Mapping[str, Iterable[str]], seed: int) -> dict[str, tuple[str, str]]:
    """Give every candidate's video a name that tells raters nothing about it.

    A name is a number for the group and a letter for the candidate, for example "0007-c". Both are
    shuffled.

    Args:
        groups: prompt id -> candidate ids.
        seed: of the shuffling.

    Returns:
        video name -> prompt id, candidate id.
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
    """Write everything but the videos, which belong in `for_raters/videos`."""
    hand_out = folder / HAND_OUT
    hand_out.mkdir(exist_ok=True)
    write_atomic(hand_out / INSTRUCTIONS, instructions())
    blank = "," * (len(SHEET_COLUMNS) - 1)
    sheet = [",".join(SHEET_COLUMNS), *(name + blank for name in names)]
    write_atomic(hand_out / "sheet.csv", "\n".join(sheet) + "\n")
    manifest = io.StringIO()
    writer = csv.writer(manifest, lineterminator="\n")
    writer.writerow(MANIFEST_COLUMNS)
    writer.writerows((name, prompt, candidate) for name, (prompt, candidate) in names.items())
    write_atomic(folder / "manifest.csv", manifest.getvalue())


def read_manifest(file: Path) -> dict[str, tuple[str, str]]:
    """Read which candidate every video of a package shows, as `neutral_names` gave it.

    Raises:
        RatingError: the file does not exist, is damaged or has other columns.
    """
    if not file.is_file():
        raise RatingError(
            f"{file}: no manifest; a sheet of videos needs the one that was written with it"
        )
    try:
        sheet = read_sheets(file)[0]
    except SheetError as error:
        raise RatingError(f"{file}: {error}") from None
    if tuple(sheet.columns) != MANIFEST_COLUMNS:
        raise RatingError(
            f"{file}: columns {sheet.columns}, expected {', '.join(MANIFEST_COLUMNS)}"
        )
    for place, cells in sheet.rows:
        if None in cells:
            raise RatingError(f"{file}, {place}: an empty cell in {cells}")
    return {video: (prompt, candidate) for _, (video, prompt, candidate) in sheet.rows}


def instructions() -> str:
    """What raters read before they begin."""
    criteria = "\n".join(f"- **{name}**: {meaning}" for name, meaning in CRITERIA.items())
    return f"""# How to rate

Each video shows a person who speaks on the left and a face that listens on the right.
Please judge the listener only.

1. Copy `sheet.csv` and open the copy in a spreadsheet. It has one row for each video in `videos/`.
2. Write your name into the column `rater`, in every row that you fill in. You may use any other
   name, as long as it is always the same.
3. Watch each video with sound and to its end, as often as you like. Videos whose names begin with
   the same number show the same speaker. Watch all of them before you rate the first.
4. Give each criterion a whole number from {LOWEST} to {HIGHEST}.
   If you cannot tell, leave the cell empty.
5. Use the whole scale. There are no right answers, and any number of videos may be good. Some of
   the videos may be recordings of real people.
6. Give the sheet a name of your own and return it as CSV or as an Excel workbook.

The criteria are:

{criteria}
"""


def _letters(place: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = ""
    place += 1
    while place:
        place, letter = divmod(place - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return letters
