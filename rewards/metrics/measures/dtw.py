"""Dynamic time warping as tslearn defines it, and the nearest of many by it, exactly.

    dtw(x, y) = sqrt( min over warping paths of the sum of |x_i - y_j|^2 )        Sakoe & Chiba 1978

no band, no division by the path's length. The table is filled by anti-diagonals, whose cells do not
depend on each other, so several are computed at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rapport.rewards.metrics.measures.jit import compiled

ChannelGroups = Sequence[tuple[slice, float]]  # channels, and the weight of their distance

SEGMENT = 10  # frames; the lower bound replaces as many by the box around them
N = np.uint64  # unsigned indices need no test for "from the end", which would keep the loops scalar


def dtw(x: np.ndarray, y: np.ndarray) -> float:
    """DTW distance of x (time, dim) and y (other time, dim)."""
    return float(nearest_dtw(x[None], y[None], [(slice(None), 1.0)])[0])


def nearest_dtw(xs: np.ndarray, ys: np.ndarray, groups: ChannelGroups) -> np.ndarray:
    """Least distance of each x to any y, (samples,).

    The distance is the sum over groups g of weight_g * dtw(x[:, g], y[:, g]). The minimum is exact
    though most tables are left unfinished. A neighbour's distance is bounded from below by the
    groups warped so far and, for the others, by `_tails`; it is dropped once that exceeds the best.
    The best starts from the diagonal paths. Narrow groups come first, as they cost least.

    Args:
        xs: (samples, time, dim), finite.
        ys: (neighbours, other time, dim), finite.
        groups: the channels that are warped together, and their weights.

    Raises:
        ValueError: other shapes.
    """
    if xs.ndim != 3 or ys.ndim != 3 or xs.shape[2] != ys.shape[2] or 0 in ys.shape or 0 in xs.shape:
        raise ValueError(
            f"DTW: expected (samples, time, dim) and (neighbours, time, dim), got {xs.shape}, "
            f"{ys.shape}"
        )
    groups = sorted(groups, key=lambda group: len(range(xs.shape[2])[group[0]]))
    weights = [float(weight) for _, weight in groups]
    ys_by_group = [_channels(ys[:, :, columns]) for columns, _ in groups]
    y_boxes = [_boxes(y) for y in ys_by_group]
    y_reversed = [np.ascontiguousarray(y[:, :, ::-1]) for y in ys_by_group]
    nearest = np.empty(len(xs))
    for sample, x in enumerate(xs):
        x_by_group = [_channels(x[None, :, columns]) for columns, _ in groups]
        tails = [
            _tails(*_boxes(x), *boxes, xs.shape[1])
            for x, boxes in zip(x_by_group, y_boxes, strict=True)
        ]
        below = np.stack(
            [w * np.sqrt(tail[:, 0]) for w, tail in zip(weights, tails, strict=True)], axis=1
        )
        above = np.full(len(ys), np.inf)
        if xs.shape[1] == ys.shape[1]:
            above = np.zeros(len(ys))
            for weight, own, others in zip(weights, x_by_group, ys_by_group, strict=True):
                above = above + weight * np.sqrt(_diagonals(own, others))
        best = above.min()
        for index in np.argsort(below.sum(axis=1) + above, kind="stable"):
            bounds = below[index].tolist()
            for g, weight in enumerate(weights):
                room = best - (sum(bounds) - bounds[g])
                if room < bounds[g]:
                    break
                limit = (room / weight) ** 2
                squared = _warp(x_by_group[g][0], y_reversed[g][index], tails[g][index], limit)
                bounds[g] = weight * squared**0.5
            else:
                best = min(best, sum(bounds))
        nearest[sample] = best
    return nearest


def _channels(x: np.ndarray) -> np.ndarray:
    """(..., time, dim) -> (..., dim, time), with a channel of zeros where `dim` is odd."""
    channels = np.zeros((x.shape[0], x.shape[2] + x.shape[2] % 2, x.shape[1]))
    channels[:, : x.shape[2]] = x.transpose(0, 2, 1)
    return channels


def _boxes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value in each segment, (..., dim, segments), of x (..., dim, time)."""
    starts = np.arange(0, x.shape[-1], SEGMENT)
    return np.minimum.reduceat(x, starts, axis=-1), np.maximum.reduceat(x, starts, axis=-1)


