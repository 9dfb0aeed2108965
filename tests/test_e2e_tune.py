"""The recipe `tune` as a person starts it, very small: killed after its first trial, resumed, its
best config taken.
"""

import json
import os
import signal
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from rapport.pipeline.config import load_config
from rapport.pipeline.settings import DpoOfVla
from tests.runs import begun, finished, pipeline_run

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]
LEAN = [
    "rollout.prompts=8",
    "rollout.samples=2",
    "dpo.epochs=1",
    "dpo.batch_size=4",
    "dpo.contrast=0",
    "evaluation.prompts=4",
    "corpus.kind=parquet",
    "corpus.seconds=1",
    "rollout.workers=1",
    "raters.workers=1",
    "cluster.preflight=false",
    "tracking.system_metrics=false",
    "tune.space.dpo.beta=grid(0.1, 1)",
]


def test_a_killed_sweep_goes_on_and_repeats_no_finished_trial(
    tiny_corpus, tiny_checkpoint, tmp_path
):
    folder = tmp_path / "run"
    given = [f"corpus.root={tiny_corpus.path}", f"sft.checkpoint={tiny_checkpoint}"]
    process = begun("tune", "dpo", "--run-dir", folder, *LEAN, *given)
    first = folder / "trials" / "dpo.beta=0.1"
    deadline = time.monotonic() + 300
    while not (first / "phases" / "judge.json").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    written = [(first / "phases" / f"{name}.json").stat().st_mtime_ns for name in ("dpo", "judge")]
    finished(pipeline_run("tune", "dpo", "--run-dir", folder, "--resume", timeout=500), folder)
    assert written == [
        (first / "phases" / f"{name}.json").stat().st_mtime_ns for name in ("dpo", "judge")
    ]
    found = json.loads((folder / "tune.json").read_text())
    assert {t["name"]: t["status"] for t in found["trials"]} == {
        "dpo.beta=0.1": "finished",
        "dpo.beta=1": "finished",
    }
    assert all(
        t["metrics"]["kl"] > 0 and 1 <= t["metrics"]["simulated_rating"] <= 5
        for t in found["trials"]
    )
    assert found["baseline"]["kl"] == pytest.approx(0, abs=1e-4)
    assert len(list(folder.glob("reference-*.parquet"))) == 1, "reference log-probs are shared"
    for file in (folder / "charts").iterdir():
        ElementTree.parse(file)
    best = load_config(DpoOfVla, folder / "best.yaml", [])
    assert f"dpo.beta={best.dpo.beta:g}" == found["best"] and best.sft.checkpoint == tiny_checkpoint
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["counts"]["trials"] == 2
