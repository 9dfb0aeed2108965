"""Sheets that change after a run has read them are no part of it, and a resumed run says so."""

import pytest

from rapport.pipeline.rundir import RunError
from rapport.pipeline.steps.sheets import digest_of, require_read


def test_a_sheet_that_came_later_is_named_and_one_that_is_gone_was_read(tmp_path):
    sheets = tmp_path / "sheets"
    sheets.mkdir()
    (sheets / "anna.csv").write_text("video,rater,empathy\n")
    (sheets / ".DS_Store").write_text("of a Mac")
    read = digest_of(sheets)
    (sheets / ".DS_Store").write_text("of a Mac, later")
    (sheets / "0001-a.mp4").write_text("a video, which is no sheet")
    require_read(sheets, read)
    sheets.rename(tmp_path / "moved")
    require_read(sheets, read)
    assert digest_of(tmp_path / "moved") == read
    (tmp_path / "moved" / "bert.csv").write_text("video,rater,empathy\n")
    with pytest.raises(RunError, match="moved has changed since this run read it"):
        require_read(tmp_path / "moved", read)
    one = tmp_path / "moved" / "anna.csv"
    read = digest_of(one)
    one.write_text("video,rater,empathy\n0001-a,anna,4\n")
    with pytest.raises(RunError, match="anna.csv has changed"):
        require_read(one, read)
