"""Time-lagged cross-correlation: at which delay do two motions go together?

Source: Boker et al. 2002.
"""

from __future__ import annotations

import numpy as np

from rapport.rewards.metrics.measures.jit import compiled

MAX_LAG = 49  # frames; the REACT code looks at 2 s * 25 fps, exclusive
EQUAL = 1e-9  # peaks that differ by less are equal but for rounding


def lagged_correlation(x: np.ndarray, y: np.ndarray, max_lag: int = MAX_LAG) -> np.ndarray:
    """Pearson's r of x[t + lag] with y[t], for lags -max_lag to max_lag, (2 max_lag + 1, dim).

    NaN where one of the two is constant over the frames that the lag leaves.

    Args:
        x: (time, dim).
        y: (time, dim).
        max_lag: frames.

    Raises:
        ValueError: unlike shapes, or fewer than max_lag + 2 frames.
    """
    if x.shape != y.shape or x.ndim != 2:
        raise ValueError(
            f"TLCC: expected two arrays (time, dim) of one shape, got {x.shape} and {y.shape}"
        )
    if len(x) < max_lag + 2:
        raise ValueError(
            f"TLCC: lags of up to {max_lag} frames need at least {max_lag + 2}, the clip has "
            f"{len(x)}"
        )
    lags = np.arange(-max_lag, max_lag + 1)
    frames = len(x) - np.abs(lags)[:, None]
    x = np.asarray(x, np.float64)
    y = np.asarray(y, np.float64)
    sum_x, squares_x, constant_x = _windows(x, lags)
    sum_y, squares_y, constant_y = _windows(y, -lags)
    padded_x = np.pad((x - x.mean(axis=0)).T, ((0, 0), (max_lag, max_lag)))
    products = _products(padded_x, (y - y.mean(axis=0)).T.copy())
    covariance = products.T - sum_x * sum_y / frames
    variances = (squares_x - sum_x**2 / frames) * (squares_y - sum_y**2 / frames)
    constant = constant_x | constant_y
    r = covariance / np.sqrt(np.where(constant, 1.0, variances))
    return np.where(constant, np.nan, np.clip(r, -1, 1))


def lag_of_peak(x: np.ndarray, y: np.ndarray) -> int:
    """By how many frames, 0 to 49, x must be shifted for the greatest mean r over channels.

    A channel that is constant over a lag's frames counts as uncorrelated there. Of equal peaks the
    one nearest to lag 0 counts, so a motion has lag 0 to itself, however slow it is. Where no
    channel varies in both, 49: standing still is not synchrony.
    """
    r = lagged_correlation(x, y)
    if np.isnan(r).all():
        return MAX_LAG
    mean = np.nan_to_num(r, nan=0.0).mean(axis=1)
    peaks = np.flatnonzero(mean >= mean.max() - EQUAL)
    return int(np.abs(peaks - MAX_LAG).min())


def lag_of_peak_as_published(x: np.ndarray, y: np.ndarray) -> int:
    """`lag_of_peak` as the REACT code computes it (metric/TLCC.py).

    One constant channel makes every mean NaN, and the first NaN is taken for the peak, at lag -49.
    Means are in single precision; of equal ones the first counts.
    """
    mean = lagged_correlation(x, y).astype(np.float32).mean(axis=1)
    return int(abs(np.argmax(mean) - MAX_LAG))


def _windows(x: np.ndarray, lags: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums, sums of squares and constancy, (lags, dim) each, of x[lag:], or x[:lag] if lag < 0.

    The sums are of x less its mean.
    """
    n, dim = x.shape
    centred = x - x.mean(axis=0)
    start = np.maximum(lags, 0)
    stop = n + np.minimum(lags, 0)
    zero = np.zeros((1, dim))
    sums = np.concatenate([zero, np.cumsum(centred, axis=0)])
    squares = np.concatenate([zero, np.cumsum(centred**2, axis=0)])
    # Whether values are equal, not whether the variance is 0: rounding keeps it from being 0.
    changes = np.concatenate([np.zeros((1, dim), int), np.cumsum(x[1:] != x[:-1], axis=0)])
    return (
        sums[stop] - sums[start],
        squares[stop] - squares[start],
        changes[stop - 1] == changes[start],
    )


@compiled
def _products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum over t of x[t + lag] y[t], (dim, lags).

    x: (dim, time + 2 max_lag) with zeros at both ends; y: (dim, time).
    """
    channels, frames = y.shape
    totals = np.zeros((channels, x.shape[1] - frames + 1))
    for c in range(channels):
        row, total = x[c], totals[c]
        for t in range(frames):
            value = y[c, t]
            for lag in range(len(total)):
                total[lag] += row[np.uint64(t) + np.uint64(lag)] * value
    return totals
