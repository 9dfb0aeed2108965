"""Where the features of a face are on a head's mesh, found from how the head moves."""

from __future__ import annotations

import numpy as np

from rapport.policies.head.asset import HeadAsset, TopologyError

PATCH = 5  # vertices a landmark: their mean is steadier than any one
MIDLINE = 0.004  # metres: how far from the plane of symmetry "centre" reaches
CHIN_BELOW_LIP = 0.015  # metres
# ARKit shapes that move the upper face, beside the eyelids.
UPPER_SHAPES = (
    "browInnerUp",
    "browDownLeft",
    "browDownRight",
    "browOuterUpLeft",
    "browOuterUpRight",
)
MOVED = 0.3  # share of the farthest vertex' way from which on a vertex counts as moved


def face_landmarks(asset: HeadAsset) -> dict[str, np.ndarray]:
    """Vertex indices of facial landmarks, (5,) int64 each.

    A landmark's place is the mean of its vertices. Keys: `mouth_corner_{left,right}`,
    `lip_{upper,lower}`, `brow_{inner,outer}_{left,right}`, `eyelid_{upper,lower}_{left,right}`,
    `chin`, `nose_tip`. Left is the head's own left, +x.

    Raises:
        TopologyError: the head has no ARKit shapes or no eyelids, from which landmarks are found.
    """
    if not asset.arkit or asset.eyelids is None:
        raise TopologyError(
            f"landmarks are found from ARKit shapes and eyelids, which this {asset.topology} "
            "head lacks; use the landmark file that belongs to it"
        )
    points = asset.v_template
    x, y, z = points.T
    middle = np.abs(x) < MIDLINE
    jaw = asset.weights[:, 2] > 0.5

    pucker = _distance(asset, "mouthPucker")
    landmarks = {
        "lip_upper": _top(pucker, middle & ~jaw),
        "lip_lower": _top(pucker, middle & jaw),
        "nose_tip": _top(z, middle),
    }
    below_lip = y < points[landmarks["lip_lower"], 1].mean() - CHIN_BELOW_LIP
    landmarks["chin"] = _top(z, (np.abs(x) < 2 * MIDLINE) & jaw & below_lip)
    for side, name in enumerate(("left", "right")):
        suffix = name.capitalize()
        half = x > 0 if side == 0 else x < 0
        under_eye = half & (y < asset.joints[3 + side, 1])
        squint = _displacement(asset, f"eyeSquint{suffix}")
        blink = np.linalg.norm(asset.eyelids[side], axis=1)
        landmarks[f"mouth_corner_{name}"] = _top(_distance(asset, f"mouthDimple{suffix}"), half)
        landmarks[f"brow_inner_{name}"] = _top(_distance(asset, "browInnerUp"), half)
        landmarks[f"brow_outer_{name}"] = _top(_distance(asset, f"browOuterUp{suffix}"), half)
        landmarks[f"eyelid_upper_{name}"] = _top(blink, half)
        landmarks[f"eyelid_lower_{name}"] = _top(squint[:, 1], under_eye)
    return landmarks


def _displacement(asset: HeadAsset, shape: str) -> np.ndarray:
    """How an ARKit shape moves each vertex, (V, 3) metres."""
    displacement: np.ndarray = asset.exprdirs @ asset.expr(**{shape: 1.0})
    return displacement


def _distance(asset: HeadAsset, shape: str) -> np.ndarray:
    """How far an ARKit shape moves each vertex, (V,) metres."""
    distance: np.ndarray = np.linalg.norm(_displacement(asset, shape), axis=1)
    return distance


def _top(score: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The `PATCH` vertices of greatest score within a mask, sorted."""
    order = np.argsort(-np.where(among, score, -np.inf), kind="stable")
    return np.sort(order[:PATCH])


def face_regions(asset: HeadAsset) -> dict[str, np.ndarray]:
    """Vertex indices of the lips, `lip`, and of the upper face, `upper`: LVE and FDD look at them.

    Lips are what puckering moves, the upper face is what brows and lids move.

    Raises:
        TopologyError: the head has no ARKit shapes or no eyelids.
    """
    if not asset.arkit or asset.eyelids is None:
        raise TopologyError(
            f"this {asset.topology} head has no ARKit shapes or eyelids to find the regions of a "
            "face with; use the lists that belong to it"
        )
    brows = [_distance(asset, name) for name in UPPER_SHAPES]
    lids = [np.linalg.norm(lid, axis=1) for lid in asset.eyelids]
    upper = np.any([shape > MOVED * shape.max() for shape in brows + lids], axis=0)
    pucker = _distance(asset, "mouthPucker")
    return {"lip": np.flatnonzero(pucker > MOVED * pucker.max()), "upper": np.flatnonzero(upper)}
