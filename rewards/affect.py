"""Affect estimators: from motion to valence and arousal over time. L2 Affect is measured with one.

The papers use EMOCA's recogniser on FLAME coefficients. Any `(Motion) -> (time, 2)` can take its
place; the built-in one is a ridge regression on coefficients and their local speeds, fitted on a
labelled corpus. It knows one layout only, since coefficients of other heads mean other things.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rapport.policies.motion import Layout, Motion
from rapport.rewards.ratings.speaker_cues import moving_mean

SMOOTH_SECONDS = (
    0.4  # affect is not read off single frames: visemes and blinks pass, expressions stay
)
SPEED_SECONDS = 1.0  # how lively a face is shows over about a second
FORMAT = 1


class AffectEstimator(Protocol):
    """Reads valence and arousal, each in [-1, 1], off a motion: (time, 2)."""

    def __call__(self, motion: Motion) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class RidgeAffectEstimator:
    """Ridge regression from smoothed coefficients and local speeds to valence and arousal.

    Args:
        layout: the groups it reads; motions must have them at this frame rate and topology.
        mean, scale: (features,) of the training features.
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
            motions: all alike in layout.
            affects: (time, 2) valence and arousal of each, in [-1, 1].
            groups: what is read; name only groups that the motions to be judged have as well.
            ridge: weight of the penalty, relative to the variance of a feature.
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
        return cls(layout, mean, scale, weights, bias)

    def __call__(self, motion: Motion) -> np.ndarray:
        """(time, 2) valence and arousal. Raises `LayoutError` on another layout, frame rate or
        topology.
        """
        x = (affect_features(motion.subset(self.layout)) - self.mean) / self.scale
        return np.clip(x @ self.weights + self.bias, -1.0, 1.0)

    def save(self, path: str | Path) -> None:
        """Write to an `.npz` file, atomically."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            np.savez(
                file,
                format=FORMAT,
                layout=self.layout.to_json(),
                mean=self.mean,
                scale=self.scale,
                weights=self.weights,
                bias=self.bias,
            )
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path) -> RidgeAffectEstimator:
        """Read what `save` wrote. Raises `ValueError` when the file holds something else."""
        with np.load(path, allow_pickle=False) as file:
            if "format" not in file or int(file["format"]) != FORMAT:
                raise ValueError(f"{path} is no affect estimator of format {FORMAT}; fit it again")
            arrays = {name: file[name] for name in ("mean", "scale", "weights", "bias")}
            return cls(Layout.from_json(str(file["layout"])), **arrays)


def affect_features(motion: Motion) -> np.ndarray:
    """(time, dim + groups): smoothed coefficients, then per group the root mean square local speed
    per second.
    """
    values = motion.values.astype(np.float64)
    smooth = moving_mean(values, SMOOTH_SECONDS * motion.layout.fps)
    speed = (
        np.gradient(values, 1 / motion.layout.fps, axis=0)
        if len(motion) > 1
        else np.zeros_like(values)
    )
    # What stands still after it moved: the mean is a difference of sums, it can come out below 0 by
    # a rounding error.
    power = np.maximum(moving_mean(speed**2, SPEED_SECONDS * motion.layout.fps), 0)
    lively = [
        np.sqrt(power[:, motion.layout.columns(name)].mean(axis=1)) for name in motion.layout.names
    ]
    return np.concatenate([smooth, np.stack(lively, axis=1)], axis=1)


def concordance(x: np.ndarray, y: np.ndarray) -> float:
    """Lin's concordance correlation, 2 cov(x, y) / (var x + var y + (mean x - mean y)^2), of (n,)
    arrays.

    The field's measure of how well affect is estimated: 1 is perfect, and a constant guess scores
    0."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    spread = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    if spread == 0:
        raise ValueError("concordance of two constants that agree is undefined")
    return float(2 * np.mean((x - x.mean()) * (y - y.mean())) / spread)
