"""A process that leaves its cluster lives on, whatever its other threads let go meanwhile."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine


def test_garbage_of_other_threads_does_not_end_a_process_that_leaves():
    command = [sys.executable, str(Path(__file__).parent / "leaving.py")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0 and "left with" in run.stdout, run.stdout + run.stderr
