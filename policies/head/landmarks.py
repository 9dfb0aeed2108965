"""Where the features of a face are on a head's mesh.

A head with ARKit shapes and eyelids shows them by how it moves. Any other in FLAME's layout shows
them by its form: eyeballs and jaw are in its skinning weights, and the way over its skin from one
lip to the other leads round a corner of the mouth. Nothing is looked up in a list of vertices, as
such lists belong to one mesh.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components, dijkstra

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
# From the middle of an eye, outwards and up, in distances between the eyes.
BROWS = {"inner": (-0.25, 0.32), "outer": (0.32, 0.30)}
# Edges of lids lie within so many radii of an eyeball's middle, and so near above and below it.
LID_REACH = 1.6
LID_WIDTH = 0.4
OPEN_EYE = 0.003  # metres: a resting eye is open at least so far
MOVED = 0.3  # share of the farthest vertex' way from which on a vertex counts as moved


def face_landmarks(asset: HeadAsset) -> dict[str, np.ndarray]:
    """Vertex indices of facial landmarks, (5,) int64 each.

    A landmark's place is the mean of its vertices. Keys: `mouth_corner_{left,right}`,
    `lip_{upper,lower}`, `brow_{inner,outer}_{left,right}`, `eyelid_{upper,lower}_{left,right}`,
    `chin`, `nose_tip`. Left is the head's own left, +x.

    Raises:
        TopologyError: the head has neither ARKit shapes and eyelids nor the form of a face; says
            what was not found.
    """
    if asset.arkit and asset.eyelids is not None:
        return _by_movement(asset)
    return _by_form(asset)


def _by_movement(asset: HeadAsset) -> dict[str, np.ndarray]:
    """Landmarks of a head whose ARKit shapes and eyelids are known."""
    eyelids = asset.eyelids
    assert eyelids is not None
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
        blink = np.linalg.norm(eyelids[side], axis=1)
        landmarks[f"mouth_corner_{name}"] = _top(_distance(asset, f"mouthDimple{suffix}"), half)
        landmarks[f"brow_inner_{name}"] = _top(_distance(asset, "browInnerUp"), half)
        landmarks[f"brow_outer_{name}"] = _top(_distance(asset, f"browOuterUp{suffix}"), half)
        landmarks[f"eyelid_upper_{name}"] = _top(blink, half)
        landmarks[f"eyelid_lower_{name}"] = _top(squint[:, 1], under_eye)
    return landmarks


@dataclass(frozen=True, eq=False)
class _Front:
    """The skin that faces the viewer, around the nose: no teeth, eyeballs, or back of the head.

    Args:
        points: (V, 3) vertices of the head at rest, metres.
        skin: (V,) which of them it has.
        ways: (V, V) lengths of its edges.
        rim: (V,) which lie at its borders, those of the eyes among them.
        nose: the vertex at the tip of the nose.
    """

    points: np.ndarray
    skin: np.ndarray
    ways: sparse.csr_matrix
    rim: np.ndarray
    nose: int

    @classmethod
    def of_head(cls, asset: HeadAsset) -> _Front:
        points = asset.v_template.astype(np.float64)
        eyeballs = asset.weights[:, 3:].max(axis=1) > 0.5
        middle = (np.abs(points[:, 0]) < MIDLINE) & ~eyeballs
        if not middle.any():
            raise _no_face(asset, "no vertex on the plane of symmetry, x = 0")
        nose = int(np.argmax(np.where(middle, points[:, 2], -np.inf)))
        faces = asset.faces[~eyeballs[asset.faces].any(axis=1)]
        a, b, c = (points[faces[:, corner]] for corner in range(3))
        faces = faces[np.cross(b - a, c - a)[:, 2] > 0]
        sides = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]))
        edges, uses = np.unique(sides, axis=0, return_counts=True)
        lengths = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
        count = len(points)
        ways = sparse.coo_matrix((lengths, edges.T), shape=(count, count)).tocsr()
        _, parts = connected_components(ways, directed=False)
        skin = parts == parts[nose]
        rim = np.zeros(count, bool)
        rim[edges[uses == 1]] = True
        return cls(points, skin, ways, rim=rim & skin, nose=nose)

    def near(self, place: np.ndarray, among: np.ndarray) -> np.ndarray:
        """The `PATCH` vertices of skin nearest to a place, (3,), or (2,) as seen from the front."""
        distance = np.linalg.norm(self.points[:, : len(place)] - place, axis=1)
        return _top(-distance, self.skin & among)

    def way(self, start: int, end: int, among: np.ndarray) -> np.ndarray:
        """Vertices of the shortest way over the skin; empty where there is none."""
        kept = np.flatnonzero(self.skin & among)
        first, last = np.searchsorted(kept, [start, end])
        _, previous = dijkstra(
            self.ways[kept][:, kept], directed=False, indices=first, return_predecessors=True
        )
        way = [last]
        while way[-1] != first:
            if previous[way[-1]] < 0:
                return np.zeros(0, np.int64)
            way.append(previous[way[-1]])
        vertices: np.ndarray = kept[way]
        return vertices


def _by_form(asset: HeadAsset) -> dict[str, np.ndarray]:
    """Landmarks of a head in FLAME's layout of which only form and joints are known."""
    if any((asset.weights[:, joint] > 0.5).sum() < PATCH for joint in (2, 3, 4)):
        raise _no_face(asset, "no vertices belong to its jaw and to both eyes")
    front = _Front.of_head(asset)
    x, y, z = front.points.T
    middle = front.skin & (np.abs(x) < MIDLINE)
    jaw = asset.weights[:, 2] > 0.5 * asset.weights[middle, 2].max()
    below_nose = middle & (y < y[front.nose])
    if not (below_nose & jaw).any() or not (below_nose & ~jaw).any():
        raise _no_face(asset, "no upper and lower lip below its nose")
    lower = int(np.argmax(np.where(below_nose & jaw, y, -np.inf)))
    upper = int(np.argmin(np.where(below_nose & ~jaw & (y > y[lower]), y, np.inf)))
    centre = np.array([0.0, 1.0, 1.0])
    below_lip = front.skin & (np.abs(x) < 2 * MIDLINE) & jaw & (y < y[lower] - CHIN_BELOW_LIP)
    everywhere = np.ones(len(x), bool)
    landmarks = {
        "nose_tip": front.near(front.points[front.nose], everywhere),
        "lip_upper": front.near(front.points[upper] * centre, ~jaw),
        "lip_lower": front.near(front.points[lower] * centre, jaw),
        "chin": _top(z, below_lip),
    }
    between_eyes = asset.joints[3, 0] - asset.joints[4, 0]
    for side, name in enumerate(("left", "right")):
        outwards = 1 if side == 0 else -1
        way = front.way(upper, lower, outwards * x > -MIDLINE)
        if not len(way):
            raise _no_face(asset, f"no way over its skin from lip to lip on the {name}")
        corner = way[np.argmax(outwards * x[way])]
        landmarks[f"mouth_corner_{name}"] = front.near(front.points[corner], everywhere)
        eye = asset.joints[3 + side]
        for part, place in BROWS.items():
            offset = between_eyes * np.array(place) * [outwards, 1]
            landmarks[f"brow_{part}_{name}"] = front.near(eye[:2] + offset, everywhere)
        landmarks |= _lids(asset, front, side, name)
    return landmarks


