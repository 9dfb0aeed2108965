"""A disk that is full: old files stay, nothing half written takes their place, an error says so.

The limit on file sizes stands for the disk: past it, the kernel refuses to write, as it does when
no space is left."""

import os
import resource
import signal
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pytest

from rapport.files import write_atomic
from rapport.pipeline.data.candidates import Candidate, write_candidates
from rapport.pipeline.objectives.dpo import write_reference
from rapport.policies.head.video import write_mp4
from rapport.policies.tables import write_table
from rapport.policies.vla.loading import load_checkpoint, save_checkpoint
from rapport.rewards.ratings.ratings import Rating, write_ratings

LIMIT = 2000  # bytes
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 256, 4000).astype(np.int32)


def table(folder):
    write_table(
        folder / "a",
        ({"x": TOKENS.tolist()} for _ in range(9)),
        pa.schema({"x": pa.list_(pa.int32())}),
    )


def candidates(folder):
    write_candidates(
        folder / "a",
        [Candidate("p", str(i), "policy", RNG.permutation(TOKENS), None, 0, 0) for i in range(9)],
    )


def ratings(folder):
    write_ratings(
        folder / "a.csv", [Rating("p", str(i), "r", 1.0, 2.0, 3.0, 4.0) for i in range(999)]
    )


def reference(folder):
    write_reference(folder / "a", RNG.normal(size=(999, 2)).tolist(), {"weights": "w"})


def text(folder):
    write_atomic(folder / "a", "x" * 9999)


def video(folder):
    write_mp4(folder / "a.mp4", RNG.integers(0, 255, (25, 64, 64, 3)).astype(np.uint8), 25.0, None)


def checkpoint(folder):
    policy = load_checkpoint(folder.parent / "policy")
    save_checkpoint(policy.model, policy.tokenizer, policy.actions, folder / "a")


def on_a_full_disk(write, folder, answers):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    try:
        write(folder)
        answers.put(None)
    except Exception as error:
        answers.put(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("write", [table, candidates, ratings, reference, text, video, checkpoint])
def test_what_was_there_stays_and_nothing_half_written_comes(write, tmp_path, tiny_checkpoint):
    (tmp_path / "policy").symlink_to(tiny_checkpoint)
    folder = tmp_path / "out"
    folder.mkdir()
    name = {"ratings": "a.csv", "video": "a.mp4"}.get(write.__name__, "a")
    if write is checkpoint:
        (folder / name).mkdir()
        (folder / name / "kept").write_text("old")
    else:
        (folder / name).write_text("old")
    context = get_context("fork")
    answers = context.Queue()
    process = context.Process(target=on_a_full_disk, args=(write, folder, answers))
    process.start()
    error = answers.get(timeout=60)
    process.join()
    assert error is not None, "the write went through"
    kept = folder / name / "kept" if write is checkpoint else folder / name
    assert kept.read_text() == "old"
    assert os.listdir(folder / name) == ["kept"] if write is checkpoint else True
