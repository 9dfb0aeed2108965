"""Landmarks of a face as numbers that say what it does, wherever it is in the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from rapport.pipeline.data.video.landmarks import POINTS, SHAPES, Face

# Landmarks over bone, which no expression moves much: forehead, bridge of the nose, corners of the
# eyes, temples. Numbers of MediaPipe's mesh.
RIGID = np.array(
    [6, 8, 9, 10, 33, 54, 67, 103, 109, 127, 133, 143, 151, 162, 168, 195, 197]
    + [263, 284, 297, 332, 338, 356, 362, 372, 389]
)
WIDTH = 3 * POINTS + SHAPES + 6
_TO_HEAD = np.array([1.0, -1.0, -1.0])  # x right, y up, z to the viewer
_ROUNDS = 5  # of bringing faces onto their own mean


def upright(faces: Sequence[Face]) -> np.ndarray:
    """Points of faces about the middle of the rigid ones, in units of their size, (n, 478, 3)."""
    points = np.stack([face.points for face in faces]).astype(np.float64) * _TO_HEAD
    points -= points[:, RIGID].mean(axis=1, keepdims=True)
    sizes = np.linalg.norm(points[:, RIGID], axis=(1, 2)) / np.sqrt(len(RIGID))
    return np.asarray(points / sizes[:, None, None])


def mean_face(points: np.ndarray) -> np.ndarray:
    """The face that others are turned to, (478, 3), from points of many by `upright`."""
    mean = points.mean(axis=0)
    for _ in range(_ROUNDS):
        mean = np.matmul(points, _turns(points, mean)).mean(axis=0)
    return np.asarray(mean)


def features(faces: Sequence[Face], mean: np.ndarray) -> np.ndarray:
    """What is known of each face, (n, WIDTH) float32.

    Points of the face turned to the front, MediaPipe's blendshapes, and how the head is turned, as
    axis-angle, by those points and by MediaPipe's own estimate.
    """
    points = upright(faces)
    turns = _turns(points, mean)
    fronts = np.matmul(points, turns).reshape(len(faces), -1)
    shapes = np.stack([face.shapes for face in faces])
    seen = Rotation.from_matrix(turns).as_rotvec()
    told = Rotation.from_matrix(np.stack([face.turn for face in faces])).as_rotvec()
    return np.concatenate([fronts, shapes, seen, told], axis=1).astype(np.float32)


def _turns(points: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Rotations (n, 3, 3) that bring the mean's rigid points nearest to those of each face.

    Kabsch, "A solution for the best rotation to relate two sets of vectors", 1976.
    """
    left, _, right = np.linalg.svd(np.matmul(points[:, RIGID].transpose(0, 2, 1), mean[RIGID]))
    flipped = np.linalg.det(np.matmul(left, right)) < 0
    left[flipped, :, 2] *= -1
    return np.asarray(np.matmul(left, right))
