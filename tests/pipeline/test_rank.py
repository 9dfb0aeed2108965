"""`rank`: which runs it takes, cutting to what all have, protocols on a corpus, a changed rank in
the report.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from rapport.pipeline.config import load_config
from rapport.pipeline.data.neighbours import appropriate_to
from rapport.pipeline.data.regression import RegressionListener, targets
from rapport.pipeline.data.store import CorpusError, load_appropriate
from rapport.pipeline.data.synthetic.generate import Design, generate_corpus
from rapport.pipeline.report.ranking import (
    GROUND_TRUTH,
    Ranking,
    headline,
    markdown,
    metric_rankings,
    write_ranking,
)
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import FilesConfig, RankConfig
from rapport.pipeline.steps.methods import (
    TrainedRun,
    answered,
    answers_of,
    baselines,
    common_corpus,
)
from rapport.pipeline.steps.protocols import (
    RankedClips,
    common_frames,
    cut_reactions,
    keep_targets,
    score,
    scorers,
    scores_by_part,
    with_head_as,
)
from rapport.pipeline.steps.scoring import read_inputs
from rapport.pipeline.steps.spread import PEOPLE, people, shares
from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.policies.reactface.policy import ReactFacePolicy
from rapport.rewards.metrics import evaluate
from rapport.rewards.metrics.protocols.react import share
from rapport.settings import ConfigError
from tests.pipeline.bare import bare_run
from tests.runs import finished_run
from tests.small_flow import saved_policy

LAYOUT = Layout((("expr", 3), ("rot", 3), ("jaw", 3)), 25, "builtin")


def finished(directory, recipe="dpo", status="finished", **found):
    directory.mkdir(parents=True)
    (directory / "summary.json").write_text(
        json.dumps({"recipe": recipe, "status": status, "artifacts": found})
    )
    (directory / "config.yaml").write_text("policy: vla\n")
    return directory


def run_in(directory):
    """A run that does every phase and keeps nothing."""
    step = SimpleNamespace(directory=directory, say=lambda text: None)
    return SimpleNamespace(
        once=lambda name, work, round_index=1: work(step),
        summary={"metrics": {}},
        root=directory,
    )


def test_a_run_must_be_there_finished_of_its_recipe_and_whole(tiny_corpus, tmp_path):
    with pytest.raises(RunError, match=r"rank.dpo=.*nowhere: no summary.json"):
        TrainedRun.of_folder("dpo", tmp_path / "nowhere")
    with pytest.raises(RunError, match="a failed `dpo` run, not a finished `dpo` run"):
        TrainedRun.of_folder("dpo", finished(tmp_path / "failed", status="failed"))
    with pytest.raises(RunError, match="a finished `sft` run, not a finished `gdpo` run"):
        TrainedRun.of_folder("gdpo", finished(tmp_path / "sft", "sft"))
    gone = {"corpus": str(tmp_path), "sft_policy": str(tmp_path / "gone")}
    with pytest.raises(RunError, match="its sft_policy, dpo_policy is no longer where"):
        TrainedRun.of_folder("dpo", finished(tmp_path / "moved", **gone))
    here = dict.fromkeys(("sft_policy", "dpo_policy"), str(tmp_path))
    found = TrainedRun.of_folder(
        "dpo", finished(tmp_path / "good", corpus=str(tiny_corpus.path), **here)
    )
    assert found.aligned == tmp_path


@pytest.mark.parametrize("recipe", ["sft", "reactface"])
def test_a_policy_that_was_not_aligned_is_ranked_alone(recipe, tiny_corpus, tmp_path):
    ReactFacePolicy.untrained(tiny_corpus.layout, tiny_corpus.clips("train"), 0).save(
        tmp_path / "policy"
    )
    left = {"corpus": str(tiny_corpus.path), "imitate_policy": str(tmp_path / "policy")}
    folder = finished(tmp_path / recipe, recipe, **left)
    (folder / "config.yaml").write_text("policy: reactface\n")
    trained = TrainedRun.of_folder("sft", folder)
    ids = tiny_corpus.clip_ids("test")
    answers = answers_of(None, RankConfig(), trained, ids=ids)
    assert list(answers) == ["ReactFace"] and list(answers["ReactFace"]) == ids
    assert all(len(motions) == 2 for motions in answers["ReactFace"].values())
    with pytest.raises(RunError, match="a finished `dpo` run, not a finished `sft` run"):
        TrainedRun.of_folder("sft", finished(tmp_path / "dpo"))


@pytest.mark.parametrize(
    ("aligned", "names"),
    [
        ("false", ("AR-Flow", "GDPO")),
        ("true", ("aligned before (gdpo, flow)", "GDPO (gdpo, flow)")),
    ],
)
def test_what_was_aligned_before_is_not_called_imitation(tiny_corpus, tmp_path, aligned, names):
    saved_policy(tmp_path / "policy", LAYOUT.groups)
    here = dict.fromkeys(("flow_policy", "gdpo_policy"), str(tmp_path / "policy"))
    folder = finished(tmp_path / "run", "gdpo", corpus=str(tiny_corpus.path), **here)
    (folder / "config.yaml").write_text(f"policy: flow\naligned: {aligned}\n")
    assert TrainedRun.of_folder("gdpo", folder).methods == names
    on_it = finished(tmp_path / "next", "gdpo", corpus=str(tiny_corpus.path), **here)
    (on_it / "config.yaml").write_text(f"policy: flow\naligned: false\nimitation: {folder}\n")
    assert TrainedRun.of_folder("gdpo", on_it).methods == names


def test_unlike_corpora_are_refused_and_equal_ones_may_lie_anywhere(tiny_corpus, tmp_path):
    sizes = {"design": Design(seconds=1, frames=1, image_size=28), "workers": 0}
    other = generate_corpus(tmp_path / "other", 2, 1, 2, seed=1, **sizes)
    with pytest.raises(
        CorpusError,
        match=f"unlike corpora:\n  rank.dpo: .*{tiny_corpus.digest[:12]}(.|\n)*root=THAT",
    ):
        common_corpus({"dpo": tiny_corpus, "gdpo": other})
    again = generate_corpus(tmp_path / "again", 2, 1, 2, seed=1, **sizes)
    assert common_corpus({"dpo": other, "gdpo": again}).digest == other.digest
    assert common_corpus({}) is None


def test_a_corpus_beside_runs_would_be_ignored_so_it_is_refused():
    with pytest.raises(ConfigError, match="leave corpus"):
        load_config(RankConfig, None, ["rank.dpo=runs/x", "corpus.test_clips=4"])
    assert load_config(RankConfig, None, ["corpus.test_clips=4"]).corpus.test_clips == 4


def test_methods_are_cut_to_the_frames_and_groups_that_all_have(tmp_path):
    wide = Layout((("expr", 5), ("jaw", 3), ("neck", 3), ("rot", 3)), 25, "builtin")
    rng = np.random.default_rng(0)
    short, long = Motion(rng.normal(size=(8, 9)), LAYOUT), Motion(rng.normal(size=(10, 14)), wide)
    run = run_in(tmp_path)
    answers = answered(
        run,
        "x",
        ["p", "q"],
        LAYOUT,
        lambda: {"A + B": {"p": [short], "q": [short]}, "C": {"q": [long], "p": [long]}},
    )
    assert {name: found.shape for name, found in answers.items()} == {
        "A + B": (2, 1, 8, 9),
        "C": (2, 1, 10, 9),
    }
    assert common_frames(answers) == 8
    (first,), _ = cut_reactions(answers["C"], LAYOUT, 8)
    assert len(first) == 8 and first.layout == LAYOUT
    np.testing.assert_array_equal(first.group("rot"), long.group("rot")[:8])


def test_the_head_goes_by_the_name_a_protocol_has_for_it():
    motion = Motion(np.random.default_rng(0).normal(size=(4, 9)), LAYOUT)
    renamed = with_head_as("neck", motion)
    assert renamed.layout.names == ("expr", "neck", "jaw")
    np.testing.assert_array_equal(renamed.group("neck"), motion.group("rot"))
    with pytest.raises(LayoutError, match="expected one of"):
        with_head_as("neck", Motion(motion.values[:, :3], LAYOUT.subset({"expr": 3})))


def test_the_regression_is_deterministic_and_nearer_to_its_clips_than_their_mean(tiny_corpus):
    layout, clips = (
        tiny_corpus.layout.subset({"expr": 4, "rot": 3, "jaw": 3}),
        list(tiny_corpus.clips("train")),
    )
    fitted = RegressionListener.fit(clips, layout)
    answer = fitted(clips[0])
    assert answer.layout == layout and len(answer) == 25
    np.testing.assert_array_equal(answer.values, fitted(clips[0]).values)
    truth = np.stack([(targets(c.listener, layout) - fitted.mean) / fitted.scale for c in clips])
    errors = np.stack([fitted.standardised(c) for c in clips]) - truth
    assert np.mean(errors**2) < np.mean((truth - truth.mean(0)) ** 2)
    with pytest.raises(ValueError, match="3 training clips, a regression needs 8"):
        RegressionListener.fit(clips[:3], layout)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Small, of clips long enough for every protocol, with two listeners to each moment."""
    return generate_corpus(
        tmp_path_factory.mktemp("rank") / "c",
        8,
        1,
        4,
        design=Design(listeners=2, frames=1, image_size=28),
        workers=0,
    )


