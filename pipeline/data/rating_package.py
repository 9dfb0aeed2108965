"""What people are given to rate, and what links their answers to candidates.

package/for_raters/    videos with neutral names, INSTRUCTIONS.md, sheet.csv: hand this out
package/manifest.csv   which candidate a video shows: keep it

Results are rated side by side, in several forms that differ in the order of faces and prompts:

package/for_raters/form-1/   videos of several faces each, INSTRUCTIONS.md, sheet.csv
package/manifest.csv         which method a face is
package/study.json           whose results these are, by digests
"""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
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


def faces_of_form(
    methods: Sequence[str], prompts: Sequence[str], form: int, seed: int
) -> dict[str, tuple[str, str]]:
    """Give every face of a form's videos a name that tells raters nothing about it.

    A name is the form's number, the video's and the face's letter, for example "1-0007-c". The
    order of prompts is the form's own, that of methods the form's own for each prompt.

    Args:
        methods: whose faces stand side by side.
        prompts: one video each.
        form: number of the form, from 1.
        seed: of the shuffling.

    Returns:
        name of a face -> prompt id, method.
    """
    order = np.random.default_rng([seed, form]).permutation(len(prompts))
    names = {}
    for number, index in enumerate(order, start=1):
        prompt = prompts[index]
        rng = np.random.default_rng([seed, form, zlib.crc32(prompt.encode())])
        for place, which in enumerate(rng.permutation(len(methods))):
            names[f"{form}-{number:04d}-{_letters(place)}"] = (prompt, methods[which])
    return names


def video_of_face(face: str) -> str:
    """The video in which a face of `faces_of_form` is seen, and the letter that stands on it."""
    return face.rpartition("-")[0]


def write_package(folder: Path, names: Mapping[str, tuple[str, str]]) -> None:
    """Write everything but the videos, which belong in `for_raters/videos`."""
    write_form(folder / HAND_OUT, names, instructions())
    write_manifest(folder, names)


def write_form(folder: Path, names: Iterable[str], text: str) -> None:
    """Write the sheet and the instructions that a rater is given."""
    write_atomic(folder / INSTRUCTIONS, text)
    blank = "," * (len(SHEET_COLUMNS) - 1)
    sheet = [",".join(SHEET_COLUMNS), *(name + blank for name in names)]
    write_atomic(folder / "sheet.csv", "\n".join(sheet) + "\n")


def write_manifest(folder: Path, names: Mapping[str, tuple[str, str]]) -> None:
    """Write what every name of the sheets shows."""
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


def instructions_side_by_side() -> str:
    """What raters of results read before they begin."""
    return f"""# How to rate

Each video shows a person who speaks, on the left, and beside them several faces that listen to
this person. They are called a, b, c and so on. Please judge each listening face.

1. Copy `sheet.csv` and open the copy in a spreadsheet. It has one row for each face: `1-0007-b` is
   face b in the video `1-0007`.
2. Write your name into the column `rater`, in every row that you fill in. You may use any other
   name, as long as it is always the same.
3. Watch each video with sound and to its end, as often as you like, before you rate its first face.
4. Give each criterion a whole number from {LOWEST} to {HIGHEST}.
   If you cannot tell, leave the cell empty.
5. Use the whole scale. There are no right answers, and any number of faces may be good. Letters
   mean nothing: the same letter is somebody else in the next video. Some of the faces may be
   recordings of real people.
6. Give the sheet a name of your own and return it as CSV or as an Excel workbook. Please fill in
   one form only.

The criteria are:

{_criteria()}
"""


def _criteria() -> str:
    return "\n".join(f"- **{name}**: {meaning}" for name, meaning in CRITERIA.items())


def instructions() -> str:
    """What raters read before they begin."""
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

{_criteria()}
"""


def _letters(place: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = ""
    place += 1
    while place:
        place, letter = divmod(place - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return letters