@compiled
def _diagonals(x: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Squared distances of x (1, dim, time) and ys (neighbours, dim, time), frame by frame.

    Returns (neighbours,).
    """
    totals = np.zeros(len(ys))
    frames = np.empty(x.shape[2])
    for k in range(len(ys)):
        frames[:] = 0.0
        for c in range(x.shape[1]):
            for t in range(x.shape[2]):
                d = x[0, c, t] - ys[k, c, t]
                frames[t] += d * d
        for t in range(len(frames)):
            totals[k] += frames[t]
    return totals


@compiled
def _tails(
    x_low: np.ndarray, x_high: np.ndarray, y_low: np.ndarray, y_high: np.ndarray, frames: int
) -> np.ndarray:
    """Least squared cost of warping what follows the start of each segment of x.

    Every frame of x meets some frame of y, in order, and they differ by no less than the boxes
    around their segments (after Keogh & Ratanamahatana 2005, with the order kept). x_low, x_high:
    (1, dim, segments); y_low, y_high: (neighbours, dim, segments). Returns (neighbours, segments +
    1), of which column 0 bounds the distance as a whole.
    """
    neighbours, channels, others = y_low.shape
    segments = x_low.shape[2]
    tails = np.zeros((neighbours, segments + 1))
    rest, gap = np.empty(others), np.empty(others)
    for k in range(neighbours):
        rest[:] = 0.0
        for s in range(segments - 1, -1, -1):
            gap[:] = 0.0
            for c in range(channels):
                low, high = x_low[0, c, s], x_high[0, c, s]
                for o in range(N(others)):
                    d = max(max(low - y_high[k, c, o], y_low[k, c, o] - high), 0.0)
                    gap[o] += d * d
            length = min(SEGMENT, frames - s * SEGMENT)
            least = np.inf
            for o in range(others - 1, -1, -1):
                least = min(least, rest[o] + length * gap[o])
                rest[o] = least
            tails[k, s] = least
    return tails


@compiled
def _warp(x: np.ndarray, y: np.ndarray, tails: np.ndarray, limit: float) -> float:
    """Squared DTW distance, infinity where it exceeds `limit`.

    x: (dim, time); y: (dim, other time), reversed. Cell i of anti-diagonal k pairs frame i of x
    with frame k - i of y, so as y is reversed both run forward.
    """
    n, m = N(x.shape[1]), N(y.shape[1])
    # Paths to the cells of three diagonals in a row; entry i + 1 belongs to frame i, infinity
    # stands beyond the edge.
    last = np.full(n + N(1), np.inf)
    before = np.full(n + N(1), np.inf)
    here = np.full(n + N(1), np.inf)
    cost = np.empty(n)
    before[0] = 0.0  # where all paths start
    for k in range(n + m - N(1)):
        low = k + N(1) - m if k + N(1) > m else N(0)
        high = min(k + N(1), n)
        _cost(x, y, low, high, low + m - N(1) - k, cost)
        _step(last, before, cost, here, low, high)
        # Every path visits at least one of two diagonals in a row.
        if k % N(16) == N(15) and not _within(last, tails, low, high, limit) | _within(
            here, tails, low, high, limit
        ):
            return np.inf
        before[0] = np.inf
        before, last, here = last, here, before
    squared: float = last[n]
    return squared


@compiled
def _cost(
    x: np.ndarray,
    y: np.ndarray,
    low: np.uint64,
    high: np.uint64,
    start: np.uint64,
    cost: np.ndarray,
) -> None:
    """Squared distances of frames low..high of x and start.. of y, into `cost`.

    Four channels at a time, or first two where the number asks for it.
    """
    channels = N(x.shape[0])
    c = channels % N(4)
    if c:
        for i in range(high - low):
            p, q = x[N(0), low + i] - y[N(0), start + i], x[N(1), low + i] - y[N(1), start + i]
            cost[i] = p * p + q * q
    else:
        for i in range(high - low):
            cost[i] = 0.0
    while c < channels:
        for i in range(high - low):
            p, q = x[c, low + i] - y[c, start + i], x[c + N(1), low + i] - y[c + N(1), start + i]
            r, s = (
                x[c + N(2), low + i] - y[c + N(2), start + i],
                x[c + N(3), low + i] - y[c + N(3), start + i],
            )
            cost[i] += p * p + q * q + r * r + s * s
        c += N(4)


@compiled
def _step(
    last: np.ndarray,
    before: np.ndarray,
    cost: np.ndarray,
    here: np.ndarray,
    low: np.uint64,
    high: np.uint64,
) -> None:
    """Least costs of the paths to one diagonal, into `here`.

    A path comes from the left or from above, both on the last diagonal, or from the corner, on the
    one before.
    """
    for i in range(high - low):
        left, up, corner = last[low + i + N(1)], last[low + i], before[low + i]
        least = left if left < up else up
        least = corner if corner < least else least
        here[low + i + N(1)] = cost[i] + least


@compiled
def _within(
    paths: np.ndarray, tails: np.ndarray, low: np.uint64, high: np.uint64, limit: float
) -> np.bool_:
    """Whether some path of this diagonal may end within `limit`."""
    i = low
    while i < high and paths[i + N(1)] + tails[i // N(SEGMENT) + N(1)] > limit:
        i += N(1)
    return i < high
