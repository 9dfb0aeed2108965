"""Sheets as people hand them in: every program's and survey tool's way to save the same ratings."""

import csv
import io
import json
import os
import zipfile
from pathlib import Path
from random import Random

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapport.rewards.ratings.ratings import CRITERIA, Rating, RatingError, read_ratings
from rapport.rewards.ratings.sheets import SheetError, files_of

CASES = Path(__file__).parents[2].parent / "shared" / "cases"
VIDEOS = {f"000{n}-{letter}": (f"clip-{n}", letter) for n in (1, 2) for letter in "abc"}
HEADER = ["video", "rater", *CRITERIA]
ROWS = [
    ["0001-a", "Ann", 1, 2, 3, 4],
    ["0001-b", "Ann", 5, 4, 3.5, 2],
    ["0002-c", "Ann", 3, None, 2, 1],
]
RATINGS = [Rating(*VIDEOS[video], rater, *grades) for video, rater, *grades in ROWS]


def text_of(rows, *, delimiter=",", decimal=".", newline="\r\n"):
    cells = [
        ["" if cell is None else str(cell).replace(".", decimal) for cell in row] for row in rows
    ]
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator=newline).writerows(cells)
    return file.getvalue()


def workbook_of(worksheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in worksheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def renamed(name, rater):
    return [[rater if cell == name else cell for cell in row] for row in [HEADER, *ROWS]]


def read(path, videos=VIDEOS):
    """The ratings, and what was said of them."""
    said = []
    return read_ratings(path, videos, say=lambda remark: said.append(str(remark))), said


def refusal(path, data, name="Ann.csv", videos=VIDEOS):
    """Why a file is refused."""
    file = path / name
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(RatingError) as caught:
        read(file, videos)
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)
    return str(caught.value)


TEXTS = {
    "plain": text_of([HEADER, *ROWS]),
    "semicolons": text_of([HEADER, *ROWS], delimiter=";"),
    "tabs": text_of([HEADER, *ROWS], delimiter="\t"),
    "decimal commas": text_of([HEADER, *ROWS], delimiter=";", decimal=","),
    "decimal commas in quotes": text_of([HEADER, *ROWS], decimal=","),
    "a line sep=": "sep=;\r\n" + text_of([HEADER, *ROWS], delimiter=";"),
    "lines of an old Mac": text_of([HEADER, *ROWS], newline="\r"),
    "capitals": text_of([[name.title() for name in HEADER], *ROWS]),
    "blanks": text_of([[f" {name}\xa0" for name in HEADER], *ROWS]),
    "a comma behind every line but the first": text_of(
        [HEADER, *[[*row, None] for row in ROWS]]
    ),
    "empty lines and columns": text_of([[], [*HEADER, None], [], *[[*r, None] for r in ROWS], []]),
    "columns in another order": text_of([list(reversed(row)) for row in [HEADER, *ROWS]]),
    "paths": text_of([HEADER, *[[f"videos/{row[0]}.mp4", *row[1:]] for row in ROWS]]),
    "addresses": text_of([HEADER, *[[f"http://x/{row[0]}.mp4?k=1", *row[1:]] for row in ROWS]]),
    "paths of Windows": text_of([HEADER, *[[f"C:\\v\\{row[0]}.MP4", *row[1:]] for row in ROWS]]),
    "names in capitals": text_of([HEADER, *[[row[0].upper(), *row[1:]] for row in ROWS]]),
    "three rows of names, as Qualtrics": text_of(
        [HEADER, ["A question, with a comma"] * 6, ['{"ImportId":"QID1"}'] * 6, *ROWS]
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_programs_write_the_same_table_in_many_ways(tmp_path, text):
    (tmp_path / "Ann.csv").write_bytes(text.encode())
    assert read(tmp_path / "Ann.csv") == (RATINGS, [])


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "mac_roman"]
)
@pytest.mark.parametrize("rater", ["Zoë", "René", "Räter Eins", "Jürgen Weiß", "Øyvind", "Ünal"])
def test_a_name_keeps_its_letters_in_every_encoding(tmp_path, encoding, rater):
    (tmp_path / "r.csv").write_bytes(text_of(renamed("Ann", rater)).encode(encoding))
    ratings, _ = read(tmp_path / "r.csv")
    assert {rating.rater for rating in ratings} == {rater} and len(ratings) == 3


