"""Whole recipes as a person starts them, on the real engines, with very small settings."""

import csv
import json
import os
import signal
import time
from pathlib import Path

import av
import numpy as np
import pytest
from mlflow import MlflowClient

from rapport.pipeline.data.candidates import GROUND_TRUTH, read_candidates
from rapport.pipeline.run import main
from rapport.policies.policy import weight_digest
from rapport.policies.tables import read_table
from rapport.policies.vla.loading import load_checkpoint
from rapport.rewards.ratings.ratings import CRITERIA
from tests.runs import begun, finished, pipeline_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[1]
DYAD = ROOT.parent / "shared" / "data" / "dualtalk_demo"
SMALL = [
    "sft.steps=4",
    "pretraining.steps=4",
    "rollout.prompts=16",
    "rollout.samples=2",
    "dpo.epochs=1",
    "dpo.batch_size=4",
    "dpo.contrast=0.5",
    "evaluation.prompts=8",
    "evaluation.samples=1",
    "evaluation.clips=1",
    "render.videos=2",
    "render.size=64",
    "corpus.seconds=2",
]
# Start-up is most of a small run.
LEAN = ["rollout.workers=1", "raters.workers=1", "render.workers=1", "cluster.preflight=false"]
PHASES = ["prepare", "pretraining", "sft", "rollout", "render", "rate", "pair", "dpo", "curve"]
PHASES += ["judge", "clips"]


