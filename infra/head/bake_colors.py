"""Paints the built-in head at build time.

Skin, lips, teeth, eyes, shadows baked by ray casting, and brows, for `infra.head.build_builtin`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.spatial import cKDTree

from rapport.policies.head.asset import (
    IRIS,
    IRIS_ANGLE,
    PUPIL,
    PUPIL_ANGLE,
    SCLERA,
    SKIN,
    HeadAsset,
)
from rapport.policies.head.flame import FlameHead

LIP = (0.44, 0.22, 0.20)
TOOTH = (0.80, 0.77, 0.70)
CAVITY = (0.05, 0.012, 0.010)
FADE = (0.02, 0.02, 0.02)
REACH = 0.06  # metres within which another surface shades
RAYS = 96
# Metres from the middle of the eyes, x and y, covered by the brow texture.
BROW_BOX = ((-0.08, 0.08), (-0.01, 0.06))
BROW_TEXELS = (224, 512)


def with_brows(head: HeadAsset, left_eye: slice) -> HeadAsset:
    """The head with brows: a texture projected on the resting face from the front.

    Vertices behind the face are moved out to their own side, far outside the texture: one common
    "off" place would smear the brows over the triangles in between.
    """
    eye_x, eye_y = head.joints[3, :2]
    (x0, x1), (y0, y1) = BROW_BOX
    rows, columns = BROW_TEXELS
    x = x0 + (np.arange(columns) + 0.5) / columns * (x1 - x0)
    y = y0 + (np.arange(rows)[:, None] + 0.5) / rows * (y1 - y0)
    along = (np.abs(x) - (eye_x - 0.0175)) / 0.042  # 0 at the inner end, 1 at the outer
    arch = (
        0.0205
        + 0.0080 * np.sin(np.clip(along, -0.1, 1.1) * 2)
        - 0.011 * np.clip(along - 0.62, 0, 1)
    )
    half_width = 0.0040 * (1 - 0.6 * np.clip(along, 0, 1)) + 0.0009
    ends = np.clip((along + 0.04) / 0.12, 0, 1) * np.clip((1.04 - along) / 0.16, 0, 1)
    texture = np.clip(1.6 - 1.1 * np.abs(y - arch) / half_width, 0, 1) * ends * 0.8

    v = head.v_template
    uv = np.stack([(v[:, 0] - x0) / (x1 - x0), (v[:, 1] - eye_y - y0) / (y1 - y0)], 1)
    behind = v[:, 2] < head.joints[3, 2] - 0.015
    uv[behind, 0] = (np.where(v[behind, 0] < 0, -0.25, 0.25) - x0) / (x1 - x0)
    uv[left_eye.start :] = -1
    return replace(head, uv=uv.astype(np.float32), texture=texture.astype(np.float32))


def head_colors(
    head: HeadAsset, lip: np.ndarray, teeth: np.ndarray, eyes: list[slice], eye_angle: np.ndarray
) -> HeadAsset:
    """The head with vertex colours.

    Args:
        head: without them.
        lip: (V,) how much a vertex belongs to the lips, in [0, 1].
        teeth: (V,) bool.
        eyes: vertices of the two eyeballs.
        eye_angle: (E,) radians from the gaze axis of each eyeball vertex.
    """
    v = head.v_template
    skin = np.arange(len(v)) < eyes[0].start
    lip = np.clip(1.6 * lip, 0, 1)
    colors = _mix(np.tile(SKIN, (len(v), 1)), LIP, 0.75 * lip)
    colors[teeth] = TOOTH

    mouth = v[lip > 0.5]
    near_mouth = (np.abs(v[:, 0]) < 0.04) & (np.abs(v[:, 1] - mouth[:, 1].mean()) < 0.045)
    # With the mouth ajar, or lips and teeth would shade each other black. But the creases at the
    # corners are dark when it rests.
    light, sky = _exposure(_opened(head), head.faces)
    corner = near_mouth & ~teeth & (lip < 0.3)
    light[corner] *= np.clip(_exposure(v.astype(np.float64), head.faces)[0] / 0.55, 0, 1)[corner]
    light = np.clip((light - 0.15) / 0.85, 0, 1)
    nook = np.where((light < 0.35) & skin, 0.9 * light + 0.05, 1)
    colors *= np.minimum(0.25 + 0.75 * light, nook)[:, None]
    behind_lips = (v[:, 2] < mouth[:, 2].max() - 0.004) & (v[:, 2] > 0.03)
    cavity = near_mouth & behind_lips & ~teeth & skin
    colors = _mix(colors, CAVITY, np.clip((0.62 - sky) / 0.25, 0, 1) * cavity)
    colors = _mix(colors, FADE, 1 - np.clip((_distance_to_cut(v, head.faces) - 0.003) / 0.03, 0, 1))

    eye = np.tile(SCLERA, (len(eye_angle), 1))
    eye[eye_angle < IRIS_ANGLE] = IRIS
    eye[eye_angle < PUPIL_ANGLE] = PUPIL
    for part in eyes:
        colors[part] = eye
    return replace(head, colors=colors.astype(np.float32))


def _distance_to_cut(v: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Metres (V,) to the open edge of the bust.

    There it fades into the dark background, because the edge is jagged.
    """
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    edges, count = np.unique(edges, axis=0, return_counts=True)
    rim = np.unique(edges[count == 1])
    rim = rim[v[rim, 1] < v[:, 1].min() + 0.06]
    return cKDTree(v[rim]).query(v)[0]


def _mix(colors: np.ndarray, other: tuple[float, float, float], share: np.ndarray) -> np.ndarray:
    return colors * (1 - share[:, None]) + np.asarray(other) * share[:, None]


def _opened(head: HeadAsset) -> np.ndarray:
    """Resting vertices but for an open jaw, (V, 3)."""
    vertices = FlameHead(head)(torch.zeros(1, 1), jaw=torch.tensor([[0.22, 0.0, 0.0]]))
    return vertices[0].double().numpy()


def _exposure(v: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ambient exposure and the share of rays that leave the head, (V,) each.

    By cosine-weighted rays.
    """
    import trimesh
    from trimesh.ray.ray_pyembree import RayMeshIntersector

    mesh = trimesh.Trimesh(v, faces, process=False)
    across = np.cross(v[faces[:, 1]] - v[faces[:, 0]], v[faces[:, 2]] - v[faces[:, 0]])
    normals = np.zeros_like(v)
    np.add.at(normals, faces.ravel(), np.repeat(across, 3, axis=0))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    sphere = np.random.default_rng(0).normal(size=(RAYS, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    directions = sphere + normals[:, None]
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    origins = np.repeat(v + normals * 4e-4, RAYS, axis=0)
    hits, rays, _ = RayMeshIntersector(mesh).intersects_location(
        origins, directions.reshape(-1, 3), multiple_hits=False
    )
    distance = np.full(len(origins), np.inf)
    distance[rays] = np.linalg.norm(hits - origins[rays], axis=1)
    distance = distance.reshape(len(v), RAYS)
    light = np.where(distance < REACH, np.clip(distance / REACH, 0, 1) ** 0.6, 1)
    return light.mean(1), np.isinf(distance).mean(1)