@pytest.mark.parametrize("name", ["Ann.xlsx", "ANN.XLSX", "Ann.csv", "Ann.txt"])
def test_a_workbook_is_one_under_any_name(tmp_path, name):
    (tmp_path / name).write_bytes(workbook_of({"Sheet1": [HEADER, *ROWS], "Sheet2": []}))
    assert read(tmp_path) == (RATINGS, [])


def test_a_workbook_may_have_a_sheet_for_each_rater_and_one_for_notes(tmp_path):
    sheets = {"Ann": [HEADER, *ROWS], "Ben": renamed("Ann", "Ben"), "Notes": [["It was fun"]]}
    (tmp_path / "all.xlsx").write_bytes(workbook_of(sheets))
    ratings, said = read(tmp_path)
    assert [rating.rater for rating in ratings] == ["Ann"] * 3 + ["Ben"] * 3
    assert said == ["worksheets without ratings: 1 ('Notes' of all.xlsx)"]
    sheets["Ben"][2][2] = 6
    with pytest.raises(RatingError, match="all.xlsx, worksheet 'Ben', row 3: empathy is 6"):
        refusal(tmp_path, workbook_of(sheets), "all.xlsx")
        read(tmp_path)


def test_a_wrong_size_written_in_a_workbook_hides_no_row(tmp_path):
    data = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(workbook_of({"s": [HEADER, *ROWS]}))) as whole,
        zipfile.ZipFile(data, "w") as lying,
    ):
        for name in whole.namelist():
            lying.writestr(name, whole.read(name).replace(b'ref="A1:F4"', b'ref="A1"'))
    (tmp_path / "Ann.xlsx").write_bytes(data.getvalue())
    assert read(tmp_path) == (RATINGS, [])


def test_a_formula_is_not_computed_and_its_cell_is_named(tmp_path):
    why = refusal(
        tmp_path, workbook_of({"s": [HEADER, *ROWS, ["0001-c", "Ann", "=1+1"]]}), "a.xlsx"
    )
    assert "cell C5: a formula without a value" in why


def test_json_lines_and_parquet_have_the_same_forms(tmp_path):
    records = [dict(zip(HEADER, row, strict=True)) for row in ROWS]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read(tmp_path) == (RATINGS, [])
    (tmp_path / "r.jsonl").unlink()
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "r.PARQUET")
    assert read(tmp_path) == (RATINGS, [])


# -- Folders --


def test_nothing_in_a_folder_is_left_out_without_a_word(tmp_path):
    (tmp_path / "Ann").mkdir()
    (tmp_path / "Ann" / "sheet.CSV").write_text(TEXTS["plain"])
    (tmp_path / "Ben.xlsx").write_bytes(workbook_of({"s": renamed("Ann", "Ben")}))
    (tmp_path / "Cem.txt").write_bytes(text_of(renamed("Ann", "Cem")).encode("utf-16"))
    (tmp_path / "Dan.docx").write_bytes(b"PK")
    ratings, said = read(tmp_path)
    assert {rating.rater for rating in ratings} == {"Ann", "Ben", "Cem"} and len(ratings) == 9
    assert said == ["files without a sheet's suffix, which were not read: 1 (Dan.docx)"]


@pytest.mark.parametrize("name", ["Ben.xls", "Ben.ods", "Ben.numbers", "Ben.XLSX", "Ben.csv"])
@pytest.mark.parametrize(
    "data", [b"\xd0\xcf\x11\xe0\xa1\xb1", b"PK\x03\x04 no archive", b"\x89PNG\r\n\x1a\n", b""]
)
def test_a_sheet_that_cannot_be_read_stops_everything(tmp_path, name, data):
    (tmp_path / "Ann.csv").write_text(TEXTS["plain"])
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RatingError, match=f"{name}: "):
        read(tmp_path)


def test_a_folder_of_no_sheets_says_what_it_holds(tmp_path):
    (tmp_path / "Ann.docx").write_bytes(b"PK")
    with pytest.raises(RatingError, match="no such ratings file.*; it holds Ann.docx"):
        read(tmp_path)


