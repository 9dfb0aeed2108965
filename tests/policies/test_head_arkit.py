"""ARKit's weights from and to the motion of a head: only what 52 weights cannot say is lost."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import lsq_linear
from scipy.spatial.transform import Rotation

from rapport.pipeline.data.synthetic.figures import LAYOUT
from rapport.policies.head.arkit import (
    EXPRESSIONS,
    NAMES,
    ArkitRig,
    arkit_layout,
    with_shapes,
)
from rapport.policies.head.asset import AssetError, TopologyError, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.motion import Layout, Motion

WIDE = Layout((("expr", 100), ("jaw", 3), ("eyelid", 2), ("eyepose", 6), ("rot", 3)), 25, "builtin")


@pytest.fixture(scope="module")
def head():
    return load_head()


@pytest.fixture(scope="module")
def rig(head):
    return ArkitRig(head)


def face(frames=40, seed=0, most=0.5):
    """Random weights, of which no two exclude each other."""
    rng = np.random.default_rng(seed)
    weights = most * rng.random((frames, len(NAMES))) * (rng.random((frames, len(NAMES))) < 0.4)
    for name in NAMES:
        if "Down" in name and "Look" in name:
            weights[:, NAMES.index(name.replace("Down", "Up"))] = 0
        if "LookIn" in name:
            weights[:, NAMES.index(name.replace("In", "Out"))] = 0
    weights[:, [NAMES.index("jawRight"), NAMES.index("tongueOut")]] = 0
    turns = 0.3 * rng.normal(size=(frames, 9))
    return Motion(np.concatenate([weights, turns], axis=1), arkit_layout(25))


def test_there_are_52_names_and_38_of_them_are_expressions(head):
    assert len(set(NAMES)) == 52 and NAMES[0] == "eyeBlinkLeft" and NAMES[-1] == "tongueOut"
    assert set(EXPRESSIONS) == set(head.arkit) and len(EXPRESSIONS) == 38


def test_weights_come_back_from_a_head_that_has_all_coefficients(rig):
    weights = face()
    again = rig.weights(rig.motion(weights, WIDE))
    assert np.abs(again.group("expr") - weights.group("expr")).max() < 1e-3
    np.testing.assert_allclose(again.group("rot"), weights.group("rot"), atol=1e-5)


def test_solutions_are_those_of_scipys_bounded_least_squares(rig, head):
    rng = np.random.default_rng(1)
    expr = rng.normal(size=(3, 100)) * np.linspace(1.5, 0.2, 100)
    motion = Motion(expr, Layout((("expr", 100),), 25, "builtin"))
    ours = rig.weights(motion).group("expr")[:, [NAMES.index(name) for name in rig.names]]
    directions = head.exprdirs.reshape(-1, 100).astype(np.float64)
    shapes = directions @ np.stack([head.arkit[name] for name in rig.names]).T
    for found, wanted in zip(ours, expr, strict=True):
        solution = lsq_linear(shapes, directions @ wanted, bounds=(0, 1), tol=1e-12).x
        np.testing.assert_allclose(found, solution, atol=2e-3)
    assert (ours == 1).any() and (ours == 0).any()


def test_a_listeners_face_loses_a_tenth_at_most(rig, head, tiny_corpus):
    still = LAYOUT.subset({"expr": 50, "jaw": 3, "eyelid": 2, "eyepose": 6})
    model = FlameHead(head)
    lost = moved = 0.0
    for clip in tiny_corpus.clips("train"):
        motion = clip.listener.subset(still)
        shown = model.vertices_of(motion)
        again = model.vertices_of(rig.motion(rig.weights(motion), still))
        lost += float(((again - shown) ** 2).sum())
        moved += float(((shown - head.v_template) ** 2).sum())
    assert (lost / moved) ** 0.5 <= 0.10


@pytest.mark.parametrize(
    ("group", "values", "name", "weight"),
    [
        ("eyelid", [1, 0], "eyeBlinkLeft", 1),
        ("jaw", [0.212, 0, 0], "jawOpen", 0.5),
        ("jaw", [0, 0.115, 0], "jawLeft", 1),
        ("eyepose", [0.305, 0, 0, 0, 0, 0], "eyeLookDownLeft", 0.5),
        ("eyepose", [0, 0.29, 0, 0, 0, 0], "eyeLookOutLeft", 0.5),
        ("eyepose", [0, 0, 0, 0, 0.31, 0], "eyeLookInRight", 0.5),
    ],
)
def test_groups_become_the_weights_of_their_side_and_direction(rig, group, values, name, weight):
    motion = Motion(np.array([values], np.float32), Layout(((group, len(values)),), 25, "builtin"))
    weights = rig.weights(motion).group("expr")[0]
    assert weights[NAMES.index(name)] == pytest.approx(weight, abs=1e-5)
    assert weights.sum() == pytest.approx(weight, abs=1e-5)


def test_jaw_left_moves_the_chin_to_the_heads_own_left(rig, head):
    weights = np.zeros((1, 61))
    weights[0, NAMES.index("jawLeft")] = 1
    motion = rig.motion(Motion(weights, arkit_layout(25)), WIDE)
    jaw = head.weights[:, 2] > 0.9
    moved = FlameHead(head).vertices_of(motion)[0] - head.v_template
    assert moved[jaw, 0].mean() > 0.003


def test_the_heads_turn_is_that_of_root_and_neck_and_goes_where_the_layout_has_room(rig):
    rot, neck = np.array([[0.2, 0.1, 0.0]]), np.array([[0.0, 0.3, 0.1]])
    both = Layout((("rot", 3), ("neck", 3)), 25, "builtin")
    weights = rig.weights(Motion(np.concatenate([rot, neck], axis=1), both))
    turn = (Rotation.from_rotvec(rot) * Rotation.from_rotvec(neck)).as_rotvec()
    np.testing.assert_allclose(weights.group("rot"), turn, atol=1e-6)
    again = rig.motion(weights, both)
    np.testing.assert_allclose(again.group("rot"), turn, atol=1e-6)
    assert not again.group("neck").any()
    only = rig.motion(weights, Layout((("neck", 3),), 25, "builtin"))
    np.testing.assert_allclose(only.group("neck"), turn, atol=1e-6)


def test_unlike_heads_rates_and_layouts_are_refused(rig):
    flame = Motion(np.zeros((1, 50)), Layout((("expr", 50),), 25, "flame2020"))
    with pytest.raises(TopologyError, match="load the head that the motion is of"):
        rig.weights(flame)
    with pytest.raises(TopologyError, match="weights must be in expr 52"):
        rig.motion(face(), Layout((("expr", 50),), 30, "builtin"))
    with pytest.raises(TopologyError, match="motion of this builtin head"):
        rig.motion(face(), flame.layout)


@pytest.fixture
def flame(head):
    """A FLAME head by its arrays; the built-in one's, since FLAME's may not be passed on."""
    return replace(head, topology="flame2020", arkit={}, eyelids=None)


def test_a_flame_head_without_shapes_says_that_it_shows_no_expression(flame, caplog):
    with caplog.at_level("WARNING", logger="rapport"):
        rig = ArkitRig(flame)
    assert "no ARKit shapes: pose, jaw and blinks" in caplog.text and rig.names == ()
    layout = Layout((("expr", 50), ("jaw", 3)), 25, "flame2020")
    values = np.ones((2, 53)) * 0.1
    weights = rig.weights(Motion(values, layout)).group("expr")
    assert set(np.flatnonzero(weights[0])) == {NAMES.index("jawOpen"), NAMES.index("jawLeft")}
    assert not rig.motion(face(2), layout).group("expr").any()


def test_a_file_gives_a_flame_head_its_shapes_as_coefficients_or_as_ways(head, flame, tmp_path):
    short = {name: row[:60] for name, row in head.arkit.items()}
    np.savez(tmp_path / "rows.npz", **short, jawOpen=np.ones(3))
    rows = with_shapes(flame, tmp_path / "rows.npz")
    assert set(rows.arkit) == set(EXPRESSIONS)
    np.testing.assert_array_equal(rows.arkit["cheekPuff"][:60], head.arkit["cheekPuff"][:60])
    ways = {name: head.exprdirs @ row for name, row in list(head.arkit.items())[:3]}
    np.savez(tmp_path / "ways.npz", **ways)
    fitted = with_shapes(flame, tmp_path / "ways.npz")
    for name, way in ways.items():
        np.testing.assert_allclose(head.exprdirs @ fitted.arkit[name], way, atol=1e-5)


def test_ways_that_the_head_cannot_show_are_named(flame, tmp_path, caplog):
    odd = np.zeros_like(flame.v_template)
    odd[::50] = 0.01
    np.savez(tmp_path / "odd.npz", cheekPuff=odd)
    with caplog.at_level("WARNING", logger="rapport"):
        with_shapes(flame, tmp_path / "odd.npz")
    assert "cheekPuff: the head's expressions miss it by" in caplog.text


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"smile": np.ones(3)}, "no ARKit expression, but smile"),
        ({"cheekPuff": np.ones((7, 3))}, r"cheekPuff has shape \(7, 3\)"),
        ({"cheekPuff": np.ones(101)}, r"not \(n <= 100,\) or \(5023, 3\)"),
        ({"cheekPuff": np.full(3, np.nan)}, "finite numbers"),
        ({"cheekPuff": np.zeros(3)}, "not all 0"),
    ],
)
def test_files_of_other_shapes_are_refused(flame, tmp_path, arrays, message):
    np.savez(tmp_path / "shapes.npz", **arrays)
    with pytest.raises(AssetError, match=message):
        with_shapes(flame, tmp_path / "shapes.npz")
    with pytest.raises(AssetError, match="no file"):
        with_shapes(flame, tmp_path / "none.npz")
