"""The examples of the documentation do what they say."""

import os
import subprocess
import sys
from pathlib import Path

import av
import pytest

from rapport import Motion

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"


def run(name: str, *arguments: object) -> str:
    """What an example prints."""
    ended = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def frames_of(video: Path) -> int:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_every_example_is_run_here():
    source = Path(__file__).read_text()
    assert all(f'"{file.name}"' in source for file in EXAMPLES.glob("*.py"))


def test_score_files(tmp_path):
    printed = run("score_files.py", tmp_path)
    assert "reference" in printed and "corrected" in printed
    assert printed.count("P-FD") == 2
    assert len(list((tmp_path / "predicted").glob("*.npy"))) == 8


def test_render_motion(tmp_path):
    run("render_motion.py", tmp_path / "nod.mp4")
    assert frames_of(tmp_path / "nod.mp4") == 50


@pytest.mark.long
def test_rate_and_align(tmp_path, tiny_checkpoint):
    printed = run("rate_and_align.py", tiny_checkpoint, tmp_path / "aligned")
    losses = [float(line.split()[-1]) for line in printed.splitlines() if "loss" in line]
    assert losses[-1] < losses[0]
    assert (tmp_path / "aligned" / "model.safetensors").is_file()


def test_listen(tmp_path, tiny_checkpoint):
    speaker = tmp_path / "speaker.mp4"
    run("render_motion.py", speaker)
    printed = run("listen.py", tiny_checkpoint, speaker, tmp_path / "listener.npz")
    assert "0.2 s a step" in printed
    # It answers 2 s, and goes on as long as the next chunk would last.
    assert len(Motion.load(tmp_path / "listener.npz")) == 55
