"""How far a listener's correlation with the partner is from the recorded one: rPCC."""

from __future__ import annotations

import numpy as np

from rapport.rewards.metrics.clips import as_array


def rpcc(x: np.ndarray, y: np.ndarray, partner: np.ndarray) -> float:
    """Residual Pearson correlation as DIM and DualTalk compute it.

    |corr(y, partner) - corr(x, partner)|. Arrays (time, dim) are flattened first, so that the
    constant offsets between channels dominate. NaN where one of them is constant.

    Raises:
        ValueError: unlike shapes.
    """
    x, y, s = _alike(x, y, partner)
    with np.errstate(invalid="ignore", divide="ignore"):
        recorded = np.corrcoef(y.ravel(), s.ravel())[0, 1]
        predicted = np.corrcoef(x.ravel(), s.ravel())[0, 1]
        return float(abs(recorded - predicted))


def rpcc_per_channel(x: np.ndarray, y: np.ndarray, partner: np.ndarray) -> float:
    """Mean over channels of |corr_t(y, partner) - corr_t(x, partner)|, (time, dim) each.

    A constant channel correlates with nothing.

    Raises:
        ValueError: unlike shapes.
    """
    x, y, s = _alike(x, y, partner)
    return float(np.mean(np.abs(_pearson(y, s) - _pearson(x, s))))


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(dim,) correlation over time."""
    constant = (np.ptp(a, axis=0) == 0) | (np.ptp(b, axis=0) == 0)
    a = a - a.mean(axis=0)
    b = b - b.mean(axis=0)
    scale = np.sqrt(np.sum(a**2, axis=0) * np.sum(b**2, axis=0))
    r = np.sum(a * b, axis=0) / np.where(constant | (scale == 0), 1.0, scale)
    return np.where(constant, 0.0, r)


def _alike(
    x: np.ndarray, y: np.ndarray, partner: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = as_array(x, "x")
    y = as_array(y, "y")
    s = as_array(partner, "partner")
    if not x.shape == y.shape == s.shape:
        raise ValueError(
            f"rPCC needs equal shapes, got x {x.shape}, y {y.shape}, partner {s.shape}"
        )
    return x, y, s
