"""ARKit's face: 52 weights that phones give and avatars take, from and to the motion of a head.

ARKit weights travel as a `Motion` of topology "arkit": the group `expr` holds the 52 weights in the
order of `NAMES`, `rot` the turn of the head and `eyepose` that of the eyes, in axis-angle radians.

38 of the shapes are expressions. Their weights are those in [0, 1] whose vertices lie nearest to
the motion's, by least squares with bounds. The others are read off groups: blinks from `eyelid`,
jaw opening and sideways from `jaw`, the eight looks from `eyepose`. `tongueOut` is 0, as no head
here has a tongue.

Names and their meaning: Apple, ARFaceAnchor.BlendShapeLocation.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from rapport.arrays import ArrayFileError, load_named
from rapport.log import logger
from rapport.policies.head.asset import N_EXPR, AssetError, HeadAsset, TopologyError
from rapport.policies.head.raster import compiled
from rapport.policies.motion import Layout, Motion
from rapport.wording import first_few

NAMES = (
    "eyeBlinkLeft",
    "eyeLookDownLeft",
    "eyeLookInLeft",
    "eyeLookOutLeft",
    "eyeLookUpLeft",
    "eyeSquintLeft",
    "eyeWideLeft",
    "eyeBlinkRight",
    "eyeLookDownRight",
    "eyeLookInRight",
    "eyeLookOutRight",
    "eyeLookUpRight",
    "eyeSquintRight",
    "eyeWideRight",
    "jawForward",
    "jawLeft",
    "jawRight",
    "jawOpen",
    "mouthClose",
    "mouthFunnel",
    "mouthPucker",
    "mouthLeft",
    "mouthRight",
    "mouthSmileLeft",
    "mouthSmileRight",
    "mouthFrownLeft",
    "mouthFrownRight",
    "mouthDimpleLeft",
    "mouthDimpleRight",
    "mouthStretchLeft",
    "mouthStretchRight",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugLower",
    "mouthShrugUpper",
    "mouthPressLeft",
    "mouthPressRight",
    "mouthLowerDownLeft",
    "mouthLowerDownRight",
    "mouthUpperUpLeft",
    "mouthUpperUpRight",
    "browDownLeft",
    "browDownRight",
    "browInnerUp",
    "browOuterUpLeft",
    "browOuterUpRight",
    "cheekPuff",
    "cheekSquintLeft",
    "cheekSquintRight",
    "noseSneerLeft",
    "noseSneerRight",
    "tongueOut",
)
# Shapes that are a head's eyelids, jaw and eyes; all but the tongue of the rest are expressions.
BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")
# Turns at weight 1, axis-angle radians. The built-in head's jaw opens by 24.3 degrees in `jawOpen`.
# Sideways: as far as ICT FaceKit's `jawLeft` moves the chin (8.6 mm).
JAW_TURNS = {
    "jawOpen": (0.424, 0.0, 0.0),
    "jawLeft": (0.0, 0.115, 0.0),
    "jawRight": (0.0, -0.115, 0.0),
}
# Slopes of a Live Link Face take's eye angles over its looks: down, up, inwards, outwards.
_DOWN, _UP, _IN, _OUT = 0.61, 0.45, 0.62, 0.58
EYE_TURNS = {
    "Left": {
        "eyeLookDownLeft": (_DOWN, 0.0, 0.0),
        "eyeLookUpLeft": (-_UP, 0.0, 0.0),
        "eyeLookInLeft": (0.0, -_IN, 0.0),
        "eyeLookOutLeft": (0.0, _OUT, 0.0),
    },
    "Right": {
        "eyeLookDownRight": (_DOWN, 0.0, 0.0),
        "eyeLookUpRight": (-_UP, 0.0, 0.0),
        "eyeLookInRight": (0.0, _IN, 0.0),
        "eyeLookOutRight": (0.0, -_OUT, 0.0),
    },
}
_OF_GROUPS = {*BLINKS, *JAW_TURNS, *EYE_TURNS["Left"], *EYE_TURNS["Right"], "tongueOut"}
EXPRESSIONS = tuple(name for name in NAMES if name not in _OF_GROUPS)

# Coordinate descent ends when no weight moves further than this in a sweep over all of them.
_STILL = 1e-5
_SWEEPS = 2000
# A shape of a file that a head's expressions miss by more than this on average is another shape.
_MOST_MISSED = 0.0015  # metres
_MOVED = 0.1  # of the farthest vertex' way: from here on a vertex counts as moved by a shape


def arkit_layout(fps: float) -> Layout:
    """52 weights, the head's turn and the eyes', at `fps` frames per second."""
    return Layout((("expr", len(NAMES)), ("rot", 3), ("eyepose", 6)), fps, "arkit")


class ArkitRig:
    """Between the motion of one head and ARKit's weights.

    A head that has no ARKit shapes (FLAME's files have none, see `with_shapes`) gives pose, jaw and
    blinks only; that is said through the logger.

    Args:
        asset: the head.

    Attributes:
        names: shapes that are solved for, those of `EXPRESSIONS` that the head has.
    """

    def __init__(self, asset: HeadAsset) -> None:
        self.topology = asset.topology
        self.names = tuple(name for name in EXPRESSIONS if name in asset.arkit)
        if not self.names:
            logger.warning(
                f"this {asset.topology} head has no ARKit shapes: pose, jaw and blinks are carried "
                "over, no expression. rapport.policies.head.arkit.with_shapes gives it a file's"
            )
        rows = [asset.arkit[name] for name in self.names]
        self._table = np.array(rows, np.float64).reshape(len(rows), N_EXPR)
        directions = asset.exprdirs.reshape(-1, N_EXPR)
        # What two expressions, as coefficients, have in common as vertices.
        self._common = (directions.T @ directions).astype(np.float64)
        self._gram = self._table @ self._common @ self._table.T

    def weights(self, motion: Motion) -> Motion:
        """ARKit's weights of a motion, and how head and eyes turn, in `arkit_layout`.

        What the motion lacks is at rest. The head's turn is that of `rot` and `neck` together;
        `trans` and the roll of jaw and eyes have no ARKit weight and are left out.

        Args:
            motion: of this head.

        Raises:
            TopologyError: the motion is of another head.
        """
        if motion.layout.topology != self.topology:
            raise TopologyError(
                f"motion of topology {motion.layout.topology!r} on a rig of topology "
                f"{self.topology!r}: load the head that the motion is of (load_head)"
            )
        weights = np.zeros((len(motion), len(NAMES)))
        weights[:, _places(self.names)] = self._solve(_group(motion, "expr", 0))
        weights[:, _places(BLINKS)] = _group(motion, "eyelid", 2)
        jaw = _group(motion, "jaw", 3)
        eyes = _group(motion, "eyepose", 6)
        for turn, turns in (
            (jaw, JAW_TURNS),
            (eyes[:, :3], EYE_TURNS["Left"]),
            (eyes[:, 3:], EYE_TURNS["Right"]),
        ):
            for axis in _axes(turns):
                weights[:, axis["place"]] = turn[:, axis["axis"]] / axis["whole"]
        rot = Rotation.from_rotvec(_group(motion, "rot", 3))
        head = rot * Rotation.from_rotvec(_group(motion, "neck", 3))
        values = np.concatenate([np.clip(weights, 0, 1), head.as_rotvec(), eyes], axis=1)
        return Motion(values, arkit_layout(motion.layout.fps))

    def motion(self, weights: Motion, layout: Layout) -> Motion:
        """Motion of this head that shows ARKit's weights.

        The head's turn goes into `rot`, or into `neck` where the layout has no `rot`. Eyes turn as
        the eight looks say, which count from where a person's eyes rest; the angles in `eyepose` do
        not. `trans`, the rolls of jaw and eyes and groups that ARKit has no weight for are 0.

        Args:
            weights: in `arkit_layout`.
            layout: to answer in, at the same frame rate; an `expr` narrower than 100 shows what its
                first coefficients can.

        Raises:
            TopologyError: the layout is of another head, or `weights` are no ARKit weights.
        """
        if weights.layout != arkit_layout(layout.fps) or layout.topology != self.topology:
            raise TopologyError(
                f"weights in {weights.layout} for a motion in {layout}: weights must be in "
                f"{arkit_layout(layout.fps)}, and the motion of this {self.topology} head"
            )
        columns = weights.group("expr").astype(np.float64)
        head = "rot" if "rot" in layout.names else "neck"
        eyes = [_turned(columns, EYE_TURNS[side]) for side in ("Left", "Right")]
        groups = {
            "expr": columns[:, _places(self.names)] @ self._table,
            "eyelid": columns[:, _places(BLINKS)],
            "jaw": _turned(columns, JAW_TURNS),
            "eyepose": np.concatenate(eyes, axis=1),
            head: weights.group("rot"),
        }
        values = np.zeros((len(weights), layout.dim))
        for name, width in layout.groups:
            if name in groups:
                values[:, layout.columns(name)] = groups[name][:, :width]
        return Motion(values, layout)

    def plain(self, width: int) -> dict[str, Any]:
        """What `weights` knows of this head, for JSON: whoever reads it needs no vertices.

        Args:
            width: expression coefficients of the motion.

        Returns:
            `names` of all weights, and the places among them of those that are solved for
            (`shapes`) and of `blinks`; `gram` (shapes, shapes) and `likeness` (width, shapes), of
            the normal equations; `jaw`, `left_eye` and `right_eye`: which weight is which axis of
            a turn, and how far it turns as a whole.
        """
        return {
            "names": NAMES,
            "shapes": _places(self.names),
            "gram": self._gram.tolist(),
            "likeness": (self._common[:width] @ self._table.T).tolist(),
            "blinks": _places(BLINKS),
            "jaw": _axes(JAW_TURNS),
            "left_eye": _axes(EYE_TURNS["Left"]),
            "right_eye": _axes(EYE_TURNS["Right"]),
        }

    def _solve(self, expr: np.ndarray) -> np.ndarray:
        """Weights (time, names) of expression coefficients (time, n) that are nearest as vertices.

        This is min |directions (table' w - expr)| over 0 <= w <= 1, by its normal equations.
        """
        likeness = expr.astype(np.float64) @ self._common[: expr.shape[1]] @ self._table.T
        weights = np.zeros(likeness.shape)
        _descend(self._gram, likeness, weights)
        return weights


@compiled
def _descend(gram: np.ndarray, likeness: np.ndarray, weights: np.ndarray) -> None:
    """Minimise w' gram w / 2 - likeness' w over 0 <= w <= 1, one weight after the other.

    Each frame starts from the solution of the one before.

    Args:
        gram: (n, n), positive definite.
        likeness: (time, n).
        weights: (time, n), written.
    """
    for frame in range(len(likeness)):
        w = weights[frame]
        w[:] = weights[max(frame - 1, 0)]
        slope = gram @ w - likeness[frame]
        for _ in range(_SWEEPS):
            moved = 0.0
            for n in range(len(w)):
                step = min(max(w[n] - slope[n] / gram[n, n], 0.0), 1.0) - w[n]
                if step != 0.0:
                    w[n] += step
                    slope += step * gram[n]
                    moved = max(moved, abs(step))
            if moved < _STILL:
                break


def with_shapes(asset: HeadAsset, path: str | Path) -> HeadAsset:
    """A head with ARKit shapes of your own, for FLAME heads, whose files have none.

    Args:
        asset: the head.
        path: an `.npz` with an array for each shape, named as in `EXPRESSIONS`: coefficients (n,),
            n <= 100, of the head's expressions, or the way of each vertex (V, 3) in metres, at
            weight 1. Ways are fitted by the head's expressions; a shape that these miss by more
            than 1.5 mm on average, over the vertices that it moves, is named in a warning. Arrays
            of other names are not read.

    Raises:
        AssetError: the file cannot be read, has none of the shapes, or one of another form.
    """
    try:
        arrays = load_named(path)
    except ArrayFileError as error:
        raise AssetError(str(error)) from error
    shapes = {name: arrays[name] for name in EXPRESSIONS if name in arrays}
    if not shapes:
        raise AssetError(
            f"{path} has no ARKit expression, but {first_few(sorted(arrays))}: name its arrays "
            f"{first_few(EXPRESSIONS)}"
        )
    fitted = {
        name: _coefficients(asset, shape, f"{path}: {name}") for name, shape in shapes.items()
    }
    return replace(asset, arkit=fitted)


def _coefficients(asset: HeadAsset, shape: np.ndarray, where: str) -> np.ndarray:
    """A shape, as coefficients or as ways of the vertices, as coefficients (100,)."""
    vertices = len(asset.v_template)
    ways = shape.shape == (vertices, 3)
    if not ways and (shape.ndim != 1 or not 1 <= len(shape) <= N_EXPR):
        raise AssetError(
            f"{where} has shape {shape.shape}, not (n <= {N_EXPR},) or ({vertices}, 3)"
        )
    if shape.dtype.kind not in "iuf" or not np.isfinite(shape).all() or not shape.any():
        raise AssetError(f"{where} must be finite numbers, and not all 0")
    if not ways:
        return np.pad(shape.astype(np.float32), (0, N_EXPR - len(shape)))
    directions = asset.exprdirs.reshape(-1, N_EXPR)
    coefficients = np.linalg.lstsq(directions, shape.reshape(-1), rcond=None)[0]
    way = np.linalg.norm(shape, axis=1)
    missed = np.linalg.norm((directions @ coefficients).reshape(-1, 3) - shape, axis=1)
    missed_by = missed[way > _MOVED * way.max()].mean()
    if missed_by > _MOST_MISSED:
        logger.warning(f"{where}: the head's expressions miss it by {1e3 * missed_by:.1f} mm")
    fitted: np.ndarray = coefficients.astype(np.float32)
    return fitted


def _places(names: tuple[str, ...]) -> list[int]:
    """Columns of shapes among the 52."""
    return [NAMES.index(name) for name in names]


def _group(motion: Motion, name: str, width: int) -> np.ndarray:
    """Columns of a group; zeros (time, width) where the motion lacks it."""
    if name in motion.layout.names:
        columns: np.ndarray = motion.group(name)
        return columns
    return np.zeros((len(motion), width), np.float32)


def _axes(turns: dict[str, tuple[float, float, float]]) -> list[dict[str, Any]]:
    """Of each weight its place among the 52, the axis about which it turns, and how far."""
    axes = {name: int(np.argmax(np.abs(whole))) for name, whole in turns.items()}
    return [
        {"place": NAMES.index(name), "axis": axis, "whole": turns[name][axis]}
        for name, axis in axes.items()
    ]


def _turned(weights: np.ndarray, turns: dict[str, tuple[float, float, float]]) -> np.ndarray:
    """Axis-angle (time, 3) of weights (time, 52): the sum of the turns."""
    turned: np.ndarray = weights[:, _places(tuple(turns))] @ np.array(list(turns.values()))
    return turned
