"""Landmarks go where a person would point, and move as their names promise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapport.policies.head.asset import TopologyError, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_landmarks, face_regions


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


def test_heads_without_arkit_shapes_are_refused():
    with pytest.raises(TopologyError, match="landmark file"):
        face_landmarks(replace(load_head(), topology="flame2020", arkit={}))


def test_regions_of_the_face_are_lips_and_what_is_above():
    head = load_head()
    regions, points = face_regions(head), head.v_template
    lip, upper = points[regions["lip"]], points[regions["upper"]]
    assert 50 < len(lip) < 1500 and 50 < len(upper) < 2500
    assert lip[:, 1].max() < upper[:, 1].mean() and not set(regions["lip"]) & set(regions["upper"])
    assert abs(lip[:, 0].mean()) < 0.002 and abs(upper[:, 0].mean()) < 0.004
    assert upper[:, 2].min() > 0, "the face, not the back of the head"