def test_sheets_of_one_name_in_several_folders_are_counted_and_told_apart(tmp_path):
    for rater in ("Ann", "Ben", "Cem"):
        (tmp_path / rater).mkdir()
        rows = [HEADER, ["0001-a", rater, 3, 3, 3, 3], ["0001-b", *[None] * 5]]
        (tmp_path / rater / "sheet.csv").write_text(text_of(rows))
    ratings, said = read(tmp_path)
    assert [rating.rater for rating in ratings] == ["Ann", "Ben", "Cem"]
    assert said[0].startswith("sheets with rows that nobody filled in: 3 (Ann/sheet.csv: 1 of 2, ")
    (tmp_path / "Cem" / "copy.csv").write_text((tmp_path / "Ann" / "sheet.csv").read_text())
    with pytest.raises(RatingError, match="already rated .* in Ann/sheet.csv, line 2"):
        read(tmp_path)


def test_hidden_files_are_not_looked_at(tmp_path):
    (tmp_path / "Ann.csv").write_text(TEXTS["plain"])
    (tmp_path / "__MACOSX").mkdir()
    for name in ("._Ann.csv", "~$Ann.xlsx", ".DS_Store", "__MACOSX/Ann.csv", ".~lock.Ann.csv#"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    assert read(tmp_path) == (RATINGS, [])


def test_the_files_of_the_package_itself_may_lie_beside(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "Ann.csv").write_text(TEXTS["plain"])
    (tmp_path / "INSTRUCTIONS.md").write_text("# How to rate")
    (tmp_path / "videos" / "0001-a.mp4").write_bytes(b"")
    manifest = [(video, *shown) for video, shown in VIDEOS.items()]
    (tmp_path / "manifest.csv").write_text(
        text_of([("video", "prompt_id", "candidate_id"), *manifest])
    )
    (tmp_path / "sheet.csv").write_text(text_of([HEADER, *[[v, *[None] * 5] for v in VIDEOS]]))
    assert read(tmp_path) == (
        RATINGS,
        ["sheets with rows that nobody filled in: 1 (sheet.csv: 6 of 6)"],
    )
    (tmp_path / "videos" / "mine.mp4").write_bytes(b"")
    assert (
        "files without a sheet's suffix, which were not read: 1 (videos/mine.mp4)"
        in read(tmp_path)[1]
    )


def test_links_are_followed_and_may_lead_in_a_circle(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "Ann.csv").write_text(TEXTS["plain"])
    (tmp_path / "sheets").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "sheets" / "Ann")
    os.symlink(tmp_path / "sheets", tmp_path / "elsewhere" / "back")
    assert read(tmp_path / "sheets") == (RATINGS, [])
    os.symlink(tmp_path / "gone", tmp_path / "sheets" / "Ben.csv")
    with pytest.raises(RatingError, match="Ben.csv: cannot be read .No such file"):
        read(tmp_path / "sheets")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_file_or_folder_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "Ann.csv").write_text(TEXTS["plain"])
    (tmp_path / "Ann.csv").chmod(0)
    with pytest.raises(RatingError, match="Ann.csv: cannot be read .Permission denied"):
        read(tmp_path)
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(SheetError, match="closed: cannot be read"):
        list(files_of(tmp_path))


# -- Survey tools --


def test_columns_of_survey_tools_are_named_and_not_read(tmp_path):
    more = ["", "Participant id", "Time taken", "Completion code", "Nationality", "comments"]
    rows = [[i, "5f0c", 123, "ABC", "German", "nice, and\nnatural"] for i in range(len(ROWS))]
    table = [left + right for left, right in zip([more, *rows], [HEADER, *ROWS], strict=True)]
    (tmp_path / "prolific.csv").write_text(text_of(table))
    ratings, (said,) = read(tmp_path)
    assert ratings == RATINGS
    assert said == (
        "other columns, which were not read: 6 ((no name), Participant id, Time taken, "
        "Completion code, Nationality, comments)"
    )


def test_label_studio_names_videos_by_a_prefix_and_raters_by_number(tmp_path):
    header = ["video", "id", "annotation_id", *CRITERIA, "annotator", "lead_time"]
    rows = [
        [f"/data/upload/1/d2c7a2f1-{video}.mp4", 7, 8, *grades, 3, 12.3]
        for video, _, *grades in ROWS
    ]
    (tmp_path / "project.csv").write_text(text_of([header, *rows]))
    ratings, said = read(tmp_path)
    assert ratings == [Rating(r.prompt_id, r.candidate_id, "3", *grades(r)) for r in RATINGS]
    assert "columns taken as the rater: 1 (annotator in project.csv)" in said


