"""Tables as spreadsheets and survey tools save them: files in, rows of cells out.

What a file is, its content says and not its name, since people rename files. Formulas are not
computed: what stands in a cell is what the spreadsheet computed last.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# In a folder, files of these names are sheets, also those that can only be refused.
SUFFIXES = (
    (".csv", ".tsv", ".tab", ".txt", ".xlsx", ".xlsm", ".jsonl", ".ndjson", ".parquet")
    + (".xls", ".xlsb", ".ods", ".numbers", ".json")
)  # fmt: skip
DELIMITERS = "\t;|,"  # where all fit, the rarer sign in texts
# Bytes of an unpacked workbook, and rows as Excel counts them: more is no sheet of ratings.
LARGEST = 64 * 2**20
LAST_ROW = 2**20
SAVE_AS = "save it as .xlsx or .csv"

Cell = Any  # a text, a number, None where it is empty; of JSON and workbooks also other things
Rows = list[tuple[str, list[Cell]]]  # place in the file, cells


class SheetError(ValueError):
    """A file cannot be read as a table; the message names the way out.

    Args:
        message: what is wrong.
        place: where in the file, if at one place.
    """

    def __init__(self, message: str, place: str | None = None) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True)
class Sheet:
    """A table.

    Args:
        name: of the worksheet where a workbook has several, else empty.
        columns: their names; "" where a column has none.
        labels: the names with the questions that some tools write under them.
        rows: place in the file, and one cell for each column. Empty cells are None.
    """

    name: str
    columns: list[str]
    labels: list[str]
    rows: Rows


def read_sheets(path: Path) -> list[Sheet]:
    """The tables of a file: one, or those of all worksheets that are not empty.

    Read are text with any of `DELIMITERS` in UTF-8, UTF-16, Windows' or the Mac's Western encoding,
    Excel workbooks, JSON lines and Parquet.

    Raises:
        SheetError: the file is something else, damaged, or cannot be opened.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SheetError(f"cannot be read ({error.strerror})") from None
    for beginning, read in _BINARY.items():
        if data.startswith(beginning):
            return read(data)
    text = _decoded(data)
    if re.search(r"[\x00-\x08\x0e-\x1f]", text):
        raise SheetError(f"not a table of text; {SAVE_AS}")
    if text.lstrip().startswith(("{", "[{")) or path.suffix.lower() in (
        ".json",
        ".jsonl",
        ".ndjson",
    ):
        return [_json_lines(text)]
    return [_delimited(text)]


