"""A policy through DPO and GDPO, as short as they go, and what any such run leaves."""

import math

import pytest

from tests.runs import finished_run

SHORT = [
    "corpus.kind=parquet",
    "corpus.seconds=1",
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
by_both_algorithms = pytest.mark.parametrize(
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


def aligned(recipe, folder, corpus, *keys):
    """The metrics and the report of a run that judged the policy before and after."""
    root = f"corpus.root={corpus.path}"
    metrics = finished_run(recipe, folder, root, *SHORT, *keys, timeout=500)["metrics"]
    before, after = metrics["compared"]
    assert {"ground truth", "Nearest Neighbour", before, after} <= set(metrics["evaluation"])
    assert math.isfinite(metrics["change"]["simulated_rating_change"]["mean"])
    report = (folder / "report.html").read_text()
    assert f"ground truth, {before}, {after}" in report
    return metrics, report
