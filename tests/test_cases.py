"""What people handed in and what once failed, as it lies beside this checkout: each as expected.

Sheets, motion files and corpora of it are in `tests/rewards/test_sheets.py`,
`tests/pipeline/test_motion_files.py` and `tests/pipeline/test_data_lengths.py`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runs import ROOT, environment, finished_run, pipeline_run

CASES = ROOT.parent / "shared" / "cases"
FEW = [
    "corpus.train_clips=16",
    "corpus.validation_clips=4",
    "corpus.test_clips=4",
    "corpus.listeners=1",
    "tracking.system_metrics=false",
]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout"),
]


@pytest.mark.parametrize(
    "case",
    ["moved_run_dir", "one_run_dir_twice", "resume_after_a_lost_node", "two_runs_at_once"],
)
def test_a_script_that_exits_0_when_mended(case, tmp_path):
    python = Path(sys.executable).parent
    found = subprocess.run(
        ["bash", CASES / case / "cmd", tmp_path],
        cwd=ROOT,
        env=environment() | {"PATH": f"{python}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("case", ["llama3_tokenizer", "tied_llama"])
def test_a_model_that_exits_0_when_it_can_be_used(case):
    """The scripts are of 0.1.0: the package had another name, and parts of a policy came singly."""
    parts = 'str(root / "llama"), str(root / "dino"), str(root / "siglip")'
    script = (
        (CASES / case / "check.py")
        .read_text()
        .replace("from policies.", "from rapport.policies.")
        .replace("import load_pretrained", "import PublishedParts, load_pretrained")
        .replace(parts, f"PublishedParts({parts})")
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def refused(*arguments) -> str:
    """The one line of a run that ends before it begins."""
    run = pipeline_run(*arguments, timeout=200)
    assert run.returncode == 2 and "Traceback" not in run.stdout, run.stdout
    assert "allow_pickle" not in run.stdout
    return run.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("protocol", ["lm_listener", "l2l"])
@pytest.mark.parametrize("kind", ["emoca", "vhap"])
def test_keys_of_trackers_are_no_clips(kind, protocol, tmp_path):
    folder = CASES / "npz_keys_as_clips"
    keys = ["--pred", folder / f"{kind}A.npz", "--target", folder / f"{kind}B.npz"]
    said = refused("evaluate", "--protocol", protocol, *keys, "--run-dir", tmp_path / "run")
    assert f"{kind}A.npz" in said and "--fps" in said


def test_a_copy_from_a_mac_is_scored(tmp_path):
    pred = tmp_path / "pred"
    shutil.copytree(CASES / "macos_sidecars" / "pred", pred)
    (pred / "._clip0_pred.npy").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    keys = ["--protocol", "lm_listener", "--pred", pred, "--target", pred]
    finished_run("evaluate", tmp_path / "run", *keys)


def test_a_head_of_no_bytes_is_named(tmp_path):
    head = CASES / "head_npz" / "FLAME2020.npz"
    said = refused("evaluate", f"head.path={head}", "--run-dir", tmp_path / "run")
    assert "FLAME2020.npz" in said and not (tmp_path / "run").exists()


def test_few_clips_are_described_without_an_astronomical_number(tmp_path):
    summary = finished_run("prepare", tmp_path / "run", *FEW)
    ratio = summary["metrics"]["regression_collapse"].get("variance_ratio")
    assert ratio is None or 0 <= ratio <= 1.5
    assert "NaN" not in (tmp_path / "run" / "summary.json").read_text()
    finished_run("prepare", tmp_path / "four", "corpus.train_clips=4", *FEW[1:])


def test_what_was_a_traceback_is_a_line(tmp_path):
    scalar = CASES / "tracebacks" / "scalar.npy"
    pair = ["--pred", scalar, "--target", scalar]
    assert "scalar.npy" in refused("evaluate", *pair, "--run-dir", tmp_path / "run")
    clips = tmp_path / "clips.npy"
    np.save(clips, np.zeros((2, 100, 56), np.float32))
    pair = ["--pred", clips, "--target", clips]
    assert "folder" in refused("evaluate", *pair, "--json", tmp_path, "--run-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_typo_does_not_burn_the_run_directory(tmp_path):
    clips = tmp_path / "clips.npy"
    np.save(clips, np.random.default_rng(0).normal(size=(4, 100, 56)).astype(np.float32) / 10)
    run = ["--run-dir", tmp_path / "run"]
    assert "nosuch.npy" in refused("evaluate", "--pred", "nosuch.npy", "--target", clips, *run)
    assert "nosuch" in refused("evaluate", "checkpoint=nosuch", *run)
    finished_run("evaluate", tmp_path / "run", "--pred", clips, "--target", clips)


def test_candidates_that_were_moved_are_read_where_they_are(tmp_path):
    """Or named where what they were made from is gone, before Ray starts."""
    keys = ["rollout.engine=hf", "rollout.prompts=4", "rollout.samples=2", "render.videos=12"]
    keys += [
        "sft.steps=2",
        "pretraining.steps=2",
        "rollout.workers=1",
        "render.size=64",
        "corpus.seconds=2",
        *FEW,
    ]
    finished_run("rollout", tmp_path / "here" / "candidates", *keys)
    moved = tmp_path / "there"
    shutil.move(tmp_path / "here", moved)
    summary = json.loads((moved / "candidates" / "summary.json").read_text())
    assert not any(Path(path).is_absolute() for path in summary["artifacts"].values())
    learn = ["dpo.batch_size=2", "dpo.epochs=1", "rollout.engine=hf", "evaluation.prompts=4"]
    learn += ["evaluation.clips=1", "render.size=64", "rollout.workers=1", "evaluation.samples=1"]
    given = f"candidates={moved / 'candidates'}"
    finished_run("dpo", tmp_path / "dpo", given, *learn, "tracking.system_metrics=false")
    (moved / "candidates" / "prepare" / "corpus").rename(tmp_path / "corpus")
    said = refused("dpo", given, *learn, "--run-dir", tmp_path / "again")
    assert "corpus" in said and not (tmp_path / "again").exists()
