"""What a person can see of a face: movements of landmarks, apart from where the head is turned.

Measured from positions of points on the rendered face, in metres, never from coefficients: two
motions that look alike measure alike. Axes as the head's: x to its own left, y up, z forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.spatial.transform import Rotation

from rapport.policies.head.flame import FlameHead
from rapport.policies.motion import Motion

SIDES = ("left", "right")
PAIRED_POINTS = ("mouth_corner", "brow_inner", "brow_outer", "eyelid_upper", "eyelid_lower")
SINGLE_POINTS = ("lip_upper", "lip_lower", "nose_tip")
EXPRESSION_POINTS = (
    *(f"{name}_{side}" for name in PAIRED_POINTS for side in SIDES),
    *SINGLE_POINTS,
)
# Points that expressions move least, among those above. Points on the skull (temples, forehead),
# where the caller has them, make a better frame.
RIGID_POINTS = (
    "nose_tip",
    "brow_outer_left",
    "brow_outer_right",
    "eyelid_lower_left",
    "eyelid_lower_right",
)

MM = 1000.0  # millimetres in a metre
# How far features travel from rest in a full expression, in mm. The highest smile in 64 s of a
# person's Live Link Face recording, put on the built-in head, lifts the corners by 8.3 mm; a full
# smile shape by 14, which is a grin.
FULL_SMILE_MM = 8.0
FULL_FROWN_MM = 4.0  # corners go down about half as far as up
FULL_KNIT_MM = 5.0
FULL_OBLIQUE_MM = 5.0


@dataclass(frozen=True, eq=False)
class Expression:
    """Displacements from rest in the head's own frame; columns are left and right.

    Args:
        mouth_lift: (time, 2) corners of the mouth up, mm.
        mouth_spread: (time, 2) corners of the mouth outwards, mm.
        lip_opening: (time,) growth of the gap between the lips, mm.
        brow_inner: (time, 2) inner ends of the brows up, mm.
        brow_outer: (time, 2) outer ends of the brows up, mm.
        eye_opening: (time, 2) 1 = as open as at rest, 0 = closed.
    """

    mouth_lift: np.ndarray
    mouth_spread: np.ndarray
    lip_opening: np.ndarray
    brow_inner: np.ndarray
    brow_outer: np.ndarray
    eye_opening: np.ndarray


@dataclass(frozen=True, eq=False)
class VisibleMotion:
    """A face as seen over time.

    Args:
        fps: frames per second.
        head: (time, 3) rotation from the resting pose as axis-angle radians: pitch (positive when
            nodding down), yaw (positive to the head's own left), roll.
        expression: what the features do, or None where they cannot be seen (a covered or failed
            view).
    """

    fps: float
    head: np.ndarray
    expression: Expression | None

    def __len__(self) -> int:
        return len(self.head)

    def window(self, start: int, length: int) -> VisibleMotion:
        """Frames [start, start + length)."""
        frames = slice(start, start + length)
        expression = self.expression
        if expression is not None:
            seen = {
                each.name: getattr(expression, each.name)[frames] for each in fields(Expression)
            }
            expression = Expression(**seen)
        return VisibleMotion(self.fps, self.head[frames], expression)


def visible_motion(
    landmarks: Mapping[str, np.ndarray],
    neutral: Mapping[str, np.ndarray],
    fps: float,
    rigid: Sequence[str] = RIGID_POINTS,
) -> VisibleMotion:
    """Measure a face from the paths of its landmarks.

    Args:
        landmarks: name -> (time, 3) positions in metres; at least `EXPRESSION_POINTS` and `rigid`.
        neutral: name -> (3,) positions of the same head at rest, where all measures are zero.
        fps: frames per second.
        rigid: names of three or more points that turn with the head and that no expression moves.

    Raises:
        ValueError: a landmark is absent, of another length or not finite.
    """
    points = _checked(landmarks, neutral, (*EXPRESSION_POINTS, *rigid))
    rotations = head_rotations(points, neutral, rigid)
    # From the tip of the nose, which hardly any expression moves.
    nose = points["nose_tip"]
    rest_nose = np.asarray(neutral["nose_tip"], np.float64)
    displacements = {}  # (time, 3) mm, in the head's frame
    for name in EXPRESSION_POINTS:
        local = np.einsum("tji,tj->ti", rotations, points[name] - nose)
        rest = np.asarray(neutral[name], np.float64) - rest_nose
        displacements[name] = (local - rest) * MM

    def both(name: str, axis: int) -> np.ndarray:
        return np.stack([displacements[f"{name}_{side}"][:, axis] for side in SIDES], axis=1)

    rest_upper = np.array([neutral[f"eyelid_upper_{side}"][1] for side in SIDES])
    rest_lower = np.array([neutral[f"eyelid_lower_{side}"][1] for side in SIDES])
    rest_gap = (rest_upper - rest_lower) * MM
    if (rest_gap <= 0).any():
        raise ValueError(
            f"the resting eyes are {rest_gap} mm open; are upper and lower lid swapped?"
        )
    expression = Expression(
        mouth_lift=both("mouth_corner", 1),
        mouth_spread=both("mouth_corner", 0) * np.array([1.0, -1.0]),
        lip_opening=displacements["lip_upper"][:, 1] - displacements["lip_lower"][:, 1],
        brow_inner=both("brow_inner", 1),
        brow_outer=both("brow_outer", 1),
        eye_opening=1 + (both("eyelid_upper", 1) - both("eyelid_lower", 1)) / rest_gap,
    )
    return VisibleMotion(fps, Rotation.from_matrix(rotations).as_rotvec(), expression)


def watch(
    head: FlameHead,
    landmarks: Mapping[str, np.ndarray],
    motion: Motion,
    shape: np.ndarray | None = None,
) -> VisibleMotion:
    """What is seen of a motion on a head.

    Args:
        head: the head it is rendered on.
        landmarks: name -> vertex indices whose mean is the landmark
            (`rapport.policies.head.landmarks.face_landmarks`).
        motion: of that head's topology.
        shape: identity coefficients, or None for the neutral head; rest is the same person's.
    """
    # Only the landmarks' vertices are computed, all in one call: `columns` says whose is which.
    vertices = np.concatenate(list(landmarks.values()))
    ends = np.cumsum([len(indices) for indices in landmarks.values()])
    columns = {
        name: slice(end - len(landmarks[name]), end)
        for name, end in zip(landmarks, ends, strict=True)
    }

    # The resting face goes first.
    rest = np.zeros((1, motion.layout.dim), np.float32)
    with_rest = Motion(np.concatenate([rest, motion.values]), motion.layout)
    points = head.vertices_of(with_rest, shape, vertices)
    paths = {name: points[:, part].mean(axis=1) for name, part in columns.items()}
    neutral = {name: path[0] for name, path in paths.items()}
    moving = {name: path[1:] for name, path in paths.items()}
    return visible_motion(moving, neutral, motion.layout.fps)


def head_rotations(
    points: Mapping[str, np.ndarray],
    neutral: Mapping[str, np.ndarray],
    rigid: Sequence[str] = RIGID_POINTS,
) -> np.ndarray:
    """Rotation from rest to each frame, (time, 3, 3).

    Least squares on the rigid points (Kabsch 1976).

    Args:
        points: name -> (time, 3) positions.
        neutral: name -> (3,) positions at rest.
        rigid: names of the points that turn with the head.

    Raises:
        ValueError: fewer than three rigid points.
    """
    if len(rigid) < 3:
        raise ValueError(f"a head's rotation needs three points or more, got {list(rigid)}")
    now = np.stack([points[name] for name in rigid], axis=1).astype(np.float64)
    rest = np.stack([neutral[name] for name in rigid]).astype(np.float64)
    covariance = np.einsum(
        "tpi,pj->tij", now - now.mean(axis=1, keepdims=True), rest - rest.mean(axis=0)
    )
    u, _, vt = np.linalg.svd(covariance)
    signs = np.ones((len(now), 3))
    signs[:, 2] = np.sign(np.linalg.det(u @ vt))  # a rotation, never a mirror image
    rotations: np.ndarray = (u * signs[:, None, :]) @ vt
    return rotations


def displayed_valence(expression: Expression) -> np.ndarray:
    """How glad (1) or distressed (-1) the face looks, (time,) in (-1, 1).

    Raised corners of the mouth count for it; lowered corners, lowered inner brows (anger) and inner
    brows raised above the outer ones (grief, concern) against it. The last two count less, since a
    smile with frowning eyes is still a smile. tanh: the step from none to some matters more than
    that from strong to stronger.
    """
    lift = expression.mouth_lift.mean(axis=1)
    mouth = np.where(lift > 0, lift / FULL_SMILE_MM, lift / FULL_FROWN_MM)
    inner = expression.brow_inner.mean(axis=1)
    outer = expression.brow_outer.mean(axis=1)
    knit = np.maximum(-inner, 0) / FULL_KNIT_MM
    oblique = np.maximum(inner - np.maximum(outer, 0), 0) / FULL_OBLIQUE_MM
    valence: np.ndarray = np.tanh(mouth - 0.35 * knit - 0.35 * oblique)
    return valence


def _checked(
    landmarks: Mapping[str, np.ndarray], neutral: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, np.ndarray]:
    absent = sorted({name for name in names if name not in landmarks or name not in neutral})
    if absent:
        raise ValueError(f"landmarks {absent} are absent from the frames or from the resting face")
    points = {name: np.asarray(landmarks[name], np.float64) for name in names}
    frames = len(points[names[0]])
    for name, path in points.items():
        if path.shape != (frames, 3) or np.shape(neutral[name]) != (3,):
            raise ValueError(
                f"landmark {name!r}: path {path.shape} and rest {np.shape(neutral[name])}, "
                f"expected ({frames}, 3) and (3,)"
            )
        if not np.isfinite(path).all():
            raise ValueError(
                f"landmark {name!r} is not finite at frame {np.argwhere(~np.isfinite(path))[0][0]}"
            )
    if frames == 0:
        raise ValueError("a face without a single frame cannot be measured")
    return points
