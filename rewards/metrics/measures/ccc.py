"""The concordance correlation coefficient (Lin 1989), channel by channel.

Of many motions with many others at once.
"""

from __future__ import annotations

import numpy as np

from rapport.rewards.metrics.measures.jit import compiled


def concordance(
    xs: np.ndarray, ys: np.ndarray, epsilon: float = 0.0, equal_constants: float = 1.0
) -> np.ndarray:
    """CCC of every sample with every neighbour, (samples, neighbours, dim).

    2 cov / (var_x + var_y + (mean_x - mean_y)^2 + epsilon), moments with ddof 0. A constant channel
    agrees with any other by 0.

    Args:
        xs: (samples, time, dim).
        ys: (neighbours, time, dim).
        epsilon: added to the denominator.
        equal_constants: the value, 0 / 0 by the formula, where both are constant and equal.

    Raises:
        ValueError: other shapes.
    """
    if xs.ndim != 3 or ys.ndim != 3 or xs.shape[1:] != ys.shape[1:]:
        raise ValueError(
            f"CCC: expected (samples, time, dim) and (neighbours, time, dim), got {xs.shape}, "
            f"{ys.shape}"
        )
    mean_x, var_x = _mean_variance(xs)
    mean_y, var_y = _mean_variance(ys)
    covariance = _covariance(xs, ys, mean_x, mean_y)
    denominator = var_x[:, None] + var_y + (mean_x[:, None] - mean_y) ** 2
    equal = denominator == 0
    # `+ equal` is 1 where the quotient is not used: nothing is divided by 0.
    return np.where(equal, equal_constants, 2 * covariance / (denominator + epsilon + equal))


@compiled
def _mean_variance(xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances over time, (n, dim) each, of xs (n, time, dim).

    The variance of a constant is exactly 0.
    """
    n, frames, channels = xs.shape
    mean, variance = np.zeros((n, channels)), np.zeros((n, channels))
    for k in range(n):
        for t in range(frames):
            for c in range(channels):
                mean[k, c] += xs[k, t, c]
        for c in range(channels):
            mean[k, c] /= frames
        for t in range(frames):
            for c in range(channels):
                variance[k, c] += (xs[k, t, c] - mean[k, c]) ** 2
        for c in range(channels):
            variance[k, c] /= frames
            constant = True
            for t in range(frames):
                if xs[k, t, c] != xs[k, 0, c]:
                    constant = False
                    break
            if constant:  # sums of equal numbers are rounded
                mean[k, c], variance[k, c] = xs[k, 0, c], 0.0
    return mean, variance


@compiled
def _covariance(
    xs: np.ndarray, ys: np.ndarray, mean_x: np.ndarray, mean_y: np.ndarray
) -> np.ndarray:
    """Covariances over time, (samples, neighbours, dim), ddof 0."""
    covariance = np.zeros((len(xs), len(ys), xs.shape[2]))
    centred = np.empty(ys.shape[1:])
    for k in range(len(ys)):
        for t in range(ys.shape[1]):
            for c in range(ys.shape[2]):
                centred[t, c] = ys[k, t, c] - mean_y[k, c]
        for s in range(len(xs)):
            total = covariance[s, k]
            for t in range(ys.shape[1]):
                for c in range(ys.shape[2]):
                    total[c] += (xs[s, t, c] - mean_x[s, c]) * centred[t, c]
    averaged: np.ndarray = covariance / xs.shape[1]
    return averaged
