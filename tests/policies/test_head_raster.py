"""The rasteriser against pictures one can work out by hand, then the head it draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapport.policies.head.asset import HeadAsset, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_landmarks
from rapport.policies.head.raster import (
    BACKGROUND,
    CAMERA_DISTANCE,
    INSIDE,
    Rasterizer,
    _darkness,
    _visible_faces,
)

UP = np.float32([[-0.1, -0.1, 0], [0.1, -0.1, 0], [0.1, 0.1, 0], [-0.1, 0.1, 0]])


def mesh(vertices, faces, colors=(0.5, 0.4, 0.3)) -> HeadAsset:
    """A "head" that is just these triangles."""
    v = len(vertices)
    weights = np.zeros((v, 5), np.float32)
    weights[:, 1] = 1
    return HeadAsset(
        topology="builtin",
        v_template=np.float32(vertices),
        faces=np.int32(faces),
        shapedirs=np.zeros((v, 3, 300), np.float32),
        exprdirs=np.zeros((v, 3, 100), np.float32),
        posedirs=np.zeros((36, v, 3), np.float32),
        weights=weights,
        joint_regressor=np.zeros((5, v), np.float32),
        colors=np.broadcast_to(np.float32(colors), (v, 3)),
    )


def draw(asset, vertices=None, **options):
    vertices = asset.v_template if vertices is None else vertices
    return Rasterizer(asset, **options).render(np.float32(vertices)[None])[0]


@pytest.fixture(scope="module")
def asset():
    return load_head()


@pytest.fixture(scope="module")
def head(asset):
    return FlameHead(asset)


def pose(head, asset, jaw=0.0, neck=(0.0, 0.0, 0.0), **shapes):
    expr = torch.from_numpy(asset.expr(**shapes))[None]
    return head(
        expr, jaw=torch.tensor([[jaw, 0, 0]]), neck=torch.tensor([neck], dtype=torch.float32)
    ).numpy()


def test_a_facing_square_has_the_size_and_the_light_of_the_formulas():
    image = draw(mesh(UP, [[0, 1, 2], [0, 2, 3]]), size=130)
    rows, columns = (
        np.flatnonzero((image != BACKGROUND).any((1, 2))),
        np.flatnonzero((image != BACKGROUND).any((0, 2))),
    )
    # The frame is 1.3 times the square: 100 of 130 pixels, in the middle.
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (15, 114, 15, 114)
    lights = np.array([[-0.45, 0.55, 0.75], [0.75, 0.15, 0.5], [0, -0.8, 0.4]])
    intensity = np.array([0.62, 0.22, 0.05])
    lights /= np.linalg.norm(lights, axis=1, keepdims=True)
    halfway = lights + [0, 0, 1]
    gloss = (halfway[:, 2] / np.linalg.norm(halfway, axis=1)) ** 24
    linear = np.array([0.5, 0.4, 0.3]) * (0.1 + lights[:, 2] @ intensity) + 0.06 * gloss @ intensity
    np.testing.assert_allclose(image[65, 65], 255 * np.sqrt(linear), atol=1)


def test_perspective_nearer_is_larger_and_project_says_where():
    asset = mesh(UP, [[0, 1, 2], [0, 2, 3]])
    rasterizer = Rasterizer(asset, size=130)
    near = rasterizer.project(UP + np.float32([0, 0, CAMERA_DISTANCE / 10]))
    np.testing.assert_allclose(near[1] - near[0], [100 / 0.9, 0, 0], atol=1e-3)
    np.testing.assert_allclose(rasterizer.project(UP)[3], [15, 15, 0], atol=1e-4)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_nearer_surface_hides_the_farther_in_any_order(order):
    back, front = UP * 1.0, UP * 0.5 + np.float32([0, 0, 0.05])
    faces = np.array([[[0, 1, 2], [0, 2, 3]], [[4, 5, 6], [4, 6, 7]]])[order].reshape(-1, 3)
    image = draw(
        mesh(np.concatenate([back, front]), faces, [[0.1, 0.1, 0.8]] * 4 + [[0.8, 0.1, 0.1]] * 4),
        size=64,
    )
    assert image[32, 32, 0] > image[32, 32, 2] and image[32, 10, 2] > image[32, 10, 0]


def test_back_faces_are_the_inside():
    assert (draw(mesh(UP, [[0, 2, 1], [0, 3, 2]]), size=32)[16, 16] == INSIDE).all()


def test_a_pixel_exactly_on_a_shared_edge_is_hit():
    rng = np.random.default_rng(0)
    depth, face_id = np.empty((64, 64), np.float32), np.empty((64, 64), np.int32)
    for _ in range(500):
        x, y = rng.integers(20, 44, 2)
        angle, lengths = rng.uniform(0, 2 * np.pi), rng.uniform(1, 15, 4)
        turns = angle + np.array(
            [0, np.pi, np.pi / 2, -np.pi / 2]
        )  # the edge runs through the pixel's middle
        corners = np.stack(
            [x + 0.5 + lengths * np.cos(turns), y + 0.5 + lengths * np.sin(turns), 0 * turns],
            axis=1,
        )
        _visible_faces(corners.astype(np.float32), np.int32([[0, 2, 1], [1, 3, 0]]), depth, face_id)
        assert face_id[y, x] >= 0


@pytest.mark.parametrize("supersample", [1, 2])
def test_no_cracks_in_a_fine_mesh(supersample):
    rng = np.random.default_rng(0)
    n = 60
    grid = np.stack(np.meshgrid(np.linspace(-0.1, 0.1, n), np.linspace(-0.1, 0.1, n)), -1)
    grid[1:-1, 1:-1] += rng.uniform(-0.0015, 0.0015, (n - 2, n - 2, 2))
    vertices = np.concatenate([grid.reshape(-1, 2), rng.normal(size=(n * n, 1)) * 1e-4], axis=1)
    corner = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + n + 1], 1),
            np.stack([corner, corner + n + 1, corner + n], 1),
        ]
    )
    for angle in (0, 0.3, 0.785):
        c, s = np.cos(angle), np.sin(angle)
        turned = vertices @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        image = draw(mesh(vertices, faces), turned, size=256, supersample=supersample)
        middle = image[80:176, 80:176]
        assert (middle.astype(int).max(-1) > 100).all(), (
            "a dark pixel shows the background through a crack"
        )


def test_texture_is_bilinear_inside_and_nothing_outside():
    texture = np.float32([[0, 1], [0.5, 0.5]])
    assert _darkness(texture, np.float32(0.5), np.float32(0.25)) == pytest.approx(0.5)
    assert _darkness(texture, np.float32(0.7), np.float32(0.25)) == pytest.approx(0.9)
    assert _darkness(texture, np.float32(0.5), np.float32(0.5)) == pytest.approx(0.5)
    for u, v in ((-0.5, 0.5), (1.5, 0.5), (0.5, -0.5), (0.5, 1.5), (-2.0, -2.0)):
        assert _darkness(np.ones((4, 4), np.float32), np.float32(u), np.float32(v)) == 0


def test_flat_and_edge_on_triangles_are_skipped():
    vertices = np.float32([[0, 0, 0], [0, 0, 0], [0, 0.1, 0], [0, -0.1, -0.1]])
    assert (
        draw(mesh(np.concatenate([vertices, UP]), [[0, 1, 2], [0, 2, 3]]), size=16) == BACKGROUND
    ).all()


def test_a_face_partly_outside_the_frame_is_cut_off():
    image = draw(mesh(UP, [[0, 1, 2], [0, 2, 3]]), UP * 3 + np.float32([0.3, 0.1, 0]), size=64)
    assert (image[:, 40:] != BACKGROUND).all() and (image[:, :20] == BACKGROUND).all()


def test_supersampling_halves_a_half_covered_edge():
    image = draw(
        mesh(UP, [[0, 1, 2], [0, 2, 3]]), UP * [0.5 * 1.01, 0.5, 1], size=130, supersample=2
    )
    inside, edge = image[65, 65].astype(int), image[65, 39].astype(int)
    np.testing.assert_allclose(edge, (inside + np.array(BACKGROUND)) / 2, atol=1)


def test_the_head_is_in_the_middle_and_fills_the_frame(asset, head):
    image = draw(asset, size=256)
    skull = (image > 60).any(-1)[:180]  # the bust below is darker and wider
    columns, rows = np.flatnonzero(skull.any(0)), np.flatnonzero(skull.any(1))
    assert abs((columns[0] + columns[-1]) / 2 - 127.5) < 2
    assert 20 < rows[0] < 45 and 115 < np.ptp(columns) < 170


def test_two_renderings_are_equal_and_leave_their_input_alone(asset, head):
    vertices = pose(head, asset, jaw=0.2)
    before = vertices.copy()
    rasterizer = Rasterizer(asset, size=128)
    first = rasterizer.render(vertices)
    rasterizer.render(pose(head, asset))
    np.testing.assert_array_equal(first, rasterizer.render(vertices))
    np.testing.assert_array_equal(before, vertices)


def test_supersampled_is_the_same_picture_but_for_edges(asset):
    one, two = draw(asset, size=256).astype(int), draw(asset, size=256, supersample=2).astype(int)
    difference = np.abs(one - two).max(-1)
    assert difference.mean() < 1.5 and (difference > 25).mean() < 0.02 and difference.max() > 10


def test_smile_moves_the_picture_around_the_mouth_and_lifts_its_corners(asset, head):
    rasterizer, marks = Rasterizer(asset, size=256), face_landmarks(asset)
    rest, smile = pose(head, asset), pose(head, asset, mouthSmileLeft=0.8, mouthSmileRight=0.8)
    for side in ("left", "right"):
        corner = marks[f"mouth_corner_{side}"]
        before, after = (rasterizer.project(v[0, corner].mean(0)) for v in (rest, smile))
        assert after[1] < before[1] - 3, "pixel rows count downwards"
    changed = (
        np.abs(rasterizer.render(rest)[0].astype(int) - rasterizer.render(smile)[0]).max(-1) > 10
    )
    mouth = rasterizer.project(
        rest[0, np.concatenate([marks["lip_upper"], marks["lip_lower"]])].mean(0)
    )
    rows, columns = np.nonzero(changed)
    assert changed.sum() > 200
    near = (np.abs(rows - mouth[1]) < 40) & (np.abs(columns - mouth[0]) < 60)
    assert near.mean() > 0.98


def test_brows_are_dark_and_stay_on_the_brow_when_the_head_turns(asset, head):
    plain = replace(asset, texture=None, uv=None)
    marks = face_landmarks(asset)
    for yaw in (0.0, 1.0, 2.2):
        vertices = pose(head, asset, neck=(0.0, yaw, 0.0))
        with_brows, without = draw(asset, vertices[0], size=256), draw(plain, vertices[0], size=256)
        painted = with_brows.astype(int).sum(-1) < without.astype(int).sum(-1) - 60
        assert (painted.sum() > 150) == (yaw < 2), "the back of a head has no brows"
        brow = Rasterizer(asset).project(
            vertices[0, np.concatenate([v for k, v in marks.items() if "brow" in k])]
        )
        rows = np.nonzero(painted)[0]
        assert all(brow[:, 1].min() - 20 < row < brow[:, 1].max() + 5 for row in rows)


def test_open_mouth_is_dark(asset, head):
    rasterizer, marks = Rasterizer(asset, size=256), face_landmarks(asset)
    opened = pose(head, asset, jaw=0.3)
    lips = [
        rasterizer.project(opened[0, marks[name]].mean(0)) for name in ("lip_upper", "lip_lower")
    ]
    x, y = ((lips[0] + lips[1]) / 2)[:2].astype(int)
    assert (
        rasterizer.render(opened)[0, y, x].max()
        < 110
        < rasterizer.render(pose(head, asset))[0, y + 12, x].max()
    )


def test_no_frames_in_no_frames_out(asset):
    assert Rasterizer(asset, size=32).render(np.zeros((0, 5023, 3), np.float32)).shape == (
        0,
        32,
        32,
        3,
    )


def test_bad_input_is_named(asset):
    with pytest.raises(ValueError, match=r"\(1, 7, 3\).*5023"):
        Rasterizer(asset).render(np.zeros((1, 7, 3)))
    with pytest.raises(ValueError, match="supersample"):
        Rasterizer(asset, supersample=3)
