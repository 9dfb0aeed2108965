"""A run directory belongs to one process at a time, and to nobody once that is gone."""

import json
import os
import subprocess
import sys

import pytest

from rapport.log import show
from rapport.pipeline.holding import HOLDER, HeldError, held

HOLD = """
import sys, time
from pathlib import Path
from rapport.pipeline.holding import held
from rapport.files import atomic
with held(Path(sys.argv[1])), atomic(Path(sys.argv[1]) / "phase" / "policy") as partial:
    partial.write_text("half")
    print("held", flush=True)
    time.sleep(100)
"""


def test_the_second_is_told_who_was_first(tmp_path):
    with held(tmp_path):
        holder = json.loads((tmp_path / HOLDER).read_text())
        assert holder["process"] == os.getpid() and holder["since"] and holder["host"]
        said = rf"in use by process {os.getpid()} on .* since 20"
        with pytest.raises(HeldError, match=said), held(tmp_path):
            raise AssertionError("both are in")
    with held(tmp_path):
        pass
    assert not (tmp_path / HOLDER).exists()


def test_an_error_lets_go(tmp_path):
    with pytest.raises(ValueError), held(tmp_path):
        raise ValueError
    with held(tmp_path):
        assert (tmp_path / HOLDER).is_file()


def test_a_dead_process_is_taken_over_from_and_what_it_left_half_written_goes(tmp_path, capsys):
    show()
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "held\n"
    with pytest.raises(HeldError, match=f"process {first.pid}"), held(tmp_path):
        pass
    first.kill()
    first.wait()
    (tmp_path / "phase" / "finished.txt").write_text("whole")
    assert len(list((tmp_path / "phase").iterdir())) == 2, "a folder of the dead one is there"
    with held(tmp_path):
        assert [path.name for path in (tmp_path / "phase").iterdir()] == ["finished.txt"]
    said = capsys.readouterr()
    assert f"taken over from process {first.pid}" in said.out + said.err


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(HeldError, match="cannot be locked.*choose a --run-dir"), held(file):
        pass
