"""Rules that listen by one cue, and the face that shows what they want."""

import numpy as np
import pytest

from rapport.policies.head.asset import load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_landmarks
from rapport.policies.motion import Layout, Motion
from rapport.rewards.metrics.rules import (
    LESS_SMILE,
    LESS_YAW,
    bad_if_either,
    late,
    motionless,
    two_constants,
    with_expression,
    words_and_mirror,
    words_timed,
)
from rapport.rewards.ratings.acting import Actor
from rapport.rewards.ratings.visible import displayed_valence, watch

FPS = 25.0
LAYOUT = Layout((("expr", 50), ("jaw", 3), ("rot", 3)), FPS, "builtin")


@pytest.fixture(scope="module")
def seen():
    """What a motion on the built-in head shows."""
    asset = load_head()
    head, landmarks = FlameHead(asset), face_landmarks(asset)
    return lambda motion: displayed_valence(watch(head, landmarks, motion).expression)


@pytest.fixture(scope="module")
def actor():
    asset = load_head()
    return Actor.of_head(asset, face_landmarks(asset), LAYOUT)


def test_an_actor_shows_the_valence_that_is_wanted(actor, seen):
    wanted = np.linspace(-0.8, 0.8, 33)
    head = Motion(np.zeros((33, 56)), LAYOUT)
    shown = seen(with_expression(head, np.zeros(56), actor(wanted)))
    assert shown == pytest.approx(wanted, abs=0.02)
    assert actor(np.zeros(1)) == pytest.approx(np.zeros((1, 50)), abs=1e-2)
    # Beyond what this head can show it goes as far as it can.
    assert actor(np.array([1.0])) == pytest.approx(actor(actor.valence[-1:]))


def test_a_late_mirror_follows_by_six_tenths_of_a_second():
    step = (np.arange(100) >= 50).astype(float)
    mirrored = late(step, FPS)
    assert mirrored[-1] == pytest.approx(0.6) and mirrored[0] == 0
    assert np.argmax(mirrored >= 0.3) == pytest.approx(50 + 15, abs=1)
    # Nothing of what is seen after a frame but for the half second of its mean that is not past.
    other = step.copy()
    other[80:] = -1
    assert np.array_equal(late(other, FPS)[:82], mirrored[:82])
    assert late(np.ones((40, 3)), FPS) == pytest.approx(np.full((40, 3), 0.6))


def test_words_are_answered_after_they_were_said():
    lexicon = {"won": 0.8, "died": -0.9}
    curve = words_timed((("We", 0.5, 0.7), ("won!", 0.8, 1.0)), lexicon, 100, FPS)
    assert (curve[: round(1.45 * FPS)] < 1e-9).all() and curve.max() == pytest.approx(0.8, abs=0.01)
    assert np.argmax(curve) / FPS == pytest.approx(1.0 + 0.45 + 1.5, abs=0.05)
    before = words_timed((("died", -1.5, -1.0),), lexicon, 100, FPS)
    assert before[0] < -0.2 and before[-1] == pytest.approx(0)
    assert not words_timed((), lexicon, 10, FPS).any()


def test_rules_of_two_cues_by_hand():
    words, face = np.array([0.6, 0.6, -0.6, 0.0]), np.array([0.3, -0.3, 0.3, 0.0])
    assert bad_if_either(words, face).tolist() == [0.6, -0.3, -0.6, 0.0]
    assert words_and_mirror(words, face) == pytest.approx([0.715, 0.065, -0.065, 0])


def test_a_rule_has_the_mean_face_and_somebody_elses_head():
    rng = np.random.default_rng(0)
    head = Motion(rng.normal(size=(40, 56)), LAYOUT)
    mean = rng.normal(size=56)
    expr = rng.normal(size=(30, 50))
    motion = with_expression(head, mean, expr)
    assert len(motion) == 30
    assert motion.group("rot") == pytest.approx(head.group("rot")[:30])
    assert motion.group("expr") == pytest.approx(mean[:50] + expr, abs=1e-5)
    assert motion.group("jaw") == pytest.approx(np.tile(mean[50:53], (30, 1)), abs=1e-6)
    assert motionless(mean, head).values == pytest.approx(np.tile(mean, (40, 1)), abs=1e-6)


def test_two_constants_take_smile_and_yaw_and_nothing_else(actor, seen):
    rng = np.random.default_rng(1)
    values = np.concatenate([0 * rng.normal(size=(30, 53)), rng.normal(size=(30, 3))], axis=1)
    motion = Motion(values, LAYOUT)
    less = -actor(np.array([LESS_SMILE]))[0]
    changed = two_constants(motion, less)
    assert changed.group("rot")[:, 1] == pytest.approx(LESS_YAW * motion.group("rot")[:, 1])
    assert np.array_equal(changed.group("rot")[:, [0, 2]], motion.group("rot")[:, [0, 2]])
    smiling = with_expression(motion, np.zeros(56), actor(np.full(30, 0.4)))
    fallen = seen(smiling) - seen(two_constants(smiling, less))
    assert (fallen > 0.1).all() and fallen.mean() == pytest.approx(LESS_SMILE, abs=0.08)
