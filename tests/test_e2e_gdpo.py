"""The recipe `gdpo` as a person starts it, very small. That a killed learner goes on: actors/test_gdpo_learner.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]
LEAN = ["corpus.train_clips=16", "corpus.test_clips=8", "corpus.seconds=2", "corpus.frames=1", "vae.steps=4",
        "flow.steps=4", "gdpo.iterations=2", "gdpo.sync_every=2", "gdpo.group_size=2", "gdpo.batch_size=2",
        "learner.checkpoint_every=2", "rollout.workers=1", "judge.windows=4", "judge.omegas=[2]",
        "judge.long_frames=96", "tracking.system_metrics=false"]


def test_gdpo_runs_from_the_corpus_to_the_judgement(tmp_path):
    folder = tmp_path / "run"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.run([sys.executable, "-m", "pipeline.run", "gdpo", "--run-dir", str(folder), *LEAN], cwd=ROOT,
                             env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500)
    assert process.returncode == 0, process.stdout[-6000:]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["counts"]["gdpo_steps"], summary["counts"]["rollouts"]) == ("finished", 4, 16)
    assert summary["engines"]["gdpo_learner"]["world_size"] == 2 and "tiny-t5" in summary["engines"]["encoders"]["text"]
    metrics = summary["metrics"]
    assert set(metrics["judgement"]) == {"VAE", "supervised", "GDPO"}
    for row in metrics["judgement"].values():
        assert {"listen/unils/FDD", "listen/gdpo_paper/PDD", "listen/variance_ratio/expr", "speak/unils/LVE",
                "listen/P-FD/rot", "listen/rPCC/eyelid"} <= set(row)
        assert all(np.isfinite(value) for value in row.values())
    assert "listen/unils/FDD" in (folder / "judgement.md").read_text()
    lines = [json.loads(line) for line in (folder / "gdpo" / "steps.jsonl").read_text().splitlines()]
    assert ["reward/expr" in line for line in lines] == [True, False] * 2
    assert lines[0]["ratio"] == pytest.approx(1, abs=1e-6)