def grades(rating):
    return [getattr(rating, name) for name in CRITERIA]


QUESTIONS = [f"{video} [{name}]" for video in VIDEOS for name in CRITERIA]
ANSWERS = [1 + i % 5 for i in range(len(QUESTIONS))]


def test_a_form_of_google_is_a_row_a_rater_and_a_column_a_question(tmp_path):
    header = ["Timestamp", "Email Address", *QUESTIONS, "Anything else?"]
    given = [None if question.startswith("0001-b") else answer
             for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]  # fmt: skip
    given[0] = None
    rows = [["2026/11/26 3:04:05 PM GMT+1", "ann@example.org", *given, "No, thanks"],
            ["2026/11/26 4:04:05 PM GMT+1", "ben@example.org", *ANSWERS, ""]]  # fmt: skip
    (tmp_path / "form.csv").write_text(text_of([header, *rows]))
    ratings, said = read(tmp_path)
    assert len(ratings) == 5 + 6, "who answers nothing about a video has not rated it"
    assert ratings[0] == Rating("clip-1", "a", "ann@example.org", None, 2, 3, 4)
    assert ratings[5] == Rating("clip-1", "a", "ben@example.org", 1, 2, 3, 4)
    assert said == [
        "other columns, which were not read: 2 (Timestamp, Anything else?)",
        "columns taken as the rater: 1 (Email Address in form.csv)",
    ]


def test_qualtrics_asks_in_its_second_row(tmp_path):
    names = ["StartDate", "ResponseId", *[f"Q{i}_1" for i in range(len(QUESTIONS))]]
    texts = ["Start Date", "Response ID", *[f"How is it? - {text}" for text in QUESTIONS]]
    ids = [json.dumps({"ImportId": f"QID{i}"}) for i in range(len(names))]
    rows = [names, texts, ids, ["2026-11-26 10:00:00", "R_1abc", *ANSWERS]]
    (tmp_path / "survey.csv").write_text(text_of(rows))
    ratings, _ = read(tmp_path)
    assert ratings[:2] == [
        Rating("clip-1", "a", "R_1abc", 1, 2, 3, 4),
        Rating("clip-1", "b", "R_1abc", 5, 1, 2, 3),
    ] and len(ratings) == len(VIDEOS)