@pytest.fixture(scope="module")
def ranked(corpus):
    """Baselines and what the protocols give."""
    layout = corpus.layout.subset({"expr": 10, "rot": 3, "jaw": 3})
    config = load_config(RankConfig, None, ["rank.samples=2"])
    ids = corpus.clip_ids("test")[::2]  # the first listener to each moment
    held_out = RankedClips.from_corpus(corpus, ids, layout, 96, appropriate_to(corpus, "test"))
    protocols, left_out = scorers(
        held_out, [motion.subset(layout) for _, motion in corpus.listeners("train")], None, None
    )
    reactions = {
        method: [[motion.window(0, 96) for motion in found[i]] for i in ids]
        for method, found in baselines(config, corpus, ids, layout).items()
    }
    values = {
        name: scores_by_part(protocols[name], held_out, reactions)
        for name in ("lm_listener", "l2l", "reactface")
    }
    return held_out, protocols, left_out, values, reactions


def test_baselines_and_protocols_of_a_corpus(ranked):
    held_out, protocols, left_out, values, _ = ranked
    assert set(protocols) == {"lm_listener", "l2l", "dim", "dualtalk", "reactface"}
    assert {"react2023, react2024", "vbench", "unils, gdpo_paper"} == set(left_out)
    rows = values["reactface"]["all"]["corrected"]
    learnt = [GROUND_TRUTH, "Random", "Mirror", "NN motion", "NN audio", "Regression"]
    rules = ["mirror, late", "mirror less own mean", "words", "words + mirror", "bad if either is"]
    assert list(rows) == [*learnt, "mean face", "face at rest", *rules, "oracle"]
    assert rows["Mirror"]["FRSyn"] == 0 and rows[GROUND_TRUTH]["FRCorr"] == pytest.approx(1)
    assert rows["Regression"]["FRDiv"] == 0 < rows["Random"]["FRDiv"]
    assert values["lm_listener"]["all"]["reference"][GROUND_TRUTH]["L2"] == 0
    assert len(held_out.part(slice(2)).ids) == 2 and held_out.frames == 96


