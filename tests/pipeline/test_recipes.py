"""What of the recipes needs no Ray: choices, layouts, rows of the table, the judge's books."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rapport.pipeline.data.candidates import Candidate
from rapport.pipeline.data.corpora import open_corpus
from rapport.pipeline.data.store import CorpusError, load_truth
from rapport.pipeline.objectives.settings import FlowGdpoConfig
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import (
    DpoOfFlow,
    DpoOfVla,
    EvaluateOfFlow,
    GdpoOfFlow,
    JudgedOfVla,
    OfVla,
)
from rapport.pipeline.steps import judging, sampling
from rapport.pipeline.steps.corpus import choose, require_splits
from rapport.pipeline.steps.curve import judged_at, on_validation
from rapport.pipeline.steps.imitation_vla import action_layout, untrained_vla
from rapport.pipeline.steps.judging import Judge, MethodRow, tabulate
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.movement import HeldOut
from rapport.pipeline.steps.preferences import pair_rows, watched
from rapport.pipeline.steps.sampling import earlier
from rapport.pipeline.steps.settings import CurveConfig, EvaluationConfig
from rapport.policies.flow.rollouts import NoisyWindow, PaperSde
from rapport.policies.motion import Layout, LayoutError
from rapport.policies.policy import weight_digest
from rapport.policies.vla.settings import ActionConfig, VlaConfig
from rapport.rewards.ratings.pairs import Pair
from rapport.rewards.ratings.scores import ScoreConfig
from tests.pipeline.bare import bare_run
from tests.pipeline.graders import Graders


def test_choice_of_clips_follows_the_seed(tiny_corpus):
    ids = tiny_corpus.clip_ids("train")
    chosen = choose(tiny_corpus, "train", 5, seed=0)
    assert (
        len(set(chosen)) == 5
        and set(chosen) <= set(ids)
        and chosen == choose(tiny_corpus, "train", 5, seed=0)
    )
    assert choose(tiny_corpus, "train", 3, seed=0) == chosen[:3]
    assert choose(tiny_corpus, "train", 8, seed=1) != choose(tiny_corpus, "train", 8, seed=0)
    assert sorted(choose(tiny_corpus, "train", 99, seed=0)) == sorted(ids)


def test_the_action_layout_takes_rotation_from_where_the_corpus_has_it():
    rotating = Layout((("expr", 50), ("jaw", 3), ("neck", 3), ("rot", 3)), 25, "builtin")
    nodding = Layout((("expr", 50), ("neck", 3), ("jaw", 3)), 25, "flame2020")
    assert action_layout(ActionConfig(), rotating).groups == (("expr", 50), ("rot", 3), ("jaw", 3))
    assert action_layout(ActionConfig(), nodding).groups == (("expr", 50), ("neck", 3), ("jaw", 3))
    assert action_layout(ActionConfig(head="neck", expr_dims=7), rotating).groups == (
        ("expr", 7),
        ("neck", 3),
        ("jaw", 3),
    )
    with pytest.raises(LayoutError, match="50 columns here, 60 were asked for"):
        action_layout(ActionConfig(expr_dims=60), nodding)
    with pytest.raises(LayoutError, match="no group 'rot'"):
        action_layout(ActionConfig(head="rot"), nodding)


def test_the_initial_policy_fits_the_corpus_and_the_config(tiny_corpus):
    config = VlaConfig(
        hidden=32,
        layers=1,
        heads=1,
        kv_heads=1,
        vision_hidden=16,
        text_tokens=4,
        vocabulary=600,
        action=ActionConfig(expr_dims=5),
    )
    recipe = OfVla(vla=config, corpus={"seconds": 1.0}, seed=3)
    policy = untrained_vla(recipe, tiny_corpus)
    model, tokenizer, actions = policy.model, policy.tokenizer, policy.actions
    assert actions.space.layout.groups == (("expr", 5), ("rot", 3), ("jaw", 3))
    assert (model.config.frames, model.config.image_size, model.config.action_steps) == (1, 28, 5)
    assert (
        len(tokenizer) == 600
        and actions.first_token == 344
        and model.config.text_config.num_hidden_layers == 1
    )
    again = untrained_vla(recipe, tiny_corpus).model
    other = untrained_vla(recipe.model_copy(update={"seed": 4}), tiny_corpus).model
    digests = [weight_digest(m.state_dict()) for m in (model, again, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("kind", ["dualtalk", "lm_listener", "parquet"])
def test_a_corpus_without_a_root_is_refused(kind):
    config = SimpleNamespace(kind=kind, root=None)
    with pytest.raises(CorpusError, match=f"corpus.kind={kind} needs corpus.root"):
        open_corpus(config, None)


def test_what_an_earlier_run_left_is_found_or_named(tmp_path):
    with pytest.raises(RunError, match="no summary.json there"):
        earlier(tmp_path, "corpus")
    artifacts = {"corpus": "prepare/corpus", "sft_policy": str(tmp_path.parent / "gone")}
    (tmp_path / "summary.json").write_text(json.dumps({"artifacts": artifacts}))
    (tmp_path / "prepare" / "corpus").mkdir(parents=True)
    assert earlier(tmp_path, "corpus") == tmp_path / "prepare" / "corpus"
    with pytest.raises(RunError, match="sft_policy is no longer at .*gone"):
        earlier(tmp_path, "sft_policy")
    with pytest.raises(RunError, match="no 'candidates'.*'corpus'"):
        earlier(tmp_path, "candidates")


def test_a_corpus_without_a_split_says_how_to_get_one(tiny_corpus):
    require_splits(tiny_corpus, ["validation", "test"])
    lacking = SimpleNamespace(path="c", splits=["test", "train"])
    with pytest.raises(RunError, match="c has no validation split, only test, train.*Write one"):
        require_splits(lacking, {"test", "validation"})


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_prompts_are_of_the_split_that_is_judged(tiny_corpus, tiny_checkpoint, split):
    config = JudgedOfVla(evaluation={"split": split, "prompts": 3})
    held_out = HeldOut.from_corpus(config, Imitated(tiny_corpus, tiny_checkpoint))
    assert {window.clip_id for window in held_out.windows} <= set(tiny_corpus.clip_ids(split))


def test_the_curve_is_judged_on_validation_whatever_is_reported():
    config = on_validation(DpoOfVla(), CurveConfig(prompts=7, samples=3))
    assert config.evaluation.samples == 3
    assert (config.evaluation.split, config.evaluation.prompts) == ("validation", 7)
    config = on_validation(DpoOfFlow(), CurveConfig(prompts=7))
    assert (config.evaluation.split, config.judge.windows) == ("validation", 7)


def test_a_point_of_the_curve_is_what_the_judge_says_of_the_policy():
    policies = [(0, Path("sft")), (24, Path("half"))]
    rows = judged_at(policies, lambda folder: {"rating": float(len(folder.name))})
    assert rows == [{"step": 0, "rating": 3.0}, {"step": 24, "rating": 4.0}]


def test_every_round_takes_other_prompts_until_all_were_taken(tiny_corpus):
    ids = [choose(tiny_corpus, "train", 3, seed=0, skip=3 * r) for r in range(4)]
    assert len(set(ids[0] + ids[1])) == 6 and set(ids[0] + ids[1] + ids[2]) == set(
        tiny_corpus.clip_ids("train")
    )
    assert ids[3] == [ids[0][1], ids[0][2], ids[1][0]], "8 clips: the tenth is the second again"


def test_rows_of_pairs_hold_the_two_reactions_and_their_scores(tiny_corpus, tiny_checkpoint):
    imitated, prompt = Imitated(tiny_corpus, tiny_checkpoint), tiny_corpus.clip_ids("train")[2]
    candidates = {
        (prompt, name): Candidate(prompt, name, "policy", np.array(tokens))
        for name, tokens in (("a", [1, 2]), ("b", [3, 4]), ("c", [5, 6]))
    }
    [row] = pair_rows([Pair(prompt, "c", "a", 0.75, 0.5)], candidates, imitated)
    assert (row["chosen"], row["rejected"]) == ([5, 6], [1, 2])
    assert (row["chosen_score"], row["rejected_score"], row["prompt_id"]) == (0.75, 0.5, prompt)
    encoded = imitated.policy.encode(imitated.corpus.clip(prompt))
    assert imitated.policy.prompt_of(row).said.tolist() == encoded.said.tolist()
    assert row["frames"] is not None


def test_raters_get_what_a_person_sees_and_hears_and_nothing_hidden(tiny_corpus):
    clip = tiny_corpus.at("train", 0)
    group = watched(clip, {"x": clip.listener})
    assert (group.prompt_id, list(group.candidates)) == (clip.clip_id, ["x"])
    np.testing.assert_array_equal(group.speaker.values, clip.speaker.values)
    assert group.audio is clip.speaker_audio
    assert group.words == tuple((w.text, w.start, w.end) for w in clip.words)
    bare = watched(replace(clip, words=None, speaker=None, speaker_audio=None), {})
    assert bare.words is None and bare.speaker is None and bare.audio is None


METRICS = {
    "l2": 2.0,
    "fd": 1.0,
    "p_fd": None,
    "variation": 0.1,
    "diversity": 0.2,
    "l2_affect": None,
}


def test_a_row_says_missing_where_nothing_could_be_computed():
    summary = MethodRow(METRICS, {}, {}).summary(bootstrap=100)
    assert (
        summary["p_fd"] is None
        and summary["simulated_rating"] is None
        and summary["truth_affect_error"] is None
    )
    summary = MethodRow(METRICS, {"a": 2.0, "b": 4.0}, {"a": 0.5, "b": 0.25}).summary(bootstrap=500)
    assert summary["truth_affect_error"] == 0.375 and summary["l2"] == 2.0
    rating = summary["simulated_rating"]
    assert (
        rating["mean"] == 3.0
        and rating["n"] == 2
        and 2.0 <= rating["low"] < 3.0 < rating["high"] <= 4.0
    )


def test_the_report_goes_to_terminal_json_summary_and_mlflow(tmp_path, capsys):
    run = bare_run(tmp_path)
    rows = {
        "SFT": MethodRow(METRICS, {"a": 2.0, "b": 4.0}, {"a": 0.5}),
        "Nearest Neighbour": MethodRow(METRICS, {}, {}),
    }
    values = tabulate(rows, run, bootstrap=100)
    shown = capsys.readouterr().out
    assert "Nearest Neighbour" in shown and "2.0000" in shown and "-" in shown
    assert (
        json.loads((tmp_path / "evaluation.json").read_text())
        == values
        == run.summary["metrics"]["evaluation"]
    )
    assert run.logged[0]["sft/l2"] == 2.0 and run.logged[0]["sft/simulated_rating"] == 3.0
    assert "nearest_neighbour/l2" in run.logged[1]
    assert not any(
        key.endswith(("p_fd", "l2_affect")) for logged in run.logged for key in logged
    ), "missing, not zero"


@pytest.fixture
def judge(tiny_corpus, tmp_path):
    """A judge whose raters give every reaction of clip number k the grade 2 + k % 3, and no
    empathy.
    """
    ids = tiny_corpus.clip_ids("test")

    def grades(prompt, motion):
        grade = 2.0 + ids.index(prompt.prompt_id) % 3
        return None, grade, grade, 5.0

    pool = Graders(grades)
    weights = ScoreConfig(empathy=0.5, appropriateness=0.3, engagement=0.1, naturalness=0.1)
    config = JudgedOfVla(evaluation=EvaluationConfig(prompts=3), score=weights)
    layout = tiny_corpus.layout.subset({"expr": 50, "rot": 3, "jaw": 3})
    judge = Judge.from_corpus(
        bare_run(tmp_path),
        config,
        tiny_corpus,
        layout,
        choose(tiny_corpus, "test", config.evaluation.prompts, config.seed),
        pool,
    )
    return judge, pool.panels


def test_the_judge_weighs_criteria_then_averages_raters_of_a_prompt(judge, tiny_corpus):
    judge, asked = judge
    answers = {i: [c.listener.subset(judge.layout)] * 2 for i, c in judge.clips.items()}
    row = judge(answers)
    grades = {i: 2.0 + tiny_corpus.clip_ids("test").index(i) % 3 for i in judge.clips}
    assert row.scores == pytest.approx({i: (0.4 * g + 0.1 * 5.0) / 0.5 for i, g in grades.items()})
    assert row.metrics["simulated_empathy"] is None and row.metrics["simulated_naturalness"] == 5.0
    assert row.metrics["l2"] == pytest.approx(0, abs=1e-9) and row.metrics["clips"] == 6
    assert asked and 0 not in asked, "other raters than those who made the pairs"


def test_the_hidden_truth_error_is_the_distance_of_the_affect_shown(judge, tiny_corpus):
    judge, _ = judge
    row = judge({i: [c.listener.subset(judge.layout)] for i, c in judge.clips.items()})
    truth = load_truth(tiny_corpus.path)
    for clip_id, clip in judge.clips.items():
        shown = judge.affect(clip.listener.subset(judge.layout))[:, 0]
        wanted = np.sqrt(np.mean((shown - truth[clip_id].appropriate_affect[:, 0]) ** 2))
        assert row.truth_errors[clip_id] == pytest.approx(wanted)
    assert (
        replace(judge, affect=None)(
            {i: [c.listener.subset(judge.layout)] for i, c in judge.clips.items()}
        ).truth_errors
        == {}
    )


def test_the_affect_estimator_sees_training_clips_only(judge, tiny_corpus, tmp_path, monkeypatch):
    read = []
    whole = type(tiny_corpus).listeners
    monkeypatch.setattr(
        type(tiny_corpus), "listeners", lambda self, split: read.append(split) or whole(self, split)
    )
    judging.fit_affect(tiny_corpus, judge[0].layout)
    assert read == ["train"]


def test_baselines_the_corpus_cannot_give_are_left_out(judge):
    judge, _ = judge
    rows = judge.baselines()
    rules = ["mirror, late", "mirror less own mean", "words", "words + mirror", "bad if either is"]
    learnt = ["ground truth", "Random", "Nearest Neighbour", "Mirror"]
    assert list(rows) == [*learnt, "mean face", "face at rest", *rules, "oracle"]
    assert rows["ground truth"].metrics["l2"] < 1e-9 < rows["Random"].metrics["l2"]
    silent = replace(judge, clips={i: replace(c, speaker=None) for i, c in judge.clips.items()})
    rows = silent.baselines()
    assert list(rows) == [*learnt[:3], "mean face", "face at rest", "words", "oracle"]
    assert rows["Random"].metrics["p_fd"] is None


@pytest.mark.parametrize(
    ("config", "sampler"),
    [
        (GdpoOfFlow(), {"exploration": None}),
        (
            GdpoOfFlow(gdpo=FlowGdpoConfig(estimator="gdpo")),
            {"exploration": NoisyWindow("midpoint", 10, 0.5)},
        ),
        (
            GdpoOfFlow(gdpo=FlowGdpoConfig(estimator="gdpo", rollouts="sde")),
            {"exploration": PaperSde(4, 0.5)},
        ),
        (DpoOfFlow(), {"exploration": None, "evaluations": 10}),
        (EvaluateOfFlow(), {"exploration": None, "evaluations": 10}),
        (DpoOfVla(), {"temperature": 1.0}),
    ],
)
def test_a_fleet_samples_as_its_recipe_needs(monkeypatch, config, sampler):
    """Rewards need a probability of every action, raters and judges a clean path."""
    engine = {"name": "e", "version": "1", "workers": 1, "device": "cpu", "dtype": "float32"}
    fleet = SimpleNamespace(ready=lambda: engine)
    monkeypatch.setattr(sampling, "start_fleet", lambda *_: contextlib.nullcontext(fleet))
    imitated = SimpleNamespace(policy=SimpleNamespace(sampler=None))
    run = SimpleNamespace(summary={"engines": {}, "timings_s": {}})
    with sampling.fleet_of(run, config, imitated):
        assert sampler.items() <= vars(imitated.policy.sampler).items()
