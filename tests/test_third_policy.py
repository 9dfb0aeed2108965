"""A policy that nothing here knows of, one file of a hundred lines, through both algorithms."""

import math
from pathlib import Path

import pytest

from rapport import load_policy
from tests.runs import finished_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]
KEYS = [
    "policy=tests.gaussian:Gaussian",
    "corpus.kind=parquet",
    "corpus.seconds=1",
    "imitate.steps=4",
    "imitate.batch_size=4",
    "rollout.workers=1",
    "raters.workers=1",
    "raters.count=2",
    "cluster.preflight=false",
    "evaluation.prompts=4",
    "evaluation.bootstrap=100",
    "evaluation.clips=1",
    "render.workers=1",
    "render.size=64",
    "tracking.system_metrics=false",
]


def test_it_fits_into_a_hundred_lines():
    assert len((ROOT / "tests" / "gaussian.py").read_text().splitlines()) <= 100


@pytest.mark.parametrize(
    ("recipe", "keys"),
    [
        ("dpo", ["rollout.prompts=8", "rollout.samples=3", "dpo.batch_size=2", "render.videos=1"]),
        pytest.param(
            "gdpo",
            ["gdpo.iterations=2", "gdpo.batch_size=2", "gdpo.group_size=3"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_third_policy_is_aligned_judged_and_reported(recipe, keys, tiny_corpus, tmp_path):
    keys = [f"corpus.root={tiny_corpus.path}", *KEYS, *keys]
    summary = finished_run(recipe, tmp_path / "run", *keys, timeout=500)
    metrics = summary["metrics"]
    before, after = metrics["compared"]
    assert (before, after) == ("SFT", {"dpo": "SFT + DPO", "gdpo": "GDPO"}[recipe])
    assert {"ground truth", "Nearest Neighbour", before, after} <= set(metrics["evaluation"])
    assert set(metrics["judgement"]) == {before, after}
    assert math.isfinite(metrics["change"]["simulated_rating_change"]["mean"])
    report = (tmp_path / "run" / "report.html").read_text()
    assert "How listeners move" in report and f"ground truth, {before}, {after}" in report
    aligned = load_policy(tmp_path / "run" / recipe / "policy")
    first = load_policy(tmp_path / "run" / "imitate" / "policy")
    assert not aligned.mean.bias.equal(first.mean.bias), "it learnt"
    reactions = aligned.sample([aligned.encode(tiny_corpus.at("test", 0))], 2, [0])
    assert aligned.to_motion(reactions[0][1]).layout == tiny_corpus.layout