def test_a_table_of_candidates_may_say_its_videos(tmp_path):
    header = ["video", "prompt_id", "candidate_id", "rater", "empathy"]
    (tmp_path / "r.csv").write_text(text_of([header, ["any", "clip-1", "a", "Ann", 3]]))
    ratings, said = read(tmp_path, videos=None)
    assert ratings == [Rating("clip-1", "a", "Ann", 3)]
    assert said[0] == "other columns, which were not read: 1 (video)"
    assert said[1].startswith("criteria without a column: 3 (appropriateness in r.csv, ")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("video,rater,empathie", "unknown column 'empathie'; if it holds empathy, call it so"),
        ("video,rater,empathy,natural", "unknown column 'natural'; if it holds naturalness"),
        ("video,rater,Empathy (1-5)", "unknown column 'Empathy (1-5)'; if it holds empathy"),
        ("video,rater,empathy,Empathy ", "repeated columns ['empathy', 'Empathy']"),
        ("video,rater,empathy,empathy.1", "unknown column 'empathy.1'; if it holds empathy"),
        ("video,rater,empathy,0001-b [empathy]", "unknown column '0001-b [empathy]'"),
        ("video,empathy", "absent: a column `rater`"),
        ("video,annotator,email,empathy", "columns ['annotator', 'email'] may all name the rater"),
        ("video,rater,charm", "no column of empathy, "),
        ("clip,rater,empathy", "the columns are ['clip', 'rater', 'empathy']"),
        ("rater,0001-a [empathie]", "if it holds empathy, call it so"),
        ("rater,0001-a [empathy],9999-a [empathy]", "name a criterion and no video"),
        ("rater,0001-a 0001-b empathy", "names the videos ['0001-a', '0001-b']"),
        ("rater,0001-a empathy engagement", "and the criteria ['empathy', 'engagement']"),
        ("rater,0001-a empathy,0001-a: Empathy", "a second column of 0001-a, empathy"),
    ],
)
def test_columns_that_may_mean_something_else_are_refused(tmp_path, header, message):
    row = ",".join(["0001-a", "Ann", "3", "3"][: header.count(",") + 1])
    assert message in refusal(tmp_path, f"{header}\n{row}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,rater,empathy\n0001-a,Ann,3,5\n0001-b,Ann,3\n", "line 2: 4 cells, not the 3"),
        ("video,rater,empathy\n0001-a,Ann,3,\n0001-b,Ann,3\n", "line 2: 4 cells, not the 3"),
        ("video,rater,empathy\n0001-a,Ann,3\n0001-b,An", "line 3: 2 cells, not the 3"),
        ("sep=;\nvideo;rater;empathy\n0001-a;Ann;6\n", "line 3: empathy is 6, outside 1 to 5"),
        ("video;rater;empathy\n0001-a;Ann;3,\n", "line 2: empathy is '3,', not a number"),
        ('video,rater,empathy\n0001-a,"Ann,3\n0001-b,Ann,3\n', "line 3: unexpected end of data"),
        (
            'video,rater,empathy,notes\n0001-a,Ann,3,"ok\n0001-b,Ann,3,\n0002-a,Ann,3,ok"\n',
            "line 4: a cell in quotes holds what looks like another line",
        ),
        ("video,rater,empathy\n0001-a,Ann,3\x00\n", "not a table of text"),
        ("video,rater,empathy\n0001-ab,Ann,3\n", "line 2: video '0001-ab' is not in"),
        ('{"video": "0001-a", "rater": ["Ann"], "empathy": 3}', "line 1: rater is ['Ann']"),
        ('[{"video": "0001-a"}]', "line 1: expected an object, got list; save it as"),
        ("[" * 100_000, "the columns are ['[["),
        ('{"a":' * 100_000, "line 1: not JSON"),
        ('{"video": "0001-a", "rater": "Ann", "empathy": 1' + "0" * 400 + "}", "is inf, not a num"),
        (b"\xff\xfev\x00i", "broken utf-16 text"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_with_its_place(tmp_path, text, message):
    why = refusal(tmp_path, text)
    assert message in why and len(why) < 700


def test_a_huge_workbook_is_not_unpacked(tmp_path):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", b"0" * (80 * 2**20))
    assert "unpacks to 80 MiB" in refusal(tmp_path, data.getvalue(), "a.xlsx")


# -- Raters --


def test_one_name_in_two_spellings_is_one_person(tmp_path):
    (tmp_path / "1.csv").write_text("video,rater,empathy\n0001-a,Anna,3\n0001-b,anna ,4\n")
    (tmp_path / "2.csv").write_text("video,rater,empathy\n0002-a,ANNA,3\n0002-b,Ben,4\n")
    ratings, said = read(tmp_path)
    assert [rating.rater for rating in ratings] == ["Anna", "Anna", "Anna", "Ben"]
    assert "raters who wrote their name in several ways: 1 (Anna = anna = ANNA)" in said
    (tmp_path / "3.csv").write_text("video,rater,empathy\n0001-a,anna,5\n")
    with pytest.raises(RatingError, match="3.csv, line 2: rater 'anna' already rated.*1.csv, line"):
        read(tmp_path)


def test_remarks_can_be_told_without_names(tmp_path):
    (tmp_path / "annaliese.csv").write_text(TEXTS["plain"])
    (tmp_path / "bert.docx").write_bytes(b"PK")
    remarks = []
    read_ratings(tmp_path, VIDEOS, say=remarks.append)
    assert [r.anonymous for r in remarks] == [
        "files without a sheet's suffix, which were not read: 1"
    ]


def test_whoever_does_not_listen_is_told_by_the_log(tmp_path, capsys):
    (tmp_path / "Ann.csv").write_text(TEXTS["plain"])
    (tmp_path / "Ben.docx").write_bytes(b"PK")
    read_ratings(tmp_path, VIDEOS)
    assert (
        "WARNING: files without a sheet's suffix, which were not read: 1" in capsys.readouterr().out
    )


# -- Real ones, and a thousand others --


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases")
@pytest.mark.parametrize(
    "kind", ["sheet_encodings", "sheets_left_out", "sheets_of_survey_tools", "sheets_semicolon"]
)
def test_the_sheets_that_were_handed_in_are_read(kind):
    videos = {f"000{n}-{letter}": (f"clip-{n}", letter) for n in range(1, 7) for letter in "abcd"}
    for folder in sorted(path for path in (CASES / kind).iterdir() if path.is_dir()):
        raters = 2 if kind == "sheets_left_out" else 1
        ratings, _ = read(folder, videos)
        assert len(ratings) == 24 * raters, folder
        assert len({rating.rater for rating in ratings}) == raters
        assert all(None not in grades(rating) for rating in ratings)


NAMES = ["Ann", "Zoë", "Jürgen Weiß", "Müller, Eva", 'Dwayne "Rock" J', "5f0c1d2e3a4b5c6d7e8f9a0b"]
GRADES = [None, 1, 2, 3, 4, 5, 1.5, 3.5, 4.25]


def rated_by(random):
    """Grades by video and rater; somebody rated something."""
    keys = [(video, rater) for video in VIDEOS for rater in NAMES]
    rated = {
        key: [random.choice(GRADES) for _ in CRITERIA]
        for key in random.sample(keys, random.randint(1, 8))
    }
    rated[next(iter(rated))][0] = 2
    return rated


def handed_in(seed, form, fault, case, saved):
    """Ratings, a name and the content of a file that has them."""
    random = Random(seed)
    rated = rated_by(random)
    if form is wide:  # who answers nothing about a video has not rated it
        rated = {key: grades for key, grades in rated.items() if any(grades)}
    rows = form(rated)
    for name in random.sample(["comments", "Time taken", ""], random.randint(0, 2)):
        rows = [[*rows[0], name], *[[*row, "nice, x"] for row in rows[1:]]]
    order = random.sample(range(len(rows[0])), len(rows[0]))
    rows = [[row[i] for i in order] for row in rows]
    fault(rows)
    rows[0] = [case(name) for name in rows[0]]
    for _ in range(random.randint(0, 2)):
        rows.insert(random.randint(1, len(rows)), [None] * len(rows[0]))
    return rated, *saved(rows)


def as_workbook(name):
    return lambda rows: (name, workbook_of({"s": rows}))


def as_jsonl(rows):
    lines = [json.dumps(dict(zip(rows[0], row, strict=True))) + "\n" for row in rows[1:]]
    return "r.jsonl", "".join(lines).encode()


def as_parquet(rows):
    columns = [
        pa.array([None if cell is None else str(cell) for cell in column[1:]], pa.string())
        for column in zip(*rows, strict=True)
    ]
    file = io.BytesIO()
    pq.write_table(pa.table(columns, names=rows[0]), file)
    return "r.parquet", file.getvalue()


def as_text(name, delimiter, decimal, newline, encoding, named):
    def save(rows):
        text = text_of(rows, delimiter=delimiter, decimal=decimal, newline=newline)
        line = f"sep={delimiter}{newline}" if named else ""
        return name, (line + text).encode(encoding)

    return save


TEXT = st.builds(
    as_text,
    name=st.sampled_from(["r.csv", "R.TXT"]),
    delimiter=st.sampled_from(",;\t|"),
    decimal=st.sampled_from(".,"),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(
        ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "mac_roman"]
    ),
    named=st.booleans(),
)
OTHER = st.sampled_from([as_workbook("R.XLSX"), as_workbook("r.csv"), as_jsonl, as_parquet])


