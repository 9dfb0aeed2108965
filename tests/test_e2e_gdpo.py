"""`gdpo`, `dpo policy=flow` and `gdpo policy=vla` as a person starts them, very small."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rapport import load_policy
from tests.runs import finished_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[1]
DYAD = ROOT.parent / "shared" / "data" / "dualtalk_demo"
DELAYS = ("lead 0", "lead 4", "lead 12", "whole")
LEAN = [
    "corpus.train_clips=16",
    "corpus.validation_clips=4",
    "corpus.test_clips=8",
    "corpus.listeners=1",
    "corpus.seconds=2",
    "vae.steps=4",
    "flow.steps=4",
    "gdpo.estimator=gdpo",
    "gdpo.iterations=2",
    "gdpo.sync_every=2",
    "gdpo.group_size=2",
    "gdpo.batch_size=2",
    "learner.checkpoint_every=2",
    "learner.world_size=2",
    "learner.threads=1",
    "rollout.workers=1",
    "judge.windows=16",
    "judge.omegas=[2]",
    "judge.long_frames=96",
    "judge.clips=2",
    "render.workers=1",
    "tracking.system_metrics=false",
]


@pytest.fixture(scope="module")
def gdpo_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "gdpo"
    return folder, finished_run("gdpo", folder, *LEAN)


def test_gdpo_runs_from_the_corpus_to_the_judgement(gdpo_run):
    folder, summary = gdpo_run
    assert (summary["status"], summary["counts"]["gdpo_steps"], summary["counts"]["rollouts"]) == (
        "finished",
        4,
        16,
    )
    assert (
        summary["engines"]["gdpo_learner"]["world_size"] == 2
        and "tiny-t5" in summary["engines"]["encoders"]["text"]
    )
    metrics = summary["metrics"]
    assert set(metrics["judgement"]) == {
        "VAE",
        "others",
        "Regression",
        "mean face",
        "supervised",
        "supervised by Euler",
        "GDPO",
        "GDPO without text",
        "GDPO 4 evaluations",
        *(f"{name} {delay}" for name in ("supervised", "GDPO") for delay in DELAYS),
    }
    for row in metrics["judgement"].values():
        assert {
            "listen/unils/FDD_lids_apart",
            "listen/gdpo_paper/PDD",
            "listen/variance_ratio/expr",
            "speak/unils/LVE",
            "listen/P-FD/rot",
            "listen/rPCC/eyelid",
        } <= set(row)
        assert all(np.isfinite(value) for value in row.values())
    assert "listen/unils/FDD" in (folder / "judgement.md").read_text()
    crowds = set(metrics["judgement"]) - {"others"}
    assert set(metrics["likeness"]) == set(metrics["bands"]) == crowds
    assert {"mean", "low", "high"} <= set(metrics["judgement_change"]["listen/unils/PDD"])
    assert summary["counts"]["judged_listeners"] + summary["counts"]["listeners_left_out"] == 8
    videos = sorted((folder / "clips").glob("*.mp4"))
    report = (folder / "report.html").read_text()
    assert (
        len(videos) == 2
        and report.count("<video") == 2
        and "ground truth, supervised, GDPO" in report
    )
    assert all(
        title in report
        for title in (
            "How listeners move",
            "Held-out clips",
            "Training curves",
            "divergence from N(0, I)",
            "divergence from the supervised policy",
        )
    )
    lines = [
        json.loads(line) for line in (folder / "gdpo" / "steps.jsonl").read_text().splitlines()
    ]
    assert ["reward/expr" in line for line in lines] == [True, False] * 2
    assert lines[0]["ratio"] == pytest.approx(1, abs=1e-6)


@pytest.mark.long
@pytest.mark.skipif(not DYAD.is_dir(), reason="the real dyad is not here")
def test_gdpo_runs_on_the_real_dyad(tmp_path):
    """One track of FLAME motion, both people's sound: no partner motion, no prompt of a mood, no
    vertices.
    """
    keys = [key for key in LEAN if not key.startswith(("corpus", "gdpo.estimator"))]
    summary = finished_run(
        "gdpo",
        tmp_path / "run",
        "corpus.kind=dualtalk",
        f"corpus.root={DYAD}",
        "corpus.seconds=2",
        "roles=listener",
        *keys,
        "vae.batch_size=4",
        "flow.batch_size=4",
    )
    row = summary["metrics"]["after"]
    assert np.isfinite(row["listen/variance_ratio/expr"]) and "listen/unils/FDD" not in row
    assert not any("P-FD" in name for name in row), "absent is missing, not zero"
    assert list((tmp_path / "run" / "clips").glob("*.mp4"))
    assert "<video" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.long
def test_its_policy_is_distilled(gdpo_run, tmp_path):
    folder, _ = gdpo_run
    summary = finished_run(
        "distil",
        tmp_path / "run",
        f"imitation={folder}",
        "distil.steps=4",
        "distil.batch_size=4",
        "distil.windows=6",
        "distil.taught=4",
        "learner.world_size=1",
        "tracking.system_metrics=false",
    )
    assert summary["counts"]["answers"] == 6 and summary["counts"]["distil_steps"] == 4
    assert summary["engines"]["distil_learner"]["name"] == "deepspeed"
    assert set(summary["metrics"]["compare"]) == {
        f"{who}, {evaluations} evaluations"
        for who in ("teacher", "distilled")
        for evaluations in (2, 4)
    }
    same = summary["metrics"]["compare"]["teacher, 4 evaluations"]
    assert all(value == pytest.approx(1, abs=1e-4) for value in same.values()), "the teacher's own"
    distilled = load_policy(tmp_path / "run" / "distil" / "policy")
    aligned = load_policy(folder / "gdpo" / "policy")
    assert distilled.sampler.evaluations == 2 and aligned.sampler.evaluations == 10
    assert not torch.equal(distilled.flow.gain.weight, aligned.flow.gain.weight), "it learnt"


@pytest.mark.long
@pytest.mark.parametrize(
    ("aligned", "before", "policy"),
    [("false", "supervised", "flow"), ("true", "aligned before", "gdpo")],
)
def test_flow_dpo_aligns_the_same_policy_with_ratings(gdpo_run, tmp_path, aligned, before, policy):
    folder, _ = gdpo_run
    summary = finished_run(
        "dpo",
        tmp_path / "run",
        "policy=flow",
        f"imitation={folder}",
        f"aligned={aligned}",
        "rollout.workers=1",
        "rollout.prompts=12",
        "rollout.samples=2",
        "rollout.evaluations=2",
        "raters.workers=1",
        "raters.count=2",
        "dpo.epochs=1",
        "dpo.batch_size=4",
        "learner.world_size=1",
        "judge.windows=4",
        "judge.ablations=false",
        "judge.omegas=[2]",
        "judge.long_frames=96",
        "judge.evaluations=2",
        "judge.clips=1",
        "render.workers=1",
        "tracking.system_metrics=false",
    )
    assert summary["counts"]["candidates"] == 12 * 3 and summary["counts"]["ratings"] == 12 * 3 * 2
    assert (
        summary["engines"]["dpo_learner"]["name"] == "deepspeed"
        and "SIMULATED" in summary["engines"]["raters"]
    )
    assert "vae_learner" not in summary["engines"] and set(summary["metrics"]["judgement"]) == {
        "VAE",
        "others",
        "Regression",
        "mean face",
        before,
        f"{before} by Euler",
        "Flow-DPO",
    }
    assert f"{before}, Flow-DPO" in (tmp_path / "run" / "report.html").read_text()
    rows = summary["metrics"]["evaluation"]
    means = {name: row["simulated_rating"]["mean"] for name, row in rows.items()}
    change = summary["metrics"]["change"]["simulated_rating_change"]
    assert change["mean"] == pytest.approx(means["Flow-DPO"] - means[before])
    first = json.loads((tmp_path / "run" / "dpo" / "steps.jsonl").read_text().splitlines()[0])
    assert first["margin"] == pytest.approx(0, abs=1e-4), "nothing is learnt yet"
    assert summary["counts"]["contrast_pairs"] > 0
    assert Path(summary["artifacts"]["flow_policy"]) == folder / policy / "policy"


@pytest.mark.long
def test_gdpo_aligns_the_vla_with_its_own_fleet(tiny_corpus, tiny_checkpoint, tmp_path):
    summary = finished_run(
        "gdpo",
        tmp_path / "run",
        "policy=vla",
        "corpus.kind=parquet",
        f"corpus.root={tiny_corpus.path}",
        "corpus.seconds=1",
        f"sft.checkpoint={tiny_checkpoint}",
        "rollout.workers=1",
        "raters.workers=1",
        "raters.count=2",
        "gdpo.iterations=2",
        "gdpo.batch_size=2",
        "gdpo.group_size=2",
        "learner.world_size=1",
        "evaluation.prompts=4",
        "evaluation.bootstrap=100",
        "evaluation.clips=1",
        "render.workers=1",
        "render.size=64",
        "tracking.system_metrics=false",
    )
    assert (
        summary["engines"]["rollout"]["name"] == "vllm"
        and summary["counts"]["rollouts"] == 2 * 2 * 2 * 2
    )
    lines = [
        json.loads(line)
        for line in (tmp_path / "run" / "gdpo" / "steps.jsonl").read_text().splitlines()
    ]
    assert ["reward/expr" in line for line in lines] == [True, False] * 2
    for line in lines[::2]:
        assert line["ratio"] == pytest.approx(1, abs=1e-5), "on-policy after a refresh"
        assert 0 < line["mismatch_max"] < 1e-3 and line["truncated"] == 0
    assert set(summary["metrics"]["judgement"]) == {"SFT", "GDPO"}
    report = (tmp_path / "run" / "report.html").read_text()
    assert (
        "How listeners move" in report
        and report.count("<video") == 1
        and "ground truth, SFT, GDPO" in report
    )
    assert "listen/variance_ratio/jaw" in summary["metrics"]["after"]
