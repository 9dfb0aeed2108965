"""Measures of a face from its landmarks: hand values, and nothing of the head's pose in the
expression.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from rapport.policies.head.asset import load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_landmarks
from rapport.policies.motion import Layout, Motion
from rapport.rewards.ratings.visible import displayed_valence, visible_motion, watch

# A schematic face in metres: x to its own left, y up, z forward.
HALF = {
    "mouth_corner": (0.026, -0.026, -0.032),
    "brow_inner": (0.015, 0.052, -0.016),
    "brow_outer": (0.046, 0.049, -0.029),
    "eyelid_upper": (0.031, 0.038, -0.024),
    "eyelid_lower": (0.031, 0.028, -0.026),
    "temple": (0.066, 0.083, -0.099),
}
NEUTRAL = (
    {f"{n}_left": np.array(p) for n, p in HALF.items()}
    | {f"{n}_right": np.array(p) * (-1, 1, 1) for n, p in HALF.items()}
    | {
        "nose_tip": np.zeros(3),
        "lip_upper": np.array([0, -0.03, -0.015]),
        "lip_lower": np.array([0, -0.031, -0.014]),
    }
)
SKULL = ("nose_tip", "temple_left", "temple_right")


def face(frames=10, **moves):
    """Landmark paths; `moves`: name -> (x, y, z) mm, constant or over time."""
    paths = {name: np.tile(point, (frames, 1)) for name, point in NEUTRAL.items()}
    for name, move in moves.items():
        paths[name] = paths[name] + np.asarray(move, float) / 1000
    return paths


def both(**moves):
    return {
        f"{n}_{s}": np.asarray(m, float) * sign
        for n, m in moves.items()
        for s, sign in (("left", np.array([1, 1, 1])), ("right", np.array([-1, 1, 1])))
    }


def turned(paths, rotvec, shift=(0, 0, 0)):
    rotation = Rotation.from_rotvec(rotvec)
    return {name: rotation.apply(path) + shift for name, path in paths.items()}


def test_the_resting_face_measures_zero():
    seen = visible_motion(face(), NEUTRAL, 25)
    e = seen.expression
    for value in (
        seen.head,
        e.mouth_lift,
        e.mouth_spread,
        e.lip_opening,
        e.brow_inner,
        e.brow_outer,
    ):
        assert np.abs(value).max() < 1e-9
    assert e.eye_opening == pytest.approx(np.ones((10, 2)))
    assert len(seen) == 10 and displayed_valence(e) == pytest.approx(np.zeros(10))


def test_measures_are_millimetres_to_the_right_side():
    moved = face(
        mouth_corner_left=(3, 8, -2),
        mouth_corner_right=(-1, 4, 0),
        brow_inner_left=(0, 2, 0),
        eyelid_upper_right=(0, -10, 0),
        lip_lower=(0, -12, 0),
    )
    e = visible_motion(moved, NEUTRAL, 25, SKULL).expression
    assert e.mouth_lift[0] == pytest.approx([8, 4])
    assert e.mouth_spread[0] == pytest.approx([3, 1])
    assert e.brow_inner[0] == pytest.approx([2, 0])
    assert e.eye_opening[0] == pytest.approx([1, 0])
    assert e.lip_opening[0] == pytest.approx(12)


@settings(deadline=None, max_examples=60)
@given(*[st.floats(-0.6, 0.6)] * 3, *[st.floats(-0.2, 0.2)] * 3)
def test_turning_and_moving_the_head_changes_no_expression(pitch, yaw, roll, x, y, z):
    smile = face(**both(mouth_corner=(3, 8, -3)))
    still = visible_motion(smile, NEUTRAL, 25)
    seen = visible_motion(turned(smile, (pitch, yaw, roll), (x, y, z)), NEUTRAL, 25)
    assert seen.expression.mouth_lift == pytest.approx(still.expression.mouth_lift, abs=1e-6)
    assert seen.head[0] == pytest.approx([pitch, yaw, roll], abs=1e-6)
    # three points lie in a plane and fit their own mirror image as well
    flat = visible_motion(turned(smile, (pitch, yaw, roll), (x, y, z)), NEUTRAL, 25, SKULL)
    assert flat.head[0] == pytest.approx([pitch, yaw, roll], abs=1e-6)
    assert flat.expression.mouth_lift[0] == pytest.approx([8, 8], abs=1e-6)


def test_raised_brows_are_not_mistaken_for_a_nod():
    raised = face(**both(brow_outer=(0, 5, 0), brow_inner=(0, 5, 0)))
    good = visible_motion(raised, NEUTRAL, 25, SKULL)
    assert np.abs(good.head).max() < 1e-9 and good.expression.brow_inner[0] == pytest.approx([5, 5])
    # with the points of the face alone the frame gives way a little, but the smile is off by under
    # a millimetre
    coarse = visible_motion(raised, NEUTRAL, 25)
    assert np.abs(coarse.expression.mouth_lift).max() < 1


def test_valence_of_faces():
    def valence(**moves):
        return displayed_valence(
            visible_motion(face(**both(**moves)), NEUTRAL, 25, SKULL).expression
        )[0]

    assert valence(mouth_corner=(0, 8, 0)) == pytest.approx(np.tanh(1))
    assert valence(mouth_corner=(0, -4, 0)) == pytest.approx(np.tanh(-1))
    assert valence(brow_inner=(0, -5, 0)) == pytest.approx(np.tanh(-0.35))  # anger
    assert valence(brow_inner=(0, 5, 0)) == pytest.approx(np.tanh(-0.35))  # grief
    assert valence(brow_inner=(0, 5, 0), brow_outer=(0, 5, 0)) == 0  # surprise is neither
    lifts = [valence(mouth_corner=(0, mm, 0)) for mm in (-6, -3, 0, 2, 4, 8)]
    assert lifts == sorted(lifts)


def test_bad_landmarks_are_named():
    good = face()
    with pytest.raises(ValueError, match=r"\['nose_tip'\] are absent"):
        visible_motion({k: v for k, v in good.items() if k != "nose_tip"}, NEUTRAL, 25)
    with pytest.raises(ValueError, match="'lip_upper'.*expected"):
        visible_motion(good | {"lip_upper": good["lip_upper"][:5]}, NEUTRAL, 25)
    broken = good["lip_upper"].copy()
    broken[7, 1] = np.nan
    with pytest.raises(ValueError, match="'lip_upper' is not finite at frame 7"):
        visible_motion(good | {"lip_upper": broken}, NEUTRAL, 25)
    with pytest.raises(ValueError, match="three points"):
        visible_motion(good, NEUTRAL, 25, ("nose_tip", "temple_left"))
    with pytest.raises(ValueError, match="swapped"):
        upper, lower = NEUTRAL["eyelid_upper_left"], NEUTRAL["eyelid_lower_left"]
        visible_motion(good, NEUTRAL | {"eyelid_upper_left": lower, "eyelid_lower_left": upper}, 25)
    with pytest.raises(ValueError, match="single frame"):
        visible_motion(face(0), NEUTRAL, 25)


@pytest.fixture(scope="module")
def head():
    asset = load_head()
    return asset, FlameHead(asset), face_landmarks(asset)


LAYOUT = Layout((("expr", 50), ("jaw", 3), ("eyelid", 2), ("rot", 3)), 25, "builtin")


def pose(asset, shapes, **groups):
    """One frame of a motion: ARKit shapes by name (both sides), and other groups."""
    values = np.zeros((1, LAYOUT.dim))
    for name, weight in shapes.items():
        for full in (name, name + "Left", name + "Right"):
            if full in asset.arkit:
                values[0, :50] += weight * asset.arkit[full][:50]
    for name, value in groups.items():
        values[0, LAYOUT.columns(name)] = value
    return Motion(values, LAYOUT)


def test_expressions_of_the_built_in_head_are_seen_as_what_they_are(head):
    asset, flame, marks = head

    def see(shapes, **groups):
        return watch(flame, marks, pose(asset, shapes, **groups)).expression

    assert see({"mouthSmile": 1}).mouth_lift.min() > 8
    assert see({"mouthFrown": 1}).mouth_lift.max() < -3
    assert see({"browInnerUp": 1}).brow_inner.min() > 3
    assert see({"browDown": 1}).brow_inner.max() < -2
    assert see({}, jaw=(0.2, 0, 0)).lip_opening[0] > 8
    assert see({}, eyelid=(1, 1)).eye_opening.max() < 0.35
    valence = [
        displayed_valence(see(s))[0]
        for s in ({"mouthFrown": 0.6}, {"browDown": 0.6}, {}, {"mouthSmile": 0.5})
    ]
    assert (
        valence == sorted(valence)
        and valence[2] == pytest.approx(0, abs=1e-4)
        and valence[-1] > 0.5
    )


@pytest.mark.parametrize("rot", [(0.3, 0, 0), (0, 0.5, 0), (0, 0, 0.3), (-0.2, 0.3, 0.2)])
def test_a_smile_of_the_built_in_head_is_as_wide_when_it_turns(head, rot):
    asset, flame, marks = head
    shape = np.array([0.5, -0.5, 0.3])
    for shapes in (
        {"mouthSmile": 0.6},
        {"mouthSmile": 0.6, "browInnerUp": 0.5, "browOuterUp": 0.5},
    ):
        front = watch(flame, marks, pose(asset, shapes), shape)
        aside = watch(flame, marks, pose(asset, shapes, rot=rot), shape)
        assert aside.expression.mouth_lift == pytest.approx(front.expression.mouth_lift, rel=0.01)
        assert aside.head[0] == pytest.approx(rot, abs=0.06)