def files_of(folder: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders, in order; hidden ones are not looked at.

    Raises:
        SheetError: a folder that cannot be opened.
    """

    def refuse(error: OSError) -> None:
        raise SheetError(f"{error.filename}: cannot be read ({error.strerror})")

    seen = set()  # links may lead in a circle
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = os.path.realpath(place)
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(place, name) for name in sorted(names) if not _is_hidden(name))


def _is_hidden(name: str) -> bool:
    """Files of the system, of a Mac (`._x`) and of spreadsheets that are open (`~$x`)."""
    return name.startswith((".", "~$")) or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


# -- Text --


def _decoded(data: bytes) -> str:
    marks = {
        codecs.BOM_UTF8: "utf-8-sig",
        codecs.BOM_UTF32_LE: "utf-32",  # begins as UTF-16 does
        codecs.BOM_UTF32_BE: "utf-32",
        codecs.BOM_UTF16_LE: "utf-16",
        codecs.BOM_UTF16_BE: "utf-16",
    }
    encoding = next((marks[mark] for mark in marks if data.startswith(mark)), None)
    beginning = data[:40]
    if encoding is None and len(beginning) > 3:
        # Without a mark: the names of columns are ASCII, every other byte of which is zero.
        if not any(beginning[1::2]):
            encoding = "utf-16-le"
        elif not any(beginning[::2]):
            encoding = "utf-16-be"
    try:
        return data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise SheetError(f"broken {encoding} text ({error.reason})") from None
        return _western(data)


def _western(data: bytes) -> str:
    """Text of Windows (cp1252) or of an old Mac: whichever leaves fewer odd signs in words."""
    encodings = ["cp1252", "mac_roman"]
    if b"\r" in data and b"\n" not in data:
        encodings.reverse()  # lines end as on a Mac
    texts = []
    for encoding in encodings:
        try:
            texts.append(data.decode(encoding))
        except UnicodeDecodeError:
            continue  # cp1252 lacks five bytes, Mac Roman none
    return min(texts, key=lambda text: len(_ODD.findall(text)))


# Signs behind or before a letter ("Zo\u2018", "R\u2030ter"), capitals within a word ("Ren\u00c8").
_ODD = re.compile(
    r"[^\W\d_][^\w\s\x00-\x7f\u2019\u201d\u2013\u2014\u2026]"
    r"|[^\w\s\x00-\x7f\u2018\u2019\u201c\u2013\u2014\u2026](?=[^\W\d_])"
    r"|[a-z\u00df-\u00ff][\u00c0-\u00de\u0160\u0178\u017d]"
    r"|[A-Z][\u00c0-\u00de\u0160\u0178\u017d](?=[a-z])"
)


def _delimited(text: str) -> Sheet:
    first = 1
    named = re.match(r'"?sep=([^\w"\r\n])"?(\r\n|\r|\n)', text, re.IGNORECASE)  # Excel's own line
    if named:
        first = 2
        text = text[named.end() :]
        delimiter = named[1]
    else:
        delimiter = _delimiter("".join(itertools.islice(io.StringIO(text, newline=""), 50)))
    lines = _csv(text, delimiter, first)
    if not lines:
        return _sheet([])
    widths = {len(cells) for _, cells in lines[1:]}
    columns = len(lines[0][1])
    for place, cells in lines[1:]:
        # Some programs end every line but the first with an empty cell.
        surplus = len(widths) == 1 and not any(cell.strip() for cell in cells[columns:])
        if len(cells) < columns or (len(cells) > columns and not surplus):
            raise SheetError(
                f"{len(cells)} cells, not the {columns} cells of the first line", place
            )
        # A quote too many, and one later on, make a comment of the lines between them.
        inner = (line for cell in cells for line in cell.splitlines()[1:])
        if columns > 2 and any(line.count(delimiter) == columns - 1 for line in inner):
            raise SheetError(
                "a cell in quotes holds what looks like another line of the sheet; see its quotes, "
                "or write the cell on one line",
                place,
            )
    return _sheet([(place, [_stripped(cell) for cell in cells]) for place, cells in lines])


def _delimiter(text: str) -> str:
    """The one that cuts most lines into as many cells as the first, and into several."""

    def agreement(delimiter: str) -> tuple[bool, int, int]:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        widths = [len(row) for row in rows if any(row)] or [0]
        return widths[0] > 1, widths.count(widths[0]), widths[0]

    try:
        return max(DELIMITERS, key=agreement)
    except csv.Error:
        return DELIMITERS[0]  # which reports the error with its line


def _csv(text: str, delimiter: str, first: int) -> list[tuple[str, list[str]]]:
    """The lines that are not empty; `first` is the number of the first."""
    # Strict: a quote that is not closed must not swallow the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((f"line {reader.line_num + first - 1}", cells))
    except csv.Error as error:
        place = f"line {reader.line_num + first - 1}"
        raise SheetError(f"{error}; see its quotes", place) from None
    return lines


def _json_lines(text: str) -> Sheet:
    records = []
    # Not splitlines(), which takes signs within a JSON text for the ends of lines.
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SheetError(f"not JSON ({error})", f"line {number}") from None
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise SheetError(f"expected an object, got {kind}; {SAVE_AS}", f"line {number}")
        records.append((f"line {number}", record))
    columns = list(dict.fromkeys(name for _, record in records for name in record))
    rows = [(place, [record.get(name) for name in columns]) for place, record in records]
    return _sheet([("", columns), *rows])


# -- Binary files --


def _parquet(data: bytes) -> list[Sheet]:
    try:
        table = pq.read_table(pa.BufferReader(data))
        columns = [column.to_pylist() for column in table.columns]
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise SheetError(f"not a Parquet file ({error})") from None
    rows = zip(*columns, strict=True)
    numbered = [(f"row {number}", list(row)) for number, row in enumerate(rows, start=1)]
    return [_sheet([("", table.column_names), *numbered])]


def _workbook(data: bytes) -> list[Sheet]:
    import openpyxl  # few need it, and it takes a while

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(file.file_size for file in archive.infolist())
            names = archive.namelist()
        if "xl/workbook.xml" not in names:
            raise SheetError(f"a document or archive, no Excel workbook; {SAVE_AS}")
        if size > LARGEST:
            raise SheetError(f"unpacks to {size / 2**20:.0f} MiB, more than any sheet of ratings")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles that openpyxl does not know
            values, formulas = (
                openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=computed)
                for computed in (True, False)
            )
            several = len(values.worksheets) > 1
            sheets = [
                _worksheet(sheet, written, f"worksheet {sheet.title!r}, " if several else "")
                for sheet, written in zip(values.worksheets, formulas.worksheets, strict=True)
            ]
    except SheetError:
        raise
    except Exception as error:  # openpyxl lets through whatever its parsers meet in a damaged file
        raise SheetError(f"a damaged workbook ({error}); {SAVE_AS}") from None
    return [sheet for sheet in sheets if sheet.columns] or [_sheet([])]


def _worksheet(values: Any, formulas: Any, where: str) -> Sheet:
    # What programs write as the size of a sheet is often wrong: all of it is read.
    values.reset_dimensions()
    formulas.reset_dimensions()
    rows: Rows = []
    pairs = zip(values.iter_rows(), formulas.iter_rows(), strict=True)
    for number, (row, written) in enumerate(pairs, start=1):
        for value, formula in zip(row, written, strict=True):
            if formula.data_type == "f" and value.value is None:
                raise SheetError(
                    "a formula without a value; open the file in a spreadsheet and save it, or "
                    "write the value",
                    f"{where}cell {formula.coordinate}",
                )
        if number > LAST_ROW:
            raise SheetError(f"worksheet {values.title!r} has more than {LAST_ROW} rows")
        cells = [_stripped(cell.value) for cell in row]
        if any(cell is not None for cell in cells):
            rows.append((f"{where}row {number}", cells))
    return _sheet(rows, values.title)


def _old_workbook(data: bytes) -> list[Sheet]:
    raise SheetError(f"an old .xls file, or one with a password; {SAVE_AS}, without a password")


_BINARY: dict[bytes, Callable[[bytes], list[Sheet]]] = {
    b"PK": _workbook,
    b"PAR1": _parquet,
    b"\xd0\xcf\x11\xe0": _old_workbook,
}


# -- Cells --


def _stripped(cell: Cell) -> Cell:
    return cell.strip() if isinstance(cell, str) else cell


def _is_empty(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _sheet(rows: Rows, name: str = "") -> Sheet:
    """The first row that is not empty names the columns; empty rows and columns are left out."""
    filled = [
        (place, [None if _is_empty(cell) else cell for cell in cells]) for place, cells in rows
    ]
    filled = [(place, cells) for place, cells in filled if any(cell is not None for cell in cells)]
    width = max((len(cells) for _, cells in filled), default=0)
    padded = [(place, cells + [None] * (width - len(cells))) for place, cells in filled]
    used = [i for i in range(width) if any(cells[i] is not None for _, cells in padded)]
    kept = padded
    if len(used) < width:
        kept = [(place, [cells[i] for i in used]) for place, cells in padded]
    if not kept:
        return Sheet(name, [], [], [])
    columns = ["" if cell is None else str(cell).strip() for cell in kept[0][1]]
    labels, body = _labels(columns, kept[1:])
    return Sheet(name, columns, labels, body)


_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")


def _labels(columns: Sequence[str], rows: Rows) -> tuple[list[str], Rows]:
    """Columns with their questions, and the other rows.

    Qualtrics writes two rows under the names: the questions, and `{"ImportId":"QID1"}`.
    SurveyMonkey names the first column of a question alone, and writes what is asked in each under
    the names.
    """
    under = rows[0][1] if rows else columns
    unnamed = [cell for name, cell in zip(columns, under, strict=True) if not name]
    asked = [cell for cell in under if cell is not None]
    words = all(isinstance(cell, str) and not _NUMBER.fullmatch(cell) for cell in asked)
    # Such a row names every column that has no name, and has no grades.
    if unnamed and None not in unnamed and words and under[0] is None:
        whole: list[str] = []
        for name in columns:
            whole.append(name or whole[-1] if whole else name)
        return [_joined(texts) for texts in zip(whole, under, strict=True)], rows[1:]
    for count, (_, cells) in enumerate(rows[:2]):
        if all("ImportId" in str(cell) for cell in cells if cell is not None):
            above = [cells for _, cells in rows[:count]]
            return [_joined(texts) for texts in zip(columns, *above, strict=True)], rows[
                count + 1 :
            ]
    return list(columns), rows


def _joined(texts: Iterable[Cell]) -> str:
    return " ".join(str(text) for text in texts if text is not None)
