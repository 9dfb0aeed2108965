"""Distances of a prediction to the recorded motion, frame by frame: MSE and STS."""

from __future__ import annotations

import numpy as np

from rapport.rewards.metrics.clips import as_array

STS_TIMESTEP = 0.1  # of DIM's and DualTalk's STS, whatever the frame rate


def mse(x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared difference of (time, dim) arrays.

    lm-listener and the VLA + DPO paper call it L2, though no root is taken.
    """
    x, y = _alike(x, y)
    return float(np.mean((x - y) ** 2))


def sts(x: np.ndarray, y: np.ndarray) -> float:
    """STS of DIM and DualTalk, of (time, dim) arrays.

    sqrt(sum over steps and channels of (dx - dy)^2 / 0.1), d the change to the next frame. A sum:
    it grows with the root of the number of frames and channels.
    """
    return float(np.sqrt(np.sum(_step_errors(x, y) / STS_TIMESTEP)))


def sts_rms(x: np.ndarray, y: np.ndarray) -> float:
    """STS with the mean in place of the sum, so that clips of any length compare."""
    return float(np.sqrt(np.mean(_step_errors(x, y) / STS_TIMESTEP)))


def _step_errors(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = _alike(x, y)
    if len(x) < 2:
        raise ValueError("STS compares changes between frames, the clip has only one")
    return np.diff(x - y, axis=0) ** 2


def _alike(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = as_array(x, "x")
    y = as_array(y, "y")
    if x.shape != y.shape:
        raise ValueError(f"cannot compare arrays of shapes {x.shape} and {y.shape}")
    return x, y
