"""How well a face was tracked, in figures that stand beside what there was to track.

Jitter is what of a landmark's way is noise, by what a frame does that the two around it do not
say. A listener at rest moves little; where that is no more than the
tracker errs, the recording does not tell it, and both stand in one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from rapport.policies.head.asset import HeadAsset
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_landmarks
from rapport.policies.motion import Motion

REGIONS = {
    "lips": ("lip_upper", "lip_lower"),
    "corners": ("mouth_corner_left", "mouth_corner_right"),
    "chin": ("chin",),
    "lids": ("eyelid_upper_left", "eyelid_upper_right"),
    "brows": ("brow_inner_left", "brow_inner_right", "brow_outer_left", "brow_outer_right"),
}
_STILL = ("rot", "neck", "trans")  # a head is looked at from where it is
_MM = 1e3
_IMPULSE = np.eye(1, 65, 32)[0]


class Gauge:
    """Measures motion in millimetres on one head.

    Args:
        asset: the head; its landmarks must be found.
    """

    def __init__(self, asset: HeadAsset) -> None:
        self.asset = asset

    @cached_property
    def _head(self) -> FlameHead:
        return FlameHead(self.asset)

    @cached_property
    def _landmarks(self) -> dict[str, np.ndarray]:
        return face_landmarks(self.asset)

    def places(self, motion: Motion) -> dict[str, np.ndarray]:
        """Where the parts of the face are, without the head's turn, (time, landmarks, 3) mm."""
        values = motion.values.copy()
        for name in _STILL:
            if name in motion.layout.names:
                values[:, motion.layout.columns(name)] = 0
        names = [name for region in REGIONS.values() for name in region]
        vertices = np.concatenate([self._landmarks[name] for name in names])
        moved = self._head.vertices_of(Motion(values, motion.layout), vertices=vertices)
        patches = moved.reshape(len(values), len(names), -1, 3).mean(axis=2) * _MM
        return {
            region: patches[:, [names.index(name) for name in parts]]
            for region, parts in REGIONS.items()
        }


def jitter(places: np.ndarray, seen: np.ndarray, smoothed: float) -> float:
    """Noise that is in places (time, landmarks, 3), rms in their unit.

    Of white noise the second difference has 6 times the variance; of noise that was smoothed it has
    less, however much of it is left.

    Args:
        places: on a clock.
        seen: (time,) where they are known.
        smoothed: standard deviation in frames of the Gaussian that they went through; 0 = none.
    """
    kernel = gaussian_filter1d(_IMPULSE, smoothed) if smoothed else _IMPULSE
    bends = np.sum(np.diff(kernel, n=2) ** 2) / np.sum(kernel**2)
    inside = seen[:-2] & seen[1:-1] & seen[2:]
    if not inside.any():
        return float("nan")
    bend = (places[:-2] - 2 * places[1:-1] + places[2:])[inside]
    # Most frames are at rest: the median tells noise from blinks and speech.
    squares = (bend**2).sum(axis=2) / bends
    return float(np.sqrt(np.median(squares, axis=0).mean()))


def movement(places: np.ndarray, wanted: np.ndarray, window: int) -> float:
    """How far places (time, landmarks, 3) move within windows that are wanted throughout, rms."""
    squares = [
        places[start : start + window].var(axis=0).sum(axis=1).mean()
        for start in range(0, len(places) - window + 1, window)
        if wanted[start : start + window].all()
    ]
    return float(np.sqrt(np.mean(squares))) if squares else float("nan")


def errors(gauge: Gauge, pairs: list[tuple[Motion, Motion]]) -> dict[str, Mapping[str, float]]:
    """How far motion was missed, beside the trivial answer: that nothing of it moves.

    Args:
        gauge: of the head.
        pairs: of each person, what the motion was and what was read.

    Returns:
        By part of the face: `r2` of the motion about its mean in each clip, the error `mm`, and
        `still_mm`, the error of a face that keeps still. `rot`: `degrees` that the head is off,
        and `still_degrees`.
    """
    missed = dict.fromkeys(REGIONS, 0.0)
    moved = dict.fromkeys(REGIONS, 0.0)
    off = []
    turned = []
    for truth, read in pairs:
        was = gauge.places(truth)
        told = gauge.places(read)
        for region in REGIONS:
            motion = was[region] - was[region].mean(axis=0)
            guess = told[region] - told[region].mean(axis=0)
            missed[region] += float(((motion - guess) ** 2).sum(axis=2).mean(axis=1).sum())
            moved[region] += float((motion**2).sum(axis=2).mean(axis=1).sum())
        true = Rotation.from_rotvec(truth.group("rot"))
        off.append((true.inv() * Rotation.from_rotvec(read.group("rot"))).magnitude())
        turned.append((true.mean().inv() * true).magnitude())
    frames = sum(len(truth) for truth, _ in pairs)
    table: dict[str, Mapping[str, float]] = {
        region: {
            "r2": 1 - missed[region] / moved[region],
            "mm": float(np.sqrt(missed[region] / frames)),
            "still_mm": float(np.sqrt(moved[region] / frames)),
        }
        for region in REGIONS
    }
    table["rot"] = {
        "degrees": float(np.degrees(np.concatenate(off).mean())),
        "still_degrees": float(np.degrees(np.concatenate(turned).mean())),
    }
    return table
