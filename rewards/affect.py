"""Affect estimators: valence and arousal over time, read off motion. L2 Affect needs one.

The papers use EMOCA's recogniser on FLAME coefficients. Any `(Motion) -> (time, 2)` can take its
place. The built-in one is a ridge regression on coefficients and their local speeds, fitted on a
labelled corpus. It reads one layout only, since the coefficients of another head mean other things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rapport.arrays import load_named, save_named
from rapport.policies.motion import Layout, Motion
from rapport.rewards.smoothing import moving_mean

# A viseme or a blink is over within this time, an expression is not.
SMOOTH_SECONDS = 0.4
# How lively a face is shows over about a second.
SPEED_SECONDS = 1.0
FORMAT = 1  # of the file that `save` writes


class AffectEstimator(Protocol):
    """Reads valence and arousal, each in [-1, 1], off a motion: (time, 2)."""

    def __call__(self, motion: Motion) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class RidgeAffectEstimator:
    """Ridge regression from smoothed coefficients and local speeds to valence and arousal.

    Args:
        layout: the groups it reads; motions must have them at this frame rate and topology.
        mean: (features,) of the training features.
        scale: (features,) standard deviations of the training features.
        weights: (features, 2), of standardised features.
        bias: (2,) mean of the training affect.
    """

    layout: Layout
    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(
        cls,
        motions: Sequence[Motion],
        affects: Sequence[np.ndarray],
        groups: Sequence[str] = ("expr", "jaw", "rot"),
        ridge: float = 1e-3,
    ) -> RidgeAffectEstimator:
        """Fit on labelled motions.

        Args:
            motions: all of one layout.
            affects: (time, 2) valence and arousal of each motion, in [-1, 1].
            groups: what is read. Name only groups that the motions to be judged have as well.
            ridge: weight of the penalty, relative to the variance of a feature.

        Raises:
            ValueError: labels that do not go with the motions, or that leave [-1, 1].
        """
        if not len(motions) == len(affects) > 0:
            raise ValueError(
                f"{len(affects)} affect labels for {len(motions)} motions; one each, and at "
                "least one"
            )
        layout = motions[0].layout.subset({name: motions[0].layout.width(name) for name in groups})
        for index, (motion, affect) in enumerate(zip(motions, affects, strict=True)):
            if np.shape(affect) != (len(motion), 2):
                raise ValueError(
                    f"affect {index} has shape {np.shape(affect)}, its motion needs "
                    f"({len(motion)}, 2)"
                )
        x = np.concatenate([affect_features(motion.subset(layout)) for motion in motions])
        y = np.concatenate([np.asarray(affect, np.float64) for affect in affects])
        if not np.isfinite(y).all() or np.abs(y).max() > 1:
            raise ValueError("affect labels must be finite and within [-1, 1]")
        mean, bias = x.mean(axis=0), y.mean(axis=0)
        scale = x.std(axis=0)
        scale[scale < 1e-8] = 1.0  # a constant feature is zero after centring, whatever its scale
        x = (x - mean) / scale
        weights = np.linalg.solve(
            x.T @ x / len(x) + ridge * np.eye(x.shape[1]), x.T @ (y - bias) / len(x)
        )
        return cls(layout, mean=mean, scale=scale, weights=weights, bias=bias)

    def __call__(self, motion: Motion) -> np.ndarray:
        """Valence and arousal, (time, 2), of one motion.

        Raises:
            LayoutError: the motion lacks a group, or has another frame rate or topology.
        """
        x = (affect_features(motion.subset(self.layout)) - self.mean) / self.scale
        affect: np.ndarray = np.clip(x @ self.weights + self.bias, -1.0, 1.0)
        return affect

    def save(self, path: str | Path) -> None:
        """Write to an `.npz` file, atomically."""
        content = {
            "format": FORMAT,
            "layout": self.layout.to_json(),
            "mean": self.mean,
            "scale": self.scale,
            "weights": self.weights,
            "bias": self.bias,
        }
        save_named(path, content)

    @classmethod
    def load(cls, path: str | Path) -> RidgeAffectEstimator:
        """Read what `save` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        file = load_named(path)
        names = ("mean", "scale", "weights", "bias")
        if not {"format", "layout", *names} <= file.keys() or file["format"].tolist() != FORMAT:
            raise ValueError(f"{path} is no affect estimator of format {FORMAT}; fit it again")
        arrays = {name: file[name] for name in names}
        return cls(Layout.from_json(str(file["layout"])), **arrays)


def affect_features(motion: Motion) -> np.ndarray:
    """Smoothed coefficients and local speeds, (time, dim + groups).

    A local speed is the root mean square over a group's channels, per second.
    """
    fps = motion.layout.fps
    values = motion.values.astype(np.float64)
    smooth = moving_mean(values, SMOOTH_SECONDS * fps)
    speed = np.zeros_like(values)
    if len(motion) > 1:
        speed = np.gradient(values, 1 / fps, axis=0)
    # A moving mean is a difference of sums. Where a face stands still after it moved, rounding may
    # carry it below 0, of which there is no root.
    power = np.maximum(moving_mean(speed**2, SPEED_SECONDS * fps), 0)
    speed_by_group = [
        np.sqrt(power[:, motion.layout.columns(name)].mean(axis=1)) for name in motion.layout.names
    ]
    return np.concatenate([smooth, np.stack(speed_by_group, axis=1)], axis=1)
