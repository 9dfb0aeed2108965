"""Landmarks go where a person would point, and move as their names promise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rapport.policies.head.asset import HeadAsset, TopologyError, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_landmarks, face_regions
from rapport.policies.motion import Layout, Motion
from rapport.rewards.ratings.visible import displayed_valence, watch

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ICT = SHARED / "ict_facekit_light" / "ict_narrow_face.npz"


@pytest.fixture(scope="module")
def place():
    """place(arkit shapes, jaw, eyelid) -> landmark positions (3,) metres by name."""
    asset = load_head()
    head, marks = FlameHead(asset), face_landmarks(asset)

    def place(jaw=0.0, eyelid=0.0, **shapes):
        # The first 50 coefficients only: what a policy speaks in.
        expr = torch.from_numpy(asset.expr(**shapes))[None, :50]
        points = head(expr, jaw=torch.tensor([[jaw, 0, 0]]), eyelid=torch.full((1, 2), eyelid))[
            0
        ].numpy()
        return {name: points[index].mean(0) for name, index in marks.items()}

    return place


def height(a, b, name):
    return (b[name] - a[name])[1]


def test_anatomy(place):
    rest = place()
    up = [
        "chin",
        "lip_lower",
        "lip_upper",
        "nose_tip",
        "eyelid_lower_left",
        "eyelid_upper_left",
        "brow_inner_left",
    ]
    assert [rest[name][1] for name in up] == sorted(rest[name][1] for name in up)
    assert rest["nose_tip"][2] == max(point[2] for point in rest.values())
    for name in [n.removesuffix("_left") for n in rest if n.endswith("_left")]:
        left, right = rest[f"{name}_left"], rest[f"{name}_right"]
        assert left[0] > 0.01
        np.testing.assert_allclose(left, right * [-1, 1, 1], atol=2e-3)
    assert rest["brow_outer_left"][0] > rest["brow_inner_left"][0] + 0.02


def test_smile_lifts_the_corners_and_frown_lowers_them(place):
    rest = place()
    smile, frown = (
        place(mouthSmileLeft=1, mouthSmileRight=1),
        place(mouthFrownLeft=1, mouthFrownRight=1),
    )
    for name in ("mouth_corner_left", "mouth_corner_right"):
        assert height(rest, smile, name) > 0.005
        assert height(rest, frown, name) < -0.003
    assert abs(height(rest, smile, "brow_inner_left")) < 0.001


def test_one_sided_smile_is_one_sided(place):
    rest, smirk = place(), place(mouthSmileLeft=1)
    assert (
        height(rest, smirk, "mouth_corner_left")
        > 0.005
        > 3 * abs(height(rest, smirk, "mouth_corner_right"))
    )


def test_brow_raise_lifts_the_brows_and_anger_lowers_them(place):
    rest, raised = place(), place(browInnerUp=1, browOuterUpLeft=1, browOuterUpRight=1)
    for name in ("brow_inner_left", "brow_inner_right", "brow_outer_left", "brow_outer_right"):
        assert height(rest, raised, name) > 0.002
    assert height(rest, place(browDownLeft=1, browDownRight=1), "brow_inner_left") < -0.002


def test_open_jaw_parts_the_lips_and_lowers_the_chin(place):
    rest, opened = place(), place(jaw=0.3)
    gap = lambda p: p["lip_upper"][1] - p["lip_lower"][1]  # noqa: E731
    assert gap(opened) - gap(rest) > 0.01
    assert height(rest, opened, "chin") < -0.01
    assert (
        abs(height(rest, opened, "nose_tip")) < 0.001 > abs(height(rest, opened, "brow_inner_left"))
    )


def test_blink_closes_the_lids(place):
    rest, closed = place(), place(eyelid=1.0)
    for side in ("left", "right"):
        before = rest[f"eyelid_upper_{side}"][1] - rest[f"eyelid_lower_{side}"][1]
        after = closed[f"eyelid_upper_{side}"][1] - closed[f"eyelid_lower_{side}"][1]
        assert after < 0.5 * before


@pytest.fixture(scope="module")
def like_flame():
    """The built-in head as a FLAME file tells of it: no ARKit shapes, no eyelids."""
    return replace(load_head(), topology="flame2020", arkit={}, eyelids=None)


def test_landmarks_by_form_are_where_those_by_movement_are(like_flame):
    known, points = face_landmarks(load_head()), like_flame.v_template
    by_form = face_landmarks(like_flame)
    assert by_form.keys() == known.keys()
    for name, vertices in by_form.items():
        assert vertices.shape == (5,)
        apart = np.linalg.norm(points[vertices].mean(0) - points[known[name]].mean(0))
        # What dimples most is the cheek beside the corner, not the corner itself.
        assert apart < (0.010 if name.startswith("mouth_corner") else 0.005), name


def test_faces_by_form_show_the_same_valence_as_by_movement(like_flame):
    asset = load_head()
    shapes = [{}, {"mouthSmileLeft": 0.5, "mouthSmileRight": 0.5}, {"browInnerUp": 0.7}]
    shapes += [{"mouthFrownLeft": 0.5, "mouthFrownRight": 0.5}]
    shapes += [{"browDownLeft": 0.7, "browDownRight": 0.7}]
    expr = np.stack([asset.expr(**shape) for shape in shapes])
    shown = []
    for head in (asset, like_flame):
        motion = Motion(expr, Layout((("expr", 100),), 25, head.topology))
        seen = watch(FlameHead(head), face_landmarks(head), motion)
        shown.append(displayed_valence(seen.expression))
    np.testing.assert_allclose(shown[1], shown[0], atol=0.2)
    assert shown[1][1] > 0.4 and max(shown[1][2:]) < -0.1


def ict_head():
    """ICT FaceKit's face in FLAME's layout: its jaw is what `jawOpen` moves; eyes are added."""
    data = np.load(ICT)
    names = data["expr_names"].tolist()
    skin = data["v_template"] / 100
    shapes = np.moveaxis(data["expr_basis"].astype(np.float32), 0, 2) / 100
    marks = data["landmarks68"]
    eyes = [skin[marks[part]].mean(0) - [0, 0, 0.011] for part in (slice(42, 48), slice(36, 42))]
    ball = load_head()
    ball_vertices = np.flatnonzero(ball.weights[:, 3] > 0.5)
    sphere = 0.8 * (ball.v_template[ball_vertices] - ball.joints[3])
    corners = np.isin(ball.faces, ball_vertices).all(axis=1)
    sphere_faces = np.searchsorted(ball_vertices, ball.faces[corners])
    points = np.concatenate([skin, eyes[0] + sphere, eyes[1] + sphere]).astype(np.float32)
    quads = data["quads"].astype(np.int64)
    faces = [quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]
    faces += [sphere_faces + len(skin), sphere_faces + len(skin) + len(sphere)]
    weights = np.zeros((len(points), 5), np.float32)
    opened = np.linalg.norm(shapes[..., names.index("jawOpen")], axis=1)
    weights[: len(skin), 2] = np.clip(opened / np.percentile(opened, 98), 0, 1)
    weights[: len(skin), 1] = 1 - weights[: len(skin), 2]
    weights[len(skin) : len(skin) + len(sphere), 3] = 1
    weights[len(skin) + len(sphere) :, 4] = 1
    regressor = np.zeros((5, len(points)), np.float32)
    for joint in (3, 4):
        regressor[joint] = weights[:, joint] / weights[:, joint].sum()
    exprdirs = np.zeros((len(points), 3, 100), np.float32)
    exprdirs[: len(skin), :, : len(names)] = shapes
    head = HeadAsset(
        topology="flame2020",
        v_template=points,
        faces=np.concatenate(faces).astype(np.int32),
        shapedirs=np.zeros((len(points), 3, 300), np.float32),
        exprdirs=exprdirs,
        posedirs=np.zeros((36, len(points), 3), np.float32),
        weights=weights,
        joint_regressor=regressor,
        colors=np.full((len(points), 3), 0.5, np.float32),
    )
    return head, names, {name: skin[marks[index]] for name, index in OF_68.items()}


# Of the 68 landmarks that are in common use: 0 to 16 the outline, from the head's right, ...
OF_68 = {"nose_tip": 30, "lip_upper": 62, "lip_lower": 66}
OF_68 |= {"mouth_corner_right": 48, "mouth_corner_left": 54}
OF_68 |= {"brow_inner_right": 21, "brow_inner_left": 22}
OF_68 |= {"eyelid_upper_right": 38, "eyelid_upper_left": 43}
OF_68 |= {"eyelid_lower_right": 40, "eyelid_lower_left": 47}


@pytest.mark.skipif(not ICT.is_file(), reason="ICT FaceKit's head is not beside this checkout")
def test_another_mesh_has_its_landmarks_where_its_makers_put_them():
    head, _, makers = ict_head()
    marks = face_landmarks(head)
    for name, place in makers.items():
        apart = np.linalg.norm(head.v_template[marks[name]].mean(0) - place)
        assert apart < 0.008, f"{name}: {1000 * apart:.1f} mm"


@pytest.mark.skipif(not ICT.is_file(), reason="ICT FaceKit's head is not beside this checkout")
def test_smiles_and_frowns_of_another_mesh_are_seen():
    head, names, _ = ict_head()
    wanted = ["mouthSmile", "mouthFrown", "browDown", "browInnerUp", "mouthDimple", "eyeBlink"]
    expr = np.zeros((len(wanted) + 1, 100))
    for row, shape in enumerate(wanted):
        for side in "LR":
            expr[row, names.index(f"{shape}_{side}")] = 0.8
    motion = Motion(expr, Layout((("expr", 100),), 25, "flame2020"))
    seen = watch(FlameHead(head), face_landmarks(head), motion).expression
    smile, frown, anger, concern, dimple, blink, rest = displayed_valence(seen)
    assert smile > 0.6 and frown < -0.5 and anger < -0.2 and concern < -0.3
    assert rest == pytest.approx(0, abs=1e-6) and abs(blink) < 0.05 < dimple < smile
    assert seen.eye_opening[5].max() < 0.4 and seen.brow_inner[2].max() < -2 < 3
    assert seen.brow_inner[3].min() > 3


def test_what_is_no_face_says_what_was_not_found(like_flame):
    blind = like_flame.weights.copy()
    blind[:, 3:] = 0
    with pytest.raises(TopologyError, match="no vertices belong to its jaw and to both eyes"):
        face_landmarks(replace(like_flame, weights=blind))
    upside_down = like_flame.v_template * np.float32([1, -1, 1])
    with pytest.raises(TopologyError, match="flame2020 head: .*y up"):
        face_landmarks(replace(like_flame, v_template=upside_down))
    aside = like_flame.v_template + np.float32([1, 0, 0])
    with pytest.raises(TopologyError, match="plane of symmetry"):
        face_landmarks(replace(like_flame, v_template=aside))


def test_regions_of_the_face_are_lips_and_what_is_above():
    head = load_head()
    regions, points = face_regions(head), head.v_template
    lip, upper = points[regions["lip"]], points[regions["upper"]]
    assert 50 < len(lip) < 1500 and 50 < len(upper) < 2500
    assert lip[:, 1].max() < upper[:, 1].mean() and not set(regions["lip"]) & set(regions["upper"])
    assert abs(lip[:, 0].mean()) < 0.002 and abs(upper[:, 0].mean()) < 0.004
    assert upper[:, 2].min() > 0, "the face, not the back of the head"