def test_what_does_not_apply_is_left_out_with_the_reason(ranked):
    held_out, *_ = ranked
    short = RankedClips(
        held_out.ids,
        [m.window(0, 20) for m in held_out.recorded],
        held_out.speakers,
        held_out.speech,
        held_out.appropriate,
        held_out.others,
    )
    protocols, left_out = scorers(short, held_out.recorded, None, None)
    assert set(protocols) == {"lm_listener", "dim"} and {"l2l", "dualtalk", "reactface"} <= set(
        left_out
    )
    assert "20 frames" in left_out["l2l"] and "51 frames or more at 25 fps" in left_out["reactface"]


def test_a_protocol_that_refuses_its_input_is_named(ranked):
    held_out, *_ = ranked

    def refuse(*_):
        raise ValueError("too short")

    run = run_in(None)
    with pytest.raises(RunError, match="protocol dim: too short"):
        score(run, "dim", refuse, held_out, {GROUND_TRUTH: [[m] for m in held_out.recorded]})


def test_reactface_holds_reactions_against_all_that_the_corpus_names(corpus, ranked):
    held_out, *_ = ranked
    listeners, matrix = held_out.targets
    fitting = load_appropriate(corpus.path)
    order = [*held_out.ids, *held_out.others]
    assert len(listeners) == matrix.shape[1] == len(order) > len(held_out.ids)
    for row, clip_id in zip(matrix, held_out.ids, strict=True):
        # The recorded listener counts in any case, as on REACT's diagonal.
        assert {order[j] for j in np.flatnonzero(row)} == {clip_id, *fitting[clip_id]}
    second = held_out.part(slice(2, None))
    named = {i for clip_id in second.ids for i in held_out.appropriate[clip_id]}
    assert set(second.others) == named - set(second.ids)


