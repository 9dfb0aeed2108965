"""Forms of a sheet: which columns hold grades, of whom and of what.

Long: a row is one rater's opinion of one candidate. Wide: a row is a rater, and a column holds the
grades of one video by one criterion. Columns go by their names, in whatever case and order.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rapport.rewards.ratings.sheets import Cell, Sheet, SheetError

Videos = Mapping[str, tuple[str, str]]  # neutral name -> prompt id, candidate id
Row = dict[str, Any]  # prompt_id, candidate_id, rater and the criteria

# What tools call the rater; a column `rater` goes before all of them.
RATERS = (
    ("annotator", "participantid", "prolificid", "prolificpid", "workerid", "responseid")
    + ("respondentid", "token", "case", "session")  # SurveyMonkey, LimeSurvey, SoSci, formr
    + ("emailaddress", "email", "username", "ratername", "yourname", "name")
)  # fmt: skip
CLOSE = 0.7  # of difflib: "natural" or "empathie" is a criterion with another name


@dataclass(frozen=True)
class Form:
    """What a sheet says.

    Args:
        rows: place in the file; ids, rater and grades.
        rater: the column that names the raters.
        other: columns that are neither grades nor names.
        absent: criteria that no column holds.
        unfilled: how many rows nobody filled in.
    """

    rows: list[tuple[str, Row]]
    rater: str
    other: list[str]
    absent: list[str]
    unfilled: int


def is_form(sheet: Sheet, criteria: Sequence[str]) -> bool:
    """Whether any column or question names what is rated or a criterion."""
    names = {_plain(name) for name in sheet.columns}
    words = {word for label in sheet.labels for word in _words(label)}
    return bool(names & {"video", "promptid", "candidateid"} or words & set(criteria))


def is_manifest(sheet: Sheet) -> bool:
    """Whether this is the list of what a package's videos show, which holds no ratings."""
    return {_plain(name) for name in sheet.columns} == {"video", "promptid", "candidateid"}


def read_form(sheet: Sheet, criteria: Sequence[str], videos: Videos | None) -> Form:
    """What a sheet says, in whichever form.

    Args:
        sheet: a table.
        criteria: names of the criteria, in small letters.
        videos: what the videos of a sheet show.

    Raises:
        SheetError: columns that are absent, repeated or ambiguous, unknown videos.
    """
    if not sheet.columns:
        raise SheetError("empty, so there are no ratings in it")
    names = [_plain(name) for name in sheet.columns]
    rater = _rater_column(sheet, names)
    if "video" in names or {"promptid", "candidateid"} <= set(names):
        return _long(sheet, names, rater, criteria=criteria, videos=videos)
    return _wide(sheet, rater, criteria, videos or {})


