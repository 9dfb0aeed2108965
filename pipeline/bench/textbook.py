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
        apart = np.var(a) + np.var(b) + (np.mean(a) - np.mean(b)) ** 2
        values.append(2 * rho * np.std(a) * np.std(b) / (apart + 1e-8))
    return float(np.mean(values))


def lag(x: np.ndarray, y: np.ndarray) -> int:
    """|lag| of the peak of the mean correlation of (time, dim) arrays, within 49 frames."""
    means = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for shift in range(-49, 50):
            if shift >= 0:
                a = x[shift:]
                b = y[: len(y) - shift]
            else:
                a = x[:shift]
                b = y[-shift:]
            channels = range(x.shape[1])
            correlations = [np.corrcoef(a[:, c], b[:, c])[0, 1] for c in channels]
            means.append(np.mean(np.array(correlations, np.float32)))
    return abs(49 - int(np.argmax(means)))


def weighted_dtw(x: np.ndarray, y: np.ndarray) -> float:
    """Three DTW distances of (time, 25) arrays, weighted."""
    # As tslearn does.
    x = x.astype(np.float64)
    y = y.astype(np.float64)
    distance = 0.0
    for first, last, weight in ((0, 15, 1 / 15), (15, 17, 1.0), (17, 25, 1 / 8)):
        squared = _accumulated(x[:, first:last].copy(), y[:, first:last].copy())
        distance += weight * np.sqrt(squared)
    return float(distance)


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