def test_evaluate_gives_what_rank_gives(ranked, tmp_path):
    """By the files that `rank` leaves, and the reactions it answered with, as plain arrays."""
    held_out, _, _, values, reactions = ranked
    folder = keep_targets(held_out, tmp_path / "reactface")
    pred = tmp_path / "random.npy"
    np.save(pred, [[motion.values for motion in group] for group in reactions["Random"]])
    for variant in ("reference", "corrected"):
        files = FilesConfig(
            pred=pred,
            protocol="reactface",
            variant=variant,
            **{name: folder / f"{name}.npy" for name in ("target", "partner", "neighbours")},
        )
        scores = evaluate("reactface", **read_inputs(files), variant=variant)
        assert scores == values["reactface"]["all"][variant]["Random"]


@pytest.mark.engine
@pytest.mark.long
def test_so_does_the_recipe_on_many_processes(ranked, tmp_path):
    held_out, _, _, values, reactions = ranked
    folder = keep_targets(held_out, tmp_path / "reactface")
    pred = tmp_path / "random.npy"
    np.save(pred, [[motion.values for motion in group] for group in reactions["Random"]])
    given = [f"files.{name}={folder / name}.npy" for name in ("target", "partner", "neighbours")]
    out = tmp_path / "scores.json"
    options = ["--protocol", "reactface", "--pred", pred, "--variant", "corrected", "--json", out]
    finished_run("evaluate", tmp_path / "run", *options, *given)
    expected = values["reactface"]["all"]["corrected"]["Random"]
    assert json.loads(out.read_text())["metrics"] == pytest.approx(expected, rel=1e-9)


def test_what_of_the_spread_the_speaker_explains_stands_beside_peoples(corpus, ranked):
    held_out, *_, reactions = ranked
    layout = held_out.layout
    several = people(corpus, held_out.ids, layout, 96)
    assert [len(listeners) for listeners in several] == [2] * 4
    table = shares({**reactions, PEOPLE: several}, None)
    assert set(table["Random"]) == {"all channels", *layout.names}
    assert table["Regression"]["expr"] == 1 and abs(table["Random"]["expr"]) < 0.5
    assert table["mean face"]["expr"] is None  # nothing of it moves from speaker to speaker
    values = np.array([[motion.group("rot") for motion in group] for group in several])
    assert table[PEOPLE]["rot"] == pytest.approx(share(values))
    assert PEOPLE not in shares({PEOPLE: []}, None)


