"""CCC, DTW and TLCC kernels against plain loops and numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapport.rewards.metrics.measures.ccc import concordance
from rapport.rewards.metrics.measures.dtw import _boxes, _channels, _tails, dtw, nearest_dtw
from rapport.rewards.metrics.measures.tlcc import (
    lag_of_peak,
    lag_of_peak_as_published,
    lagged_correlation,
)


def dtw_table(x, y):
    table = np.full((len(x) + 1, len(y) + 1), np.inf)
    table[0, 0] = 0
    for i in range(len(x)):
        for j in range(len(y)):
            table[i + 1, j + 1] = np.sum((x[i] - y[j]) ** 2) + min(
                table[i, j], table[i, j + 1], table[i + 1, j]
            )
    return np.sqrt(table[-1, -1])


def clips(rng, kind, *shape):
    noise = rng.normal(size=shape)
    return {
        "noise": noise,
        "walk": np.cumsum(noise, axis=-2),
        "binary": (noise > 0.5) * 1.0,
        "constant": np.broadcast_to(noise[..., :1, :], shape).copy(),
    }[kind]


def test_dtw_by_hand():
    x = np.array([[0.0], [1.0], [2.0]])
    assert dtw(x, np.array([[0.0], [0.0], [1.0], [1.0], [2.0]])) == 0  # waiting is free
    assert dtw(x, x + 3) == pytest.approx(np.sqrt(9 + 4 + 4 + 9))  # 0-3, 1-3, 2-4, 2-5
    assert dtw(np.zeros((1, 2)), np.array([[3.0, 4.0]])) == 5


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 45),
    st.integers(1, 45),
    st.integers(1, 9),
    st.integers(0, 999),
    st.sampled_from(["noise", "walk", "binary", "constant"]),
)
def test_dtw_equals_the_table(frames, others, dim, seed, kind):
    rng = np.random.default_rng(seed)
    x, y = clips(rng, kind, frames, dim), clips(rng, kind, others, dim)
    assert dtw(x, y) == pytest.approx(dtw_table(x, y), abs=1e-9)
    assert dtw(y, x) == pytest.approx(dtw(x, y), abs=1e-9)
    assert dtw(x, x) == 0
    assert dtw(3 * x, 3 * y) == pytest.approx(3 * dtw(x, y), abs=1e-9)
    assert dtw(np.repeat(x, 2, axis=0), x) == 0


@settings(deadline=None, max_examples=20)
@given(
    st.integers(2, 40),
    st.integers(2, 40),
    st.integers(0, 999),
    st.sampled_from(["noise", "walk", "binary", "constant"]),
)
def test_nearest_is_the_exact_minimum(frames, others, seed, kind):
    rng = np.random.default_rng(seed)
    groups = [(slice(0, 5), 0.2), (slice(5, 7), 1.0), (slice(7, 10), 0.5)]
    xs, ys = clips(rng, kind, 2, frames, 10), clips(rng, kind, 6, others, 10)
    every = [[sum(w * dtw_table(x[:, c], y[:, c]) for c, w in groups) for y in ys] for x in xs]
    assert nearest_dtw(xs, ys, groups) == pytest.approx(np.min(every, axis=1), abs=1e-9)
    among_itself = nearest_dtw(
        xs, np.concatenate([np.repeat(ys[:, :1], frames, axis=1), xs[1:]]), groups
    )
    assert among_itself[1] == 0


@settings(deadline=None, max_examples=30)
@given(
    st.integers(2, 60),
    st.integers(2, 60),
    st.integers(0, 999),
    st.sampled_from(["noise", "walk", "binary"]),
)
def test_the_lower_bound_is_below(frames, others, seed, kind):
    rng = np.random.default_rng(seed)
    x, y = clips(rng, kind, frames, 3), clips(rng, kind, others, 3)
    tails = _tails(*_boxes(_channels(x[None])), *_boxes(_channels(y[None])), frames)[0]
    assert np.sqrt(tails[0]) <= dtw_table(x, y) + 1e-9
    assert np.all(np.diff(tails) <= 0) and tails[-1] == 0


def test_dtw_refuses_unlike_widths():
    with pytest.raises(ValueError, match=r"\(1, 5, 2\), \(1, 5, 3\)"):
        dtw(np.ones((5, 2)), np.ones((5, 3)))
    with pytest.raises(ValueError, match="neighbours"):
        nearest_dtw(np.ones((1, 5, 2)), np.ones((0, 5, 2)), [(slice(0, 2), 1.0)])


def test_ccc_agrees_with_numpy():
    rng = np.random.default_rng(0)
    xs, ys = rng.normal(size=(3, 40, 5)), rng.normal(size=(4, 40, 5)) + 0.5
    for kind, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
        result = concordance(xs.astype(kind), ys.astype(kind), epsilon=1e-8)
        for s, x in enumerate(xs):
            for k, y in enumerate(ys):
                for c in range(5):
                    a, b = x[:, c], y[:, c]
                    expected = (
                        2
                        * np.cov(a, b, ddof=0)[0, 1]
                        / (a.var() + b.var() + (a.mean() - b.mean()) ** 2 + 1e-8)
                    )
                    assert result[s, k, c] == pytest.approx(expected, abs=tolerance)


def test_ccc_properties():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 2, 30, 3))
    assert concordance(x, x)[[0, 1], [0, 1]] == pytest.approx(1)
    assert np.all(concordance(x, -x) >= -1 - 1e-12)
    assert concordance(x, y) == pytest.approx(concordance(y, x).swapaxes(0, 1))
    assert concordance(5 * x + 1, 5 * y + 1) == pytest.approx(concordance(x, y))
    assert np.all(np.abs(concordance(x, x + 2)) < np.abs(concordance(x, x + 1)))


@pytest.mark.parametrize("value", [0.0, 0.1, np.float32(0.3)])
def test_ccc_of_constants(value):
    still, moving = np.full((1, 33, 1), value), np.random.default_rng(2).normal(size=(1, 33, 1))
    assert concordance(still, still) == 1 and concordance(still, still, equal_constants=0.0) == 0
    assert concordance(still, still + 1) == 0 == concordance(still, moving)


def by_numpy(x, y, lag):
    a, b = (x[lag:], y[: len(y) - lag]) if lag >= 0 else (x[:lag], y[-lag:])
    with np.errstate(invalid="ignore"):
        return [np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(x.shape[1])]


@pytest.mark.parametrize("kind", ["noise", "walk", "binary"])
def test_lagged_correlation_agrees_with_numpy(kind):
    x, y = clips(np.random.default_rng(3), kind, 2, 80, 4)
    x[5:, 1] = 2.0  # moves in the first frames only: constant at lags from 5 on
    y[:, 2] = 0.25
    expected = np.array([by_numpy(x, y, lag) for lag in range(-49, 50)])
    assert lagged_correlation(x, y) == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert np.isnan(expected[49 + 5 :, 1]).all() and not np.isnan(expected[49 + 4, 1])
    single = lagged_correlation(x.astype(np.float32), y.astype(np.float32))
    assert single == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_lag_is_found_on_either_side():
    walk = np.cumsum(np.random.default_rng(4).normal(size=(200, 3)), axis=0)
    for delay in (0, 1, 13, 49):
        late, early = walk[50 - delay : 150 - delay], walk[50:150]
        assert lag_of_peak(late, early) == lag_of_peak_as_published(late, early) == delay
        assert lag_of_peak(early, late) == delay
        assert np.argmax(lagged_correlation(late, early).mean(axis=1)) == 49 + delay


def test_lag_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="one shape"):
        lagged_correlation(np.ones((80, 2)), np.ones((80, 3)))
    with pytest.raises(ValueError, match="at least 51, the clip has 50"):
        lag_of_peak(np.ones((50, 2)), np.ones((50, 2)))
