"""A ReactFace through imitation and both algorithms, as short as it goes."""

import math

import pytest

from rapport import load_policy
from tests.runs import finished_run
from tests.test_third_policy import KEYS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
OWN = ["policy=reactface", "reactface.steps=4", "reactface.batch_size=4", "reactface.span=2"]
KEYS = [*OWN, *(key for key in KEYS if not key.startswith(("policy=", "imitate.")))]


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
def test_a_reactface_is_aligned_judged_and_reported(recipe, keys, tiny_corpus, tmp_path):
    keys = [f"corpus.root={tiny_corpus.path}", *KEYS, *keys]
    summary = finished_run(recipe, tmp_path / "run", *keys, timeout=500)
    metrics = summary["metrics"]
    before, after = metrics["compared"]
    assert (before, after) == ("ReactFace", f"ReactFace + {recipe.upper()}")
    assert {"ground truth", "Nearest Neighbour", before, after} <= set(metrics["evaluation"])
    assert math.isfinite(metrics["change"]["simulated_rating_change"]["mean"])
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"ground truth, {before}, {after}" in report
    aligned, first = (
        load_policy(tmp_path / "run" / phase / "policy").model for phase in (recipe, "imitate")
    )
    assert not aligned.prior.equal(first.prior), "it learnt"
    assert aligned.head.weight.equal(first.head.weight), "what is made of z* stays"
