"""Time-lagged cross-correlation: at which delay do two motions go together (Boker et al. 2002)."""

from __future__ import annotations

import numpy as np

from rapport.rewards.metrics.measures.jit import compiled

MAX_LAG = 49  # frames; the REACT code looks at 2 s * 25 fps, exclusive
EQUAL = 1e-9  # peaks that near are the same but for rounding


def lagged_correlation(x: np.ndarray, y: np.ndarray, max_lag: int = MAX_LAG) -> np.ndarray:
    """(2 max_lag + 1, dim): Pearson's r of x[t + lag] with y[t], both (time, dim), for lags
    -max_lag to max_lag.

    NaN where one of the two is constant over the frames that the lag leaves.
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
    x, y = (np.asarray(z, np.float64) for z in (x, y))
    (sum_x, squares_x, constant_x), (sum_y, squares_y, constant_y) = (
        _windows(x, lags),
        _windows(y, -lags),
    )
    products = _products(
        np.pad((x - x.mean(axis=0)).T, ((0, 0), (max_lag, max_lag))), (y - y.mean(axis=0)).T.copy()
    )
    covariance = products.T - sum_x * sum_y / frames
    variances = (squares_x - sum_x**2 / frames) * (squares_y - sum_y**2 / frames)
    constant = constant_x | constant_y
    r = covariance / np.sqrt(np.where(constant, 1.0, variances))
    return np.where(constant, np.nan, np.clip(r, -1, 1))


def lag_of_peak(x: np.ndarray, y: np.ndarray) -> int:
    """Frames between 0 and 49 by which x must be shifted for r, averaged over channels, to be
    greatest.

    A channel that is constant over a lag's frames counts as uncorrelated there. Of equal peaks the
    one nearest to lag 0 counts, so a motion has lag 0 to itself, however slow it is. Where no
    channel varies in both, 49: standing still is not synchrony."""
    r = lagged_correlation(x, y)
    if np.isnan(r).all():
        return MAX_LAG
    mean = np.nan_to_num(r, nan=0.0).mean(axis=1)
    return int(np.abs(np.flatnonzero(mean >= mean.max() - EQUAL) - MAX_LAG).min())


def lag_of_peak_as_published(x: np.ndarray, y: np.ndarray) -> int:
    """The same as the REACT code computes it (metric/TLCC.py): one constant channel makes every
    mean NaN, and the first NaN is taken for the peak, at lag -49. Means are in single precision; of
    equal ones the first counts."""
    mean = lagged_correlation(x, y).astype(np.float32).mean(axis=1)
    return int(abs(np.argmax(mean) - MAX_LAG))


def _windows(x: np.ndarray, lags: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums, sums of squares (of x less its mean) and constancy, (lags, dim) each, of x[lag:], or
    x[:lag] if lag < 0.
    """
    n, dim = x.shape
    centred = x - x.mean(axis=0)
    start, stop = np.maximum(lags, 0), n + np.minimum(lags, 0)
    sums, squares = (
        np.concatenate([np.zeros((1, dim)), np.cumsum(z, axis=0)]) for z in (centred, centred**2)
    )
    # Equality is looked at, not the variance: that of a constant is rounded to something else than
    # 0.
    changes = np.concatenate([np.zeros((1, dim), int), np.cumsum(x[1:] != x[:-1], axis=0)])
    return (
        sums[stop] - sums[start],
        squares[stop] - squares[start],
        changes[stop - 1] == changes[start],
    )


@compiled
def _products(x, y):
    """(dim, lags): sum over t of x[t + lag] y[t]; x (dim, time + 2 max_lag) with zeros at both
    ends, y (dim, time).
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
