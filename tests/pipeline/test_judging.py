"""Yardsticks: what was answered to this speaker, with raters and judge that are the real ones."""

from types import SimpleNamespace

import numpy as np
import pytest

from rapport.actors.rater import RewardWorker
from rapport.pipeline.data.store import load_points
from rapport.pipeline.data.synthetic.generate import Design, generate_corpus
from rapport.pipeline.data.synthetic.words import LEXICON
from rapport.pipeline.settings import JudgedOfVla
from rapport.pipeline.steps import reference
from rapport.pipeline.steps.judging import YARDSTICKS, Judge, MethodRow
from rapport.pipeline.steps.spread import BEST_ERROR, MEAN_ERROR, PEOPLE, RANDOM, of_several
from rapport.pipeline.steps.yardsticks import Listening, shuffled, strangers
from rapport.policies.clip import Clip
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Layout, Motion
from rapport.rewards.metrics.statistics import mean_interval, paired_interval
from rapport.rewards.ratings.beside import Beside, share_matched
from rapport.rewards.ratings.points import Point
from rapport.rewards.ratings.ratings import Rating

WEIGHTS = {"empathy": 0.5, "appropriateness": 0.5, "engagement": 0.0, "naturalness": 0.0}


class Pool:
    """The reward pool without Ray."""

    def __init__(self):
        self.worker = RewardWorker(3, LEXICON, HeadConfig())

    def rate_beside(self, prompts, panel):
        for prompt in prompts:
            yield prompt, self.worker.rate_beside((panel, prompt))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four conversations to train on, one to validate, six to test on; clips of 4 s."""
    folder = tmp_path_factory.mktemp("corpus") / "small"
    return generate_corpus(folder, 32, 4, 24, design=Design(listeners=2, frames=0), workers=0)


@pytest.fixture(scope="module")
def summary():
    return {"metrics": {}}


@pytest.fixture(scope="module")
def judge(corpus, summary, tmp_path_factory):
    run = SimpleNamespace(directory=tmp_path_factory.mktemp("run"), summary=summary)
    layout = corpus.layout.subset({"expr": 50, "rot": 3, "jaw": 3})
    ids = corpus.clip_ids("test")[::2]
    return Judge.from_corpus(run, JudgedOfVla(), corpus, layout, ids, Pool())


@pytest.fixture(scope="module")
def rows(judge):
    answers = judge.answers_of_baselines()
    return {name: judge(answers[name]) for name in ("mean face", "oracle", "ground truth")}


def means(row):
    return {name: np.mean(list(values.values())) for name, values in row.yardsticks.items()}


def test_somebody_else_who_listened_has_this_listeners_face_at_rest(judge, corpus):
    answers = judge.answers_of_baselines()["another listener"]
    assert answers.keys() == judge.clips.keys()
    ids = corpus.clip_ids("test")
    for clip_id, [motion] in list(answers.items())[:3]:
        other = corpus.clip(ids[ids.index(clip_id) + 1])
        assert other.moment == judge.clips[clip_id].moment
        moved = motion.values - judge.clips[clip_id].rest.subset(judge.layout).values
        theirs = other.listener.values - other.rest.values
        expected = Motion(theirs, corpus.layout).subset(judge.layout).values
        np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_who_answers_what_is_meant_is_told_from_a_face_that_answers_nobody(rows):
    oracle, blank = means(rows["oracle"]), means(rows["mean face"])
    assert oracle["own_minus_another"] > blank["own_minus_another"] + 0.4
    assert oracle["matched"] > 0.75 and 0.35 < blank["matched"] < 0.65
    assert oracle["right"] > 0.95 and blank["right"] == 0.5
    assert np.mean(list(rows["oracle"].scores.values())) > np.mean(
        list(rows["mean face"].scores.values())
    )


def test_every_yardstick_has_its_interval_over_conversations(rows, corpus):
    values = rows["oracle"].summary(bootstrap=200)
    assert all(
        values[name]["low"] <= values[name]["mean"] <= values[name]["high"] for name in YARDSTICKS
    )
    assert len(set(rows["oracle"].conversations.values())) == 6
    judged = {key.split("#")[0] for key in rows["oracle"].yardsticks["right"]}
    points = load_points(corpus.path)
    kinds = {point.kind for clip_id in judged for point in points[clip_id]}
    assert set(values["right_by_kind"]) <= kinds and values["right_by_kind"]


def test_it_is_said_who_understands_speech_and_how_far_the_judge_can_be_trusted(summary, judge):
    assert summary["metrics"]["raters_understand_speech"] is True
    # One validation conversation has no strangers to be told from.
    assert summary["metrics"]["independent_judge"] == {}
    assert judge.independent is not None


def test_of_several_reactions_the_speakers_part_and_the_best_are_told(judge, rows):
    """Who does what was recorded, trembling, is all of the speaker; who draws anybody, of none."""
    rng = np.random.default_rng(0)

    def trembling(motion):
        return Motion(motion.values + rng.normal(0, 1e-3, motion.values.shape), motion.layout)

    recorded = {i: clip.listener.subset(judge.layout) for i, clip in judge.clips.items()}
    answers = {
        "as recorded": {i: [trembling(motion) for _ in range(3)] for i, motion in recorded.items()},
        "anybody": judge.random(3),
        "one": {i: [motion] for i, motion in recorded.items()},
    }
    found = of_several(judge, answers)
    assert found.keys() == {"as recorded", "anybody", PEOPLE, RANDOM}
    assert found["as recorded"]["share/rot"] > 0.95
    assert found["anybody"]["share/rot"] < found[PEOPLE]["share/rot"] < 0.95
    assert found["anybody"][BEST_ERROR] == found[RANDOM][BEST_ERROR] < found[RANDOM][MEAN_ERROR]
    whole = rows["ground truth"].summary(10)["truth_affect_error"]
    assert found["as recorded"][MEAN_ERROR] == pytest.approx(whole, rel=0.02)
    assert of_several(judge, {"one": answers["one"]}) == {}


def test_random_draws_go_on_from_the_first(judge):
    one, three = judge.random(1), judge.random(3)
    assert all((one[i][0].values == three[i][0].values).all() for i in judge.clips)


def test_answers_given_to_others_lose_what_they_answered(judge, rows):
    truth = judge.answers_of_baselines()["oracle"]
    controls = judge.controls("oracle", truth)
    assert set(controls) == {"oracle, two constants", "oracle, shuffled"}
    own = means(rows["oracle"])
    turned = means(controls["oracle, shuffled"])
    assert turned["own_minus_another"] < 0.4 * own["own_minus_another"]
    assert turned["right"] < own["right"] - 0.2
    changed = means(controls["oracle, two constants"])
    assert changed["own_minus_another"] > 0.5 * own["own_minus_another"]


def test_reactions_are_rated_by_the_same_hand_beside_every_speaker(judge):
    clip_id = next(iter(judge.clips))
    prompt = judge._prompt(clip_id, [judge.clips[clip_id].listener])
    alone = judge.raters.worker.rate((7, prompt))
    beside = judge.raters.worker.rate_beside((7, prompt))
    assert alone == beside.own and len(beside.others) == 4
    for ratings in beside.others:
        assert [(r.rater, r.candidate_id) for r in ratings] == [
            (r.rater, r.candidate_id) for r in alone
        ]
    # Naturalness does not hang on who speaks, but for the halo of the whole impression.
    difference = [
        r.naturalness - o.naturalness for r, o in zip(alone, beside.others[0], strict=True)
    ]
    assert np.abs(difference).max() <= 1


def rating(candidate, rater, grade):
    return Rating("p", candidate, rater, grade, grade, 1, 1)


def test_differences_by_hand():
    own = [rating("a", "x", 5), rating("a", "y", 3), rating("b", "x", 2)]
    others = [[rating("a", "x", 1), rating("b", "x", 2)], [rating("a", "x", 4.5)]]
    beside = Beside(own, others, {})
    assert sorted(beside.differences(WEIGHTS)) == [-0.5, 0, 3]
    assert share_matched([-0.5, 0, 3]) == 0.5
    assert share_matched([]) is None


def clips(**conversations):
    layout = Layout((("expr", 1),), 25, "builtin")
    motion = Motion(np.zeros((10, 1)), layout)
    return {
        f"{who}-{k}": Clip(f"{who}-{k}", f"{who}-dyad", "test", motion, speaker_id=who)
        for who, count in conversations.items()
        for k in range(count)
    }


def speakers(clips):
    return {clip_id: clip.speaker_id for clip_id, clip in clips.items()}


def test_strangers_are_of_other_conversations_and_each_of_another():
    some = clips(a=3, b=3, c=2, d=1)
    names = speakers(some)
    chosen = strangers(some, names, 4, seed=0)
    for clip_id, others in chosen.items():
        who = [other.split("-")[0] for other in others]
        assert len(others) == 3 == len(set(who)) and clip_id[0] not in who
    assert chosen == strangers(some, names, 4, seed=0) != strangers(some, names, 4, seed=1)
    assert [len(o) for o in strangers(some, names, 2, seed=0).values()] == [2] * 9
    alone = clips(a=2)
    assert strangers(alone, speakers(alone), 4, seed=0) == {"a-0": [], "a-1": []}


def test_shuffled_answers_go_to_other_conversations():
    some = speakers(clips(a=3, b=2, c=3))
    turned = shuffled(some)
    assert sorted(turned.values()) == sorted(some)
    assert all(one[0] != other[0] for one, other in turned.items())
    alone = shuffled(speakers(clips(a=3)))
    assert all(one != other for one, other in alone.items())


def test_a_point_counts_once_however_many_reactions_there_are():
    listening = Listening()
    listening.add_differences("c", "one", [1.0, 0.0])
    listening.add_evidence("c", "one", [np.array([2.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0])])
    assert listening.yardsticks["own_minus_another"] == {"c": 0.5}
    assert listening.yardsticks["matched"] == {"c": 0.75}
    assert listening.yardsticks["independent"] == {"c": 1.0}
    assert listening.yardsticks["independent_own_minus_another"] == {"c": 0.5}
    alone = Listening()
    alone.add_differences("c", "one", [])
    alone.add_evidence("c", "one", [np.array([2.0])])
    assert set(alone.yardsticks) == {"independent"}
    alone.add_points("c", "one", [Point(0.5, 0.7, "plain")], [])
    assert alone.right_by_kind == {}


def test_intervals_over_conversations_are_wider_where_their_clips_are_alike():
    rng = np.random.default_rng(0)
    of = {f"{c}-{k}": str(c) for c in range(20) for k in range(8)}
    level = rng.normal(size=20)
    values = {key: level[int(c)] + 0.1 * rng.normal() for key, c in of.items()}
    clustered, plain = mean_interval(values, groups=of), mean_interval(values)
    assert clustered.mean == pytest.approx(plain.mean)
    # As wide as that of the 20 means of conversations, and about the root of 8 times the other.
    half = 1.96 * np.std([np.mean([values[k] for k in of if of[k] == c]) for c in set(of.values())])
    assert clustered.high - clustered.mean == pytest.approx(half / np.sqrt(20), rel=0.1)
    assert clustered.high - clustered.low > 2 * (plain.high - plain.low)
    assert mean_interval(values, groups=dict.fromkeys(values, "one")) == plain
    shifted = {key: value + 0.5 for key, value in values.items()}
    assert paired_interval(values, shifted, groups=of).low == pytest.approx(0.5)


def test_a_change_is_of_what_both_rows_have():
    first = MethodRow(
        {}, {"a": 1.0, "b": 2.0}, {}, {"matched": {"a": 0.5, "b": 0.5}}, {"a": "x", "b": "y"}
    )
    last = MethodRow({}, {"a": 2.0, "b": 3.0}, {}, {"matched": {"a": 1.0}}, {"a": "x", "b": "y"})
    assert last.change(first, "scores", 100)["mean"] == 1
    assert last.change(first, "matched", 100) is None
    assert last.change(first, "truth_errors", 100) is None


def test_the_reference_table_stands_on_a_corpus_alone(corpus, capsys):
    values = reference.main([str(corpus.path), "--prompts", "6"])
    shown = capsys.readouterr().out
    assert "recorded, empathic" in values and "recorded, empathic" in shown
    assert values["oracle"]["right"]["mean"] > values["words"]["right"]["mean"]
    assert values["mean face"]["right"]["mean"] == 0.5