def _lids(asset: HeadAsset, front: _Front, side: int, name: str) -> dict[str, np.ndarray]:
    """Upper and lower lid, where the opening of the eye ends above and below its middle."""
    eye = asset.joints[3 + side]
    eyeball = asset.v_template[asset.weights[:, 3 + side] > 0.5]
    radius = np.median(np.linalg.norm(eyeball - eye, axis=1))
    x, y, _ = front.points.T
    on_eye = np.linalg.norm(front.points - eye, axis=1) < LID_REACH * radius
    edge = np.flatnonzero(front.rim & on_eye & (np.abs(x - eye[0]) < LID_WIDTH * radius))
    if len(edge) < 2:
        raise _no_face(asset, f"no edges of lids at its {name} eye")
    top = edge[np.argmax(y[edge])]
    bottom = edge[np.argmin(y[edge])]
    if y[top] - y[bottom] < OPEN_EYE:
        raise _no_face(asset, f"its {name} eye is closed at rest")
    return {
        f"eyelid_upper_{name}": front.near(front.points[top], y >= y[top]),
        f"eyelid_lower_{name}": front.near(front.points[bottom], y <= y[bottom]),
    }


def _no_face(asset: HeadAsset, why: str) -> TopologyError:
    return TopologyError(
        f"no landmarks on this {asset.topology} head: {why}. It must be a whole FLAME head, y up, "
        "z towards the viewer, in metres"
    )


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