def _plain(name: str) -> str:
    """A column's name without case, blanks and signs."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _long(
    sheet: Sheet,
    names: list[str],
    rater: int,
    *,
    criteria: Sequence[str],
    videos: Videos | None,
) -> Form:
    shown: tuple[str, ...] = ("promptid", "candidateid")
    if not set(shown) <= set(names):
        shown = ("video",)
        if videos is None:
            raise SheetError(
                "a sheet of videos needs the manifest of its rating package (candidates=RUN_DIR)"
            )
    identity = [_only(sheet, names, name) for name in shown]
    grades = {name: _only(sheet, names, name) for name in criteria if name in names}
    other = [i for i in range(len(names)) if i not in (rater, *identity, *grades.values())]
    by_name = {video.casefold(): ids for video, ids in (videos or {}).items()}
    for i in other:
        near = _nearest(sheet.columns[i], criteria)
        if near is None:
            continue
        numbered = "".join(_words(sheet.columns[i])) == near  # "empathy.1" beside "empathy"
        of_a_video = any(_holds(sheet.labels[i].casefold(), video) for video in by_name)
        if near not in grades or numbered or of_a_video:
            raise _misnamed(sheet.columns[i], near)
    if not grades:
        raise _refusal(sheet, f"no column of {', '.join(criteria)}")

    rows: list[tuple[str, Row]] = []
    unfilled = 0
    for place, cells in sheet.rows:
        row: Row = {name: _grade(cells[i]) for name, i in grades.items()}
        if cells[rater] is None and all(grade is None for grade in row.values()):
            unfilled += 1
            continue
        ids = [_identifier(cells[i]) for i in identity]
        if shown == ("video",):
            ids = list(_shown_by(str(ids[0]), by_name, place))
        row |= {"prompt_id": ids[0], "candidate_id": ids[1], "rater": _identifier(cells[rater])}
        rows.append((place, row))
    return Form(
        rows,
        rater=sheet.columns[rater],
        other=[sheet.columns[i] or "(no name)" for i in other],
        absent=[name for name in criteria if name not in grades],
        unfilled=unfilled,
    )


def _wide(sheet: Sheet, rater: int, criteria: Sequence[str], videos: Videos) -> Form:
    questions: dict[tuple[str, str], int] = {}  # video, criterion -> column
    other = []
    strange = []
    for i, label in enumerate(sheet.labels):
        if i == rater:
            continue
        about, asked = _question(label, criteria, videos)
        if about and asked:
            if (about[0], asked[0]) in questions:
                raise SheetError(f"a second column of {about[0]}, {asked[0]}: {label!r}; keep one")
            questions[about[0], asked[0]] = i
        elif asked:
            strange.append(label)
        else:
            other.append(sheet.columns[i] or "(no name)")
    if not questions:
        raise _refusal(
            sheet,
            "absent: a column video, or prompt_id and candidate_id, or columns that each name a "
            "video of the package and a criterion",
        )
    if strange:
        raise SheetError(
            f"columns {strange[:3]} name a criterion and no video of this package; leave them out "
            "if they hold no grades"
        )
    rows: list[tuple[str, Row]] = []
    unfilled = 0
    for place, cells in sheet.rows:
        by_video: dict[str, Row] = {}
        for (video, criterion), i in questions.items():
            grade = _grade(cells[i])
            if grade is not None:
                by_video.setdefault(video, {})[criterion] = grade
        unfilled += not by_video
        for video, row in by_video.items():
            ids = dict(zip(("prompt_id", "candidate_id"), videos[video], strict=True))
            rows.append((f"{place}, {video}", row | ids | {"rater": _identifier(cells[rater])}))
    asked_for = {criterion for _, criterion in questions}
    absent = [name for name in criteria if name not in asked_for]
    return Form(rows, sheet.columns[rater], other=other, absent=absent, unfilled=unfilled)


def _question(label: str, criteria: Sequence[str], videos: Videos) -> tuple[list[str], list[str]]:
    """Which video and which criterion a wide column is about, none or one of each."""
    folded = label.casefold()
    words = _words(label)
    about = [video for video in videos if _holds(folded, video.casefold())]
    asked = [name for name in criteria if name in words]
    if about and not asked:
        near = next(filter(None, (_nearest(word, criteria) for word in words)), None)
        if near is not None:
            raise _misnamed(label, near)
    if len(about) > 1 or (about and len(asked) > 1):
        raise SheetError(
            f"column {label!r} names the videos {about} and the criteria {asked}; a column holds "
            "the grades of one video by one criterion"
        )
    return about, asked


def _holds(label: str, name: str) -> bool:
    return name in label and bool(re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", label))


def _rater_column(sheet: Sheet, names: list[str]) -> int:
    if "rater" in names:
        return _only(sheet, names, "rater")
    columns = [i for i, name in enumerate(names) if name in RATERS]
    if len(columns) == 1:
        return columns[0]
    if not columns:
        raise _refusal(sheet, "absent: a column `rater`, or one that tools call so")
    raise SheetError(
        f"columns {[sheet.columns[i] for i in columns]} may all name the rater; call one `rater`"
    )


def _only(sheet: Sheet, names: list[str], name: str) -> int:
    places = [i for i, found in enumerate(names) if found == name]
    if len(places) > 1:
        raise SheetError(f"repeated columns {[sheet.columns[i] for i in places]}; keep one")
    return places[0]


def _nearest(name: str, criteria: Sequence[str]) -> str | None:
    """The criterion that a column seems to mean by its name, if any."""
    for word in _words(name):
        if word in criteria:
            return word
    near = difflib.get_close_matches(_plain(name), criteria, n=1, cutoff=CLOSE)
    return near[0] if near else None


def _words(label: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", label.casefold())


def _misnamed(column: str, criterion: str) -> SheetError:
    return SheetError(
        f"unknown column {column!r}; if it holds {criterion}, call it so, else leave it out"
    )


def _refusal(sheet: Sheet, why: str) -> SheetError:
    found = sheet.columns[:12] + ["..."] * (len(sheet.columns) > 12)
    return SheetError(
        f"{why}; the columns are {found}. A sheet has the columns video (or prompt_id and "
        "candidate_id), rater and criteria"
    )


def _shown_by(cell: str, by_name: Videos, place: str) -> tuple[str, str]:
    """What a video shows, by a name that may have a path, a suffix or Label Studio's prefix."""
    address = re.sub(r"[?#].*", "", cell)
    name = address.replace("\\", "/").rpartition("/")[2].casefold()
    bare = re.sub(r"\.\w{2,4}$", "", name)
    for known in (name, bare, re.sub(r"^[0-9a-f]{4,}-", "", bare)):
        if known in by_name:
            return by_name[known]
    raise SheetError(
        f"video {cell!r} is not in the package's manifest; is this the sheet of another run?", place
    )


def _grade(cell: Cell) -> Cell:
    """A grade; what is no number stays what it is, and `Rating` refuses it."""
    if isinstance(cell, str) and re.fullmatch(r"\s*[+-]?\d+([.,]\d+)?\s*", cell):
        return float(cell.replace(",", "."))
    # The text of a choice with its number: "5 = fully present", "4 (often)"; "2-3" is none.
    if isinstance(cell, str) and (named := re.fullmatch(r"\s*(\d+)\s*[=:(–-]\s*[^\W\d].*", cell)):
        return float(named[1])
    if isinstance(cell, int) and not isinstance(cell, bool):
        return math.inf if abs(cell) > 2**53 else cell  # JSON's may be longer than any float
    return cell


def _identifier(cell: Cell) -> Cell:
    """An id; whole numbers, as JSON, Parquet and workbooks have them, are texts."""
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else cell