def long_by_video(rated):
    return [HEADER, *[[video, rater, *grades] for (video, rater), grades in rated.items()]]


def long_by_id(rated):
    header = ["prompt_id", "candidate_id", "rater", *CRITERIA]
    return [header, *[[*VIDEOS[video], rater, *g] for (video, rater), g in rated.items()]]


def wide(rated):
    raters = list(dict.fromkeys(rater for _, rater in rated))
    nothing = [None] * 4
    answers = [[g for v in VIDEOS for g in rated.get((v, rater), nothing)] for rater in raters]
    return [["rater", *QUESTIONS], *[[r, *a] for r, a in zip(raters, answers, strict=True)]]


def about_a_criterion(rows):
    return next(i for i, name in enumerate(rows[0]) if "empathy" in name)


def out_of_range(rows):
    rows[1][about_a_criterion(rows)] = 6


def no_number(rows):
    rows[1][about_a_criterion(rows)] = "good"


def misspelt(rows):
    i = about_a_criterion(rows)
    rows[0][i] = rows[0][i].replace("empathy", "empathie")


def no_rater(rows):
    rows[1][rows[0].index("rater")] = None
    rows[1][about_a_criterion(rows)] = 3


def twice(rows):
    rows[1][about_a_criterion(rows)] = 3
    rows.append(list(rows[1]))


