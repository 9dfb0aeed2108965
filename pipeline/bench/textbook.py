"""The REACT metrics as the public code computes them: one pair, one channel, one lag at a time.

Written from the description in `rapport.rewards.metrics.protocols.react`, to measure against; DTW
is compiled, as tslearn's is.
"""

from __future__ import annotations

import numba
import numpy as np

from rapport.rewards.metrics.measures.jit import CACHE


def ccc(x: np.ndarray, y: np.ndarray) -> float:
    """CCC of (time, dim) arrays, averaged over channels."""
    values = []
    for a, b in zip(x.T, y.T, strict=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            rho = np.nan_to_num(np.corrcoef(a, b)[0, 1])
        spread = np.var(a) + np.var(b) + (np.mean(a) - np.mean(b)) ** 2
        values.append(2 * rho * np.std(a) * np.std(b) / (spread + 1e-8))
    return float(np.mean(values))


def lag(x: np.ndarray, y: np.ndarray) -> int:
    """|lag| of the peak of the mean correlation of (time, dim) arrays, within 49 frames."""
    means = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for shift in range(-49, 50):
            a, b = (x[shift:], y[: len(y) - shift]) if shift >= 0 else (x[:shift], y[-shift:])
            means.append(
                np.mean(
                    np.float32([np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(x.shape[1])])
                )
            )
    return abs(49 - int(np.argmax(means)))


def weighted_dtw(x: np.ndarray, y: np.ndarray) -> float:
    """Three DTW distances of (time, 25) arrays, weighted."""
    x, y = x.astype(np.float64), y.astype(np.float64)  # as tslearn does
    groups = ((0, 15, 1 / 15), (15, 17, 1.0), (17, 25, 1 / 8))
    return float(
        sum(w * np.sqrt(_accumulated(x[:, a:b].copy(), y[:, a:b].copy())) for a, b, w in groups)
    )


@numba.njit(cache=CACHE)
def _squared_distance(a, b):
    total = 0.0
    for c in range(len(a)):
        total += (a[c] - b[c]) ** 2
    return total


@numba.njit(cache=CACHE)
def _accumulated(x, y):
    table = np.full((len(x) + 1, len(y) + 1), np.inf)
    table[0, 0] = 0.0
    for i in range(len(x)):
        for j in range(len(y)):
            table[i + 1, j + 1] = _squared_distance(x[i], y[j]) + min(
                table[i, j + 1], table[i + 1, j], table[i, j]
            )
    return table[-1, -1]
