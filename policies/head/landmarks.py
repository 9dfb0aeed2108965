"""Where the features of a face are on a head's mesh, found from how the head moves."""

from __future__ import annotations

import numpy as np

from rapport.policies.head.asset import HeadAsset, TopologyError

PATCH = 5  # vertices a landmark: their mean is steadier than any one
MIDLINE = 0.004  # metres: how far from the plane of symmetry "centre" reaches
CHIN_BELOW_LIP = 0.015  # metres


def face_landmarks(asset: HeadAsset) -> dict[str, np.ndarray]:
    """Vertex indices of facial landmarks, (5,) int64 each; a landmark's place is the mean of its
    vertices.

    Keys: `mouth_corner_{left,right}`, `lip_{upper,lower}`, `brow_{inner,outer}_{left,right}`,
    `eyelid_{upper,lower}_{left,right}`, `chin`, `nose_tip`. Left is the head's own left, +x.

    Raises:
        TopologyError: the head has no ARKit shapes or no eyelids, from which landmarks are found.
    """
    if not asset.arkit or asset.eyelids is None:
        raise TopologyError(
            f"landmarks are found from ARKit shapes and eyelids, which this {asset.topology} "
            "head lacks; "
            "use the landmark file that belongs to it"
        )
    points = asset.v_template
    x, y, z = points.T
    middle = np.abs(x) < MIDLINE
    lower = asset.weights[:, 2] > 0.5

    pucker = _motion(asset, "mouthPucker")
    found = {
        "lip_upper": _top(pucker, middle & ~lower),
        "lip_lower": _top(pucker, middle & lower),
        "nose_tip": _top(z, middle),
    }
    below_lip = y < points[found["lip_lower"], 1].mean() - CHIN_BELOW_LIP
    found["chin"] = _top(z, (np.abs(x) < 2 * MIDLINE) & lower & below_lip)
    for side, name in enumerate(("left", "right")):
        here, suffix = (x > 0 if side == 0 else x < 0), name.capitalize()
        under_eye = here & (y < asset.joints[3 + side, 1])
        found[f"mouth_corner_{name}"] = _top(_motion(asset, f"mouthDimple{suffix}"), here)
        found[f"brow_inner_{name}"] = _top(_motion(asset, "browInnerUp"), here)
        found[f"brow_outer_{name}"] = _top(_motion(asset, f"browOuterUp{suffix}"), here)
        found[f"eyelid_upper_{name}"] = _top(np.linalg.norm(asset.eyelids[side], axis=1), here)
        found[f"eyelid_lower_{name}"] = _top(
            _displacement(asset, f"eyeSquint{suffix}")[:, 1], under_eye
        )
    return found


def _displacement(asset: HeadAsset, shape: str) -> np.ndarray:
    return asset.exprdirs @ asset.expr(**{shape: 1.0})


def _motion(asset: HeadAsset, shape: str) -> np.ndarray:
    """How far an ARKit shape moves each vertex, (V,) metres."""
    return np.linalg.norm(_displacement(asset, shape), axis=1)


def _top(score: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The `PATCH` vertices of greatest score within a mask, sorted."""
    order = np.argsort(-np.where(among, score, -np.inf), kind="stable")
    return np.sort(order[:PATCH])


UPPER_SHAPES = (
    "browInnerUp",
    "browDownLeft",
    "browDownRight",
    "browOuterUpLeft",
    "browOuterUpRight",
)
MOVED = 0.3  # share of the farthest vertex' way from which on a vertex counts as moved


def face_regions(asset: HeadAsset) -> dict[str, np.ndarray]:
    """Vertex indices of the lips, `lip`, and of the upper face, `upper`: LVE and FDD look at them.

    Lips are what puckering moves, the upper face is what brows and lids move. Raises
    `TopologyError` like `face_landmarks`."""
    if not asset.arkit or asset.eyelids is None:
        raise TopologyError(
            f"this {asset.topology} head has no ARKit shapes or eyelids to find the regions of a "
            "face "
            "with; use the lists that belong to it"
        )
    shapes = [_motion(asset, name) for name in UPPER_SHAPES] + [
        np.linalg.norm(lid, axis=1) for lid in asset.eyelids
    ]
    pucker = _motion(asset, "mouthPucker")
    upper = np.any([shape > MOVED * shape.max() for shape in shapes], axis=0)
    return {"lip": np.flatnonzero(pucker > MOVED * pucker.max()), "upper": np.flatnonzero(upper)}
