"""A ReactFace through imitation and both algorithms, as short as it goes."""

import av
import pytest

from rapport import load_policy
from rapport.policies.reactface.policy import LISTENS
from tests.aligned import SHORT, aligned, by_both_algorithms
from tests.runs import finished_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
OWN = [
    *("policy=reactface", "reactface.listening=4", "reactface.heard=4", "reactface.steps=4"),
    *("reactface.batch_size=4", "reactface.span=2"),
]


@by_both_algorithms
def test_a_reactface_is_aligned_judged_and_reported(recipe, keys, tiny_corpus, tmp_path):
    metrics, _ = aligned(recipe, tmp_path / "run", tiny_corpus, *OWN, *keys)
    before, after = metrics["compared"]
    assert (before, after) == ("ReactFace", f"ReactFace + {recipe.upper()}")
    heard, first, last = (
        load_policy(tmp_path / "run" / phase / "policy").model
        for phase in ("expect", "imitate", recipe)
    )
    weights, learnt = dict(heard.named_parameters()), dict(first.named_parameters())
    stays = {name for name, weight in weights.items() if weight.equal(learnt[name])}
    assert stays == {name for name in weights if name.partition(".")[0] in LISTENS}
    assert not first.head.weight.equal(heard.head.weight), "it learnt to react"
    assert not last.prior.equal(first.prior), "it learnt what pleases"
    assert last.head.weight.equal(first.head.weight), "what is made of z* stays"


@pytest.mark.long
def test_the_recipe_answers_each_speaker_several_times(tiny_corpus, tmp_path):
    folder = tmp_path / "run"
    root = f"corpus.root={tiny_corpus.path}"
    keys = [*OWN[1:], "evaluation.samples=3"]
    metrics = finished_run("reactface", folder, root, *SHORT, *keys, timeout=500)["metrics"]
    assert {"ReactFace", "ReactFace, shuffled", "mean face"} <= set(metrics["evaluation"])
    assert "share/expr" in metrics["movement"]["ReactFace"]
    [video] = (folder / "clips").glob("*.mp4")
    with av.open(str(video)) as container:
        frame = next(container.decode(video=0))
    assert frame.width / frame.height > 3, "the speaker, the recorded listener, three reactions"
    assert "ReactFace" in (folder / "report.html").read_text()


@pytest.mark.long
def test_a_part_is_left_out_and_what_it_was_for_is_said(tiny_corpus, tmp_path):
    folder = tmp_path / "run"
    root = f"corpus.root={tiny_corpus.path}"
    parts = "ablation.variants=[no SLBS, no expectation]"
    keys = [*OWN[1:], "evaluation.samples=2", "ablation.seeds=1", parts]
    short = [key for key in SHORT if not key.startswith(("evaluation.clips", "render."))]
    given = ["policy=reactface", root, *short, *keys]
    summary = finished_run("ablate", folder, *given, timeout=500)
    assert list(summary["metrics"]["ablation"]) == [*("Full", "no SLBS", "no expectation")]
    less = summary["parts"]["seed-0"]["metrics"]["full_less"]["no SLBS"]
    assert {"own_minus_another", "apart", "lively", "jerk", "jump"} <= set(less)
    policies = [
        load_policy(folder / "seed-0" / name / "imitate/policy") for name in ("full", "no-slbs")
    ]
    assert [each.model.sizes.synchronise for each in policies] == ["both", "none"]
    phases = [(folder / "seed-0" / name / "expect").is_dir() for name in ("full", "no-expectation")]
    assert phases == [True, False]
