"""From what a face does (ARKit weights) to coefficients of the head, in a person's own way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapport.pipeline.data.synthetic.figures import FIGURES, FPS, LAYOUT
from rapport.pipeline.data.synthetic.looks import CHANNELS
from rapport.pipeline.data.synthetic.signals import smooth_noise
from rapport.policies.head.asset import HeadAsset
from rapport.policies.motion import Motion

_EXPR = LAYOUT.width("expr")
_SHAPE_DIMS = 20  # identity coefficients that differ between people
_RESTING_JAW = 0.003  # radians that it is open
# Stray movements of jaw (opening, yaw, roll), neck, lids and eyes, beside those of the expression.
_STRAY = {"jaw": (0.0006, 0.0006, 0.0005), "neck": 0.0012, "lids": 0.0016, "eyes": 0.002}


@dataclass(frozen=True, eq=False)
class FaceBasis:
    """ARKit shapes as expression coefficients.

    Args:
        names: of the shapes.
        coefficients: (shapes, 50).
    """

    names: tuple[str, ...]
    coefficients: np.ndarray

    @classmethod
    def from_head(cls, head: HeadAsset) -> FaceBasis:
        """The first 50 coefficients of every ARKit shape of a head that has a table of them."""
        names = tuple(sorted(head.arkit))
        coefficients = np.stack([head.arkit[name][:_EXPR] for name in names])
        return cls(names, coefficients.astype(np.float64))

    def rows(self, names: tuple[str, ...]) -> np.ndarray:
        """(len(names), 50) coefficients of some of the shapes."""
        return self.coefficients[[self.names.index(name) for name in names]]


@dataclass(frozen=True, eq=False)
class Person:
    """What stays with a person through a conversation."""

    shape: np.ndarray  # (n,) identity coefficients of the head
    resting: np.ndarray  # (50,) constant offset of the expression
    lopsided: float  # left side moves (1 + lopsided) as much, right side (1 - lopsided)


def draw_person(rng: np.random.Generator) -> Person:
    """Draw a person at random."""
    # The first identity directions can square the skull: drawn at half strength.
    shape = rng.normal(size=_SHAPE_DIMS) * np.where(np.arange(_SHAPE_DIMS) < 4, 0.5, 0.8)
    resting = FIGURES.resting_face * rng.normal(size=_EXPR)
    return Person(shape.astype(np.float32), resting, FIGURES.asymmetry * rng.normal())


def expression_coefficients(
    rng: np.random.Generator, basis: FaceBasis, person: Person, weights: np.ndarray
) -> np.ndarray:
    """Expression coefficients of ARKit weights on this person's face.

    Adds small stray movements of all shapes and of all coefficients, so that no direction stands
    still.

    Args:
        rng: of the stray movements.
        basis: of the head.
        person: whose face.
        weights: (time, len(CHANNELS)) ARKit weights.

    Returns:
        (time, 50).
    """
    frames = len(weights)
    side = np.array([name.endswith("Left") * 1.0 - name.endswith("Right") for name in CHANNELS])
    asymmetric = weights * (1 + person.lopsided * side)
    shapes = smooth_noise(rng, frames, dims=len(basis.names), fps=FPS, corner_hz=1.0)
    drift = smooth_noise(rng, frames, dims=_EXPR, fps=FPS, corner_hz=0.5)
    stray = FIGURES.fidget * (shapes @ basis.coefficients + drift)
    return asymmetric @ basis.rows(CHANNELS) + stray + person.resting


def assemble(
    expr: np.ndarray,
    jaw_open: np.ndarray,
    head: np.ndarray,
    lids: np.ndarray,
    gaze: np.ndarray,
    place: np.ndarray,
    stray: np.ndarray,
) -> Motion:
    """Motion in the corpus layout.

    Args:
        expr: (time, 50).
        jaw_open: (time,) radians.
        head: (time, 3) pitch, yaw, roll in radians; nodding down is positive.
        lids: (time,) closure in [0, 1].
        gaze: (time, 2) pitch and yaw of both eyes in radians.
        place: (time, 3) where the head is, metres from its resting place.
        stray: (time, 5) unit noise that keeps small movements in jaw, neck, lids and eyes.
    """
    jaw = stray[:, :3] * _STRAY["jaw"]
    # A jaw at rest is not clenched, so that it can stray both ways.
    jaw[:, 0] = np.maximum(jaw[:, 0] + _RESTING_JAW + jaw_open, 0)
    share = FIGURES.neck_share
    neck = share * head + _STRAY["neck"] * stray[:, 2:5]
    eyes = np.stack([gaze[:, 0], gaze[:, 1], np.zeros(len(gaze))], axis=1)
    eyes = eyes + _STRAY["eyes"] * stray[:, :3]
    lid_noise = _STRAY["lids"] * stray[:, 3:5]
    lid_pair = np.clip(np.stack([lids, lids], axis=1) + 0.02 + lid_noise, 0, 1)
    rot = (1 - share) * head
    values = np.concatenate([expr, jaw, neck, lid_pair, eyes, eyes, rot, place], axis=1)
    return Motion(values.astype(np.float32), LAYOUT)