def test_an_affect_that_follows_the_speaker_has_a_share_whatever_else_moves():
    """Two channels: noise in one, the speaker's own value in the other."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 5, 30, 9))
    values[..., 0] = rng.normal(size=(40, 1, 1))
    reactions = [[Motion(x, LAYOUT) for x in group] for group in values]
    table = shares({"x": reactions}, lambda motion: motion.values[:, :1])
    assert table["x"]["affect"] == 1 and table["x"]["jaw"] == pytest.approx(0, abs=0.05)


def table(reference, corrected):
    """Values of FRSyn by variant, the same in all parts of the clips unless given as a pair (all
    and first, second).
    """

    def part(which):
        return {
            variant: {
                method: {"FRSyn": v[which] if isinstance(v, tuple) else v}
                for method, v in row.items()
            }
            for variant, row in (("reference", reference), ("corrected", corrected))
        }

    return {"all": part(0), "first half": part(0), "second half": part(1)}


def test_a_changed_rank_is_found_and_one_that_a_half_contradicts_is_not_steady():
    truth = {GROUND_TRUTH: 20.0}
    parts = table(
        truth | {"Mirror": 40.0, "SFT": 30.0, "Random": 35.0},
        truth | {"Mirror": 0.0, "SFT": (25.0, 18.0), "Random": (24.0, 19.0)},
    )
    (line,) = metric_rankings("reactface", parts)
    assert line.ranks == {
        "reference": {"SFT": 1, "Random": 2, "Mirror": 3},
        "corrected": {"Mirror": 1, "Random": 2, "SFT": 3},
    }
    assert (
        set(line.swaps) == {("SFT", "Random"), ("SFT", "Mirror"), ("Random", "Mirror")}
        and line.changed
    )
    assert set(line.steady) == {("SFT", "Mirror"), ("Random", "Mirror")}
    assert "change ranks in 1, swap methods in 1, in 1" in headline([line])


def test_a_value_that_is_missing_or_nan_is_a_dash_and_no_rank():
    truth = {GROUND_TRUTH: 20.0}
    parts = table(
        truth | {"Mirror": float("nan"), "SFT": 30.0}, truth | {"Mirror": 1.0, "SFT": 2.0}
    )
    (line,) = metric_rankings("reactface", parts)
    assert line.values["reference"]["Mirror"] is None and line.ranks["reference"] == {"SFT": 1}
    assert not line.swaps and line.changed


def test_the_report_says_where_ranks_change_and_what_is_left_out(tmp_path, capsys):
    truth = {GROUND_TRUTH: 20.0}
    parts = table(truth | {"Mirror": 40.0, "SFT": 30.0}, truth | {"Mirror": 0.0, "SFT": 25.0})
    ranking = Ranking(
        "ab" * 32,
        str(LAYOUT),
        4,
        96,
        2,
        {"reactface": parts},
        {"vbench": "it judges video"},
        ["rank.gdpo is empty: AR-Flow and GDPO are left out"],
        appropriate="the recorded reaction and those that the corpus names; 2.0 to a speaker",
        precisions={"random": 0.25, "alike": 0.5},
        shares={"SFT": {"all channels": 0.25, "jaw": None}},
    )
    run = bare_run(tmp_path)
    write_ranking(ranking, run)
    logged = {name: value for values in run.logged for name, value in values.items()}
    assert "AR-Flow and GDPO are left out" in capsys.readouterr().out
    text = (tmp_path / "rank.md").read_text()
    assert "| reactface FRSyn | ↓ | **2 → 1** | **1 → 2** |" in text
    assert (
        "Mirror 2 → 1, SFT 1 → 2. Swaps: 1, in either half of the clips 1: Mirror passes SFT."
        in text
    )
    assert "| FRSyn ↓ | corrected | 0 | 25 | 20 |" in text and "- vbench: it judges video" in text
    found = json.loads((tmp_path / "rank.json").read_text())
    assert found["metrics"][0]["values"]["reference"]["Mirror"] == 40 and found["clips"] == 4
    assert (
        logged["reactface/FRSyn/corrected/mirror"] == 0
        and run.summary["metrics"]["steady_order_changes"] == 1
    )
    assert markdown(ranking, [], []).count("Nowhere.") == 1