def nothing_wrong(rows):
    pass


def sheets(*faults):
    return st.builds(
        handed_in,
        seed=st.integers(0, 2**32),
        form=st.sampled_from([long_by_video, long_by_id, wide]),
        fault=st.sampled_from(faults),
        case=st.sampled_from([str, str.title, str.upper, lambda name: f" {name} "]),
        saved=st.one_of(TEXT, TEXT, TEXT, TEXT, OTHER),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sheets")


def of(examples):
    """A thousand in all, the same ones every time."""
    return settings(deadline=None, max_examples=examples, derandomize=True, database=None)


@of(600)
@given(sheets(nothing_wrong))
def test_every_variation_of_a_sheet_is_read_right(folder, sheet):
    rated, name, data = sheet
    (folder / name).write_bytes(data)
    ratings, _ = read(folder / name)
    expected = {Rating(*VIDEOS[v], rater, *grades) for (v, rater), grades in rated.items()}
    assert set(ratings) == expected and len(ratings) == len(expected)


@of(150)
@given(sheets(out_of_range, no_number, misspelt, no_rater, twice))
def test_every_variation_of_a_wrong_sheet_is_refused(folder, sheet):
    _, name, data = sheet
    (folder / name).write_bytes(data)
    with pytest.raises(RatingError, match=name):
        read(folder / name)


@of(250)
@given(sheets(nothing_wrong), st.integers(0, 10_000), st.binary(max_size=4), st.booleans())
def test_a_damaged_sheet_is_read_or_refused(folder, sheet, place, noise, cut):
    _, name, data = sheet
    place %= len(data)
    rest = b"" if cut else data[place + len(noise) :]
    (folder / name).write_bytes(data[:place] + noise + rest)
    try:
        ratings, _ = read(folder / name)
    except RatingError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        # A sheet that ends too early between two rows cannot be told from a whole one.
        assert ratings


def test_a_folder_of_more_other_files_than_sheets_is_refused(tmp_path):
    (tmp_path / "ann.csv").write_text(text_of([HEADER, *ROWS]))
    (tmp_path / "a.pages").write_text("")
    assert read(tmp_path, VIDEOS)[0] == RATINGS
    (tmp_path / "b.pages").write_text("")
    with pytest.raises(RatingError, match="2 files are no sheets .*beside 1 that are"):
        read(tmp_path, VIDEOS)


MONKEY = """\
Respondent ID,Start Date,Please rate 0001-a,,Please rate 0001-b,
,,Empathy,Engagement,Empathy,Engagement
118,2026-11-01,4,3,1,2
"""


def exported(tmp_path, text):
    file = tmp_path / "export.csv"
    file.write_text(text, encoding="utf-8-sig")
    videos = {"0001-a": ("p", "a"), "0001-b": ("p", "b")}
    return read_ratings(file, videos, say=lambda remark: None)


def test_questions_that_are_named_once_for_several_columns_are_read(tmp_path):
    found = exported(tmp_path, MONKEY)
    assert [(r.rater, r.candidate_id, r.empathy, r.engagement) for r in found] == [
        ("118", "a", 4, 3),
        ("118", "b", 1, 2),
    ]


@pytest.mark.parametrize("rater", ["Respondent ID", "token", "CASE", "session"])
def test_other_tools_names_of_raters(tmp_path, rater):
    [found] = exported(tmp_path, f"{rater};V1[0001-a_empathy]\nx7;3,5\n")
    assert (found.rater, found.empathy) == ("x7", 3.5)


@pytest.mark.parametrize("text", ["5 = fully present", "5 (fully)", "5 - could be", "5: yes", "5"])
def test_a_choice_with_its_number_is_the_number(tmp_path, text):
    assert exported(tmp_path, f'token,0001-a empathy\nx,"{text}"\n')[0].empathy == 5


@pytest.mark.parametrize("text", ["2-3", "often (4)", "4 or 5", "5 of 5", "9 = more"])
def test_what_may_be_another_number_is_refused(tmp_path, text):
    with pytest.raises(RatingError, match="line 2"):
        exported(tmp_path, f'token,0001-a empathy\nx,"{text}"\n')