@pytest.fixture(scope="module")
def dpo_run(ray_cluster, tmp_path_factory):
    """A small main job, submitted: its folder, summary and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "dpo"
    process = ray_cluster.submit(
        "python",
        "-m",
        "pipeline.run",
        "dpo",
        "corpus.train_clips=32",
        "corpus.validation_clips=4",
        "corpus.test_clips=16",
        "corpus.listeners=1",
        *SMALL,
        "learner.world_size=2",
        "learner.threads=1",
        "raters.workers=1",
        "render.workers=1",
        "--run-dir",
        str(folder),
    )
    assert process.returncode == 0, process.stdout[-6000:]
    assert "cluster at" in process.stdout and "succeeded" in process.stdout
    assert f"summary: {folder / 'summary.json'}" in process.stdout
    return folder, json.loads((folder / "summary.json").read_text()), process.stdout


def own_keys(*sections) -> list[str]:
    """Those of SMALL that belong to `sections`."""
    return [key for key in SMALL if key.split(".")[0] in sections]


def on_policy_of(folder: Path) -> list[str]:
    """Keys that take corpus and imitating policy of another run."""
    return [
        "corpus.kind=parquet",
        f"corpus.root={folder / 'prepare' / 'corpus'}",
        "corpus.seconds=2",
        f"sft.checkpoint={folder / 'sft' / 'policy'}",
    ]


def frames_of(path: Path) -> tuple[int, int]:
    """Number and width of the frames of a video that decodes to its end."""
    with av.open(str(path)) as container:
        widths = [frame.width for frame in container.decode(video=0)]
    return len(widths), widths[0]


def test_the_summary_keeps_its_contract(dpo_run):
    folder, summary, _ = dpo_run
    assert (summary["recipe"], summary["status"], summary["seed"]) == ("dpo", "finished", 0)
    assert "error" not in summary and {"ray", "torch", "deepspeed", "mlflow"} <= set(
        summary["versions"]
    )
    engines = summary["engines"]
    assert engines["rollout"]["name"] == "vllm" and engines["rollout"]["workers"] == 2
    assert engines["rollout"]["version"] and engines["rollout"]["canary_gap"] < 1e-3
    for learner in ("sft_learner", "dpo_learner"):
        assert engines[learner]["name"] == "deepspeed"
        assert (engines[learner]["zero_stage"], engines[learner]["world_size"]) == (2, 2)
    assert "SIMULATED" in engines["raters"] and engines["render"]["codec"] == "libx264"
    assert {*PHASES, "fleet_start", "total"} <= set(summary["timings_s"])
    counts = summary["counts"]
    assert (counts["train_clips"], counts["test_clips"], counts["sft_steps"]) == (32, 16, 4)
    assert (
        counts["rollout_prompts"] == 16 and counts["candidates"] == 16 * 3
    )  # the recorded listener too
    assert counts["action_tokens"] == 32 * 560 and counts["ratings"] == 16 * 3 * 5
    assert 1 <= counts["dpo_steps"] <= 8
    assert counts["contrast_pairs"] == 2 * round(counts["rated_pairs"] / 2), "half, in twins"


def test_metrics_are_there_before_and_after(dpo_run):
    metrics = dpo_run[1]["metrics"]
    for moment in ("before", "after"):
        row = metrics[moment]
        for name in (
            "l2",
            "fd",
            "p_fd",
            "variation",
            "diversity",
            "l2_affect",
            "truth_affect_error",
        ):
            assert np.isfinite(row[name]) and row[name] >= 0, name
        assert 1 <= row["simulated_rating"]["low"] <= row["simulated_rating"]["high"] <= 5
    change = metrics["change"]["simulated_rating_change"]
    gained = (
        metrics["after"]["simulated_rating"]["mean"] - metrics["before"]["simulated_rating"]["mean"]
    )
    assert change["mean"] == pytest.approx(gained, abs=1e-6) and change["n"] == 8
    assert metrics["before"]["l2"] != metrics["after"]["l2"]
    assert set(metrics["evaluation"]) == {
        "ground truth",
        "Random",
        "Nearest Neighbour",
        "Mirror",
        "mean face",
        "face at rest",
        "mirror, late",
        "mirror less own mean",
        "words",
        "words + mirror",
        "bad if either is",
        "oracle",
        "SFT",
        "SFT, two constants",
        "SFT, shuffled",
        "SFT + DPO",
    }
    assert metrics["evaluation"]["ground truth"]["l2"] < 1e-6
    assert 0 <= metrics["dpo"]["accuracy"] <= 1 and np.isfinite(metrics["sft"]["loss"])


def test_artefacts_exist_and_can_be_used(dpo_run):
    folder, summary, _ = dpo_run
    artifacts = {name: folder / path for name, path in summary["artifacts"].items()}
    assert all(path.exists() and path.is_relative_to(folder) for path in artifacts.values())
    assert (
        load_checkpoint(artifacts["dpo_policy"]).actions.digest
        == load_checkpoint(artifacts["sft_policy"]).actions.digest
    )
    groups = read_candidates(artifacts["candidates"])
    assert len(groups) == 16
    for group in groups.values():
        assert sorted(c.source for c in group) == [GROUND_TRUTH, "policy", "policy"]
    videos = sorted(artifacts["render_videos"].glob("*.mp4"))
    assert len(videos) == 2 and [frames_of(video) for video in videos] == [(50, 128)] * 2
    [clip] = artifacts["clips_videos"].glob("*.mp4")
    assert frames_of(clip) == (50, 4 * 64)  # speaker, ground truth, SFT, SFT + DPO


def test_the_terminal_tells_the_story(dpo_run):
    folder, _, printed = dpo_run
    assert f"rapport dpo: {folder}" in printed
    for text in (
        "[sft]",
        "[rollout]",
        "[rate]",
        "SIMULATED",
        "[pair]",
        "[dpo]",
        "canary gap",
        "simulated raters, of 5:",
    ):
        assert text in printed, text
    ours = [
        line for line in printed.splitlines() if "PlacementGroupCleaner" not in line
    ]  # Ray's, where time is short
    assert not any("Traceback" in line for line in ours)


def mlflow_runs(folder: Path):
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rapport")
    parent = client.get_run((folder / "mlflow_run_id").read_text())
    nested = client.search_runs(
        [experiment.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    return client, parent, {run.info.run_name: run for run in nested}


def test_mlflow_has_a_parent_and_a_run_per_phase(dpo_run):
    client, parent, nested = mlflow_runs(dpo_run[0])
    assert parent.info.status == "FINISHED" and parent.data.params["dpo.batch_size"] == "4"
    assert "sft_dpo/simulated_rating" in parent.data.metrics
    assert any(name.startswith("system/") for name in parent.data.metrics)
    assert set(nested) == set(PHASES) and {run.info.status for run in nested.values()} == {
        "FINISHED"
    }
    steps = client.get_metric_history(nested["sft"].info.run_id, "loss")
    assert [m.step for m in steps] == [1, 2, 3, 4]
    assert "accuracy" in nested["dpo"].data.metrics


@pytest.mark.long
@pytest.mark.skipif(not DYAD.is_dir(), reason="the real dyad is not here")
def test_the_main_job_runs_on_the_real_dyad(tmp_path):
    process = pipeline_run(
        "dpo",
        "corpus.kind=dualtalk",
        f"corpus.root={DYAD}",
        "corpus.stride=1",
        *SMALL,
        "sft.batch_size=4",
        "dpo.batch_size=2",
        "rollout.prompts=8",
        *LEAN,
        "--run-dir",
        tmp_path / "dyad",
    )
    summary = finished(process, tmp_path / "dyad")
    assert summary["counts"]["train_clips"] == 8 and summary["counts"]["dpo_steps"] >= 1
    row = summary["metrics"]["after"]
    assert row["l2"] > 0 and row["p_fd"] is None and row["l2_affect"] is None, (
        "absent is missing, not zero"
    )
    assert row["truth_affect_error"] is None and row["simulated_empathy"] is None
    assert "Mirror" not in summary["metrics"]["evaluation"]
    assert any("no empathy and no appropriateness" in text for text in summary["warnings"])


@pytest.mark.long
def test_sheets_that_people_filled_in_are_learned_from_by_a_submitted_job(
    dpo_run, ray_cluster, tmp_path
):
    """A package is written, two people rate it without agreeing, the policy is aligned on what they
    said.
    """
    folder, _, _ = dpo_run
    package, run = tmp_path / "package", tmp_path / "run"
    assert (
        main(
            [
                "rollout",
                *own_keys("rollout", "render"),
                *on_policy_of(folder),
                "rollout.workers=1",
                "rollout.engine=hf",
                "rollout.prompts=8",
                "render.videos=24",
                "--run-dir",
                str(package),
            ]
        )
        == 0
    )
    hand_out = package / "package" / "for_raters"
    assert "empathy" in (hand_out / "INSTRUCTIONS.md").read_text()
    with (hand_out / "sheet.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {f"{row['video']}.mp4" for row in rows} == {
        video.name for video in (hand_out / "videos").iterdir()
    }
    (tmp_path / "sheets").mkdir()
    rng = np.random.default_rng(0)
    for rater in ("annaliese", "bert"):
        with (tmp_path / "sheets" / f"{rater}.csv").open("w") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                row | {"rater": rater} | {name: rng.integers(1, 6) for name in CRITERIA}
                for row in rows
            )
    process = ray_cluster.submit(
        "python",
        "-m",
        "pipeline.run",
        "dpo",
        *own_keys("dpo", "evaluation"),
        "render.size=64",
        *LEAN,
        f"candidates={package}",
        f"ratings={tmp_path / 'sheets'}",
        "--run-dir",
        str(run),
    )
    assert process.returncode == 0, process.stdout[-4000:]
    assert "cluster at" in process.stdout and "succeeded" in process.stdout
    found = json.loads((run / "summary.json").read_text())
    assert found["status"] == "finished" and found["engines"]["rollout"]["name"] == "vllm"
    assert found["engines"]["raters"] == "2 people"
    assert "WARNING: empathy: raters hardly agree" in process.stdout
    assert "sft_learner" not in found["engines"] and found["counts"]["ratings"] == 48
    assert found["survey"]["raters"] == {"rater-1": 24, "rater-2": 24}
    assert not any(b"annaliese" in path.read_bytes() for path in run.rglob("*") if path.is_file())


def test_a_submitted_job_that_fails_says_so(ray_cluster, tmp_path):
    process = ray_cluster.submit("python", "-m", "pipeline.run", "prepare", "corpus.train_clip=8")
    assert process.returncode != 0
    assert (
        "unknown key 'corpus.train_clip'" in process.stdout
        and "corpus.train_clips" in process.stdout
    )


def test_a_job_can_be_left_alone_and_asked_about(ray_cluster):
    submitted = ray_cluster.submit(
        "python",
        "-m",
        "pipeline.run",
        "prepare",
        "--print-config",
        options=("--no-wait", "--submission-id", "left-alone"),
    )
    assert submitted.returncode == 0 and "train_clips" not in submitted.stdout
    deadline = time.monotonic() + 120
    while "SUCCEEDED" not in (status := ray_cluster.job("status", "left-alone").stdout.upper()):
        assert "FAILED" not in status and time.monotonic() < deadline, status
        time.sleep(0.5)
    assert "train_clips: 1536" in ray_cluster.job("logs", "left-alone").stdout


@pytest.mark.long
def test_a_node_lost_during_rollouts_changes_no_candidate(ray_cluster, dpo_run, tmp_path):
    """Two raylets, an engine on each; one is killed, the other does its work."""
    folder, _, _ = dpo_run
    node = ray_cluster.add(
        f"--address={ray_cluster.address}", "--node-ip-address=127.0.0.1", "--num-cpus=2"
    )
    text = ray_cluster.run_and_kill(
        node,
        lambda line: line.startswith("[rollout] started"),
        "rollout",
        *own_keys("rollout", "render"),
        *on_policy_of(folder),
        f"cluster.address={ray_cluster.address}",
        "rollout.cpus=1.5",
        "rollout.batch_prompts=2",
        "render.videos=3",
        "render.workers=1",
        "--run-dir",
        str(tmp_path / "run"),
    )
    assert "worker" in text and "was lost" in text
    tables = [
        read_candidates(run / "rollout" / "candidates.parquet")
        for run in (folder, tmp_path / "run")
    ]
    answers, others = (
        {
            (prompt, c.candidate_id): c.actions.tolist()
            for prompt, group in table.items()
            for c in group
        }
        for table in tables
    )
    assert answers == others
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < summary["timeline"]["idle_share"] < 1 and summary["timeline"]["engine_s"] > 0


@pytest.mark.long
def test_a_second_round_goes_on_from_the_first(dpo_run, tmp_path):
    folder, _, _ = dpo_run
    summary = finished(
        pipeline_run(
            "dpo",
            *SMALL,
            *LEAN,
            *on_policy_of(folder),
            "dpo.rounds=2",
            "--run-dir",
            tmp_path / "run",
        ),
        tmp_path / "run",
    )
    curve = summary["metrics"]["curve"]
    assert [row["round"] for row in curve][-1] == 2 and curve[0]["step"] == 0
    tables = [
        read_table(run / "pair" / "pairs.arrow").to_list() for run in (folder, tmp_path / "run")
    ]
    assert tables[0] == tables[1]
    policies = [
        load_checkpoint(tmp_path / "run" / name / "policy").model for name in ("dpo", "dpo-2")
    ]
    assert len({weight_digest(policy.state_dict()) for policy in policies}) == 2


@pytest.mark.long
def test_a_run_killed_in_sft_goes_on_to_the_same_policy(dpo_run, tmp_path):
    """`kill -9` of the whole recipe, then --resume; the main job's SFT went through."""
    whole, killed = dpo_run[0] / "sft", tmp_path / "killed" / "sft"
    corpus = [key for key in SMALL if key.startswith("corpus")]
    process = begun(
        "sft",
        "corpus.train_clips=32",
        "corpus.validation_clips=4",
        "corpus.test_clips=16",
        "corpus.listeners=1",
        *corpus,
        "sft.steps=4",
        "pretraining.steps=4",
        "learner.checkpoint_every=2",
        "--run-dir",
        tmp_path / "killed",
    )
    steps, deadline = killed / "steps.jsonl", time.monotonic() + 300
    while not (steps.is_file() and len(steps.read_text().splitlines()) >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished(pipeline_run("sft", "--run-dir", tmp_path / "killed", "--resume"), tmp_path / "killed")
    assert steps.read_text() == (whole / "steps.jsonl").read_text(), "every number of every step"
    digests = {
        weight_digest(load_checkpoint(folder / "policy").model.state_dict())
        for folder in (whole, killed)
    }
    assert len(digests) == 1
