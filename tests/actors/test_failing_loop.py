"""An error of the driver while learners learn is heard, and nobody is left learning."""

import subprocess
import sys
from pathlib import Path

import pytest

LOOP = Path(__file__).with_name("failing_loop.py")


@pytest.mark.engine
@pytest.mark.long
@pytest.mark.parametrize(
    ("place", "message"), [("loop", "no such reward"), ("log", "no such metric")]
)
def test_an_error_beside_learners_is_heard(tmp_path, place, message):
    command = [sys.executable, str(LOOP), str(tmp_path), place]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 1
    assert f"AttributeError: {message}" in run.stderr
    assert "did not end" not in run.stderr
