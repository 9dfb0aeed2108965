"""The metrics that several protocols share, against hand values and textbook versions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from rapport.rewards.metrics.measures.correlation import rpcc, rpcc_per_channel
from rapport.rewards.metrics.measures.distance import mse, sts, sts_rms
from rapport.rewards.metrics.measures.diversity import (
    diversity,
    seeded_diversity,
    sid,
    variation,
    variation_flat,
)
from rapport.rewards.metrics.measures.frechet import fd, p_fd

RNG = np.random.default_rng(0)


def fd_by_sqrtm(x, y):
    cx, cy = np.cov(x.T), np.cov(y.T)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cx + cy - 2 * sqrtm(cx @ cy).real)


def test_fd_of_one_dimensional_gaussians():
    x = np.array([[-1.0], [1.0]])  # mean 0, variance 2 with ddof 1
    y = np.array([[1.0], [5.0]])  # mean 3, variance 8
    assert fd(x, y) == pytest.approx(3**2 + (np.sqrt(2) - np.sqrt(8)) ** 2)


@pytest.mark.parametrize("dim", [1, 2, 7, 40])
def test_fd_agrees_with_scipy_on_full_rank(dim):
    x = RNG.normal(size=(100, dim)) @ RNG.normal(size=(dim, dim))
    y = RNG.normal(size=(80, dim)) @ RNG.normal(size=(dim, dim)) + 0.3
    expected = (
        fd_by_sqrtm(x, y)
        if dim > 1
        else (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    )
    assert fd(x, y) == pytest.approx(expected, rel=1e-6)


def test_fd_of_rank_deficient_clips():
    # 4 frames in 10 dimensions, y = 2x: the square root is exact, |mu|^2 + tr S (1 - 2)^2
    x = RNG.normal(size=(4, 10))
    assert fd(x, x) == pytest.approx(0, abs=1e-12)
    expected = np.sum(x.mean(0) ** 2) + np.trace(np.cov(x.T))
    assert fd(x, 2 * x) == pytest.approx(expected)
    assert fd(x, np.zeros((4, 10))) == pytest.approx(expected)
    with pytest.raises(ValueError, match="3 against 10 channels"):
        fd(x[:, :3], x)
    with pytest.raises(ValueError, match="at least 2 frames"):
        fd(x[:1], x)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 12), st.integers(1, 9), st.integers(0, 99), st.floats(0.1, 10))
def test_fd_properties(frames, dim, seed, scale):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, frames, dim))
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    assert fd(x, y) == pytest.approx(fd(y, x), abs=1e-9)
    assert fd(x[::-1], y) == pytest.approx(fd(x, y), abs=1e-9), "the order of frames is not seen"
    assert fd(x @ turn + 3, y @ turn + 3) == pytest.approx(fd(x, y), abs=1e-8)
    assert fd(scale * x, scale * y) == pytest.approx(scale**2 * fd(x, y), rel=1e-6, abs=1e-8)


def test_p_fd_is_fd_of_the_joint_and_sees_lost_synchrony():
    speaker = RNG.normal(size=(200, 2))
    follows = speaker + 0.1 * RNG.normal(size=(200, 2))
    shuffled = follows[RNG.permutation(200)]
    joint = np.hstack([speaker, shuffled]), np.hstack([speaker, follows])
    assert p_fd(shuffled, follows, speaker) == pytest.approx(fd_by_sqrtm(*joint), rel=1e-6)
    assert fd(shuffled, follows) == pytest.approx(0, abs=1e-9)
    assert p_fd(shuffled, follows, speaker) > 1
    with pytest.raises(ValueError, match="equal lengths"):
        p_fd(follows, follows, speaker[:10])


def test_distances_by_hand():
    x, y = np.array([[0.0, 0], [1, 1]]), np.array([[3.0, 4], [1, 3]])
    assert mse(x, y) == (9 + 16 + 0 + 4) / 4, "no root"
    # steps: x moves by (1, 1), y by (-2, -1): differences 3 and 2
    assert sts(x, y) == pytest.approx(np.sqrt((9 + 4) / 0.1))
    assert sts_rms(x, y) == pytest.approx(np.sqrt((9 + 4) / 2 / 0.1))
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(1, 2\)"):
        mse(x, y[:1])
    with pytest.raises(ValueError, match="only one"):
        sts(x[:1], y[:1])


def test_sts_is_the_references_double_loop_and_grows_with_length():
    x, y = RNG.normal(size=(2, 30, 4))
    total = 0.0
    for d in range(4):
        for t in range(1, 30):
            total += ((x[t, d] - x[t - 1, d]) - (y[t, d] - y[t - 1, d])) ** 2 / 0.1
    assert sts(x, y) == pytest.approx(np.sqrt(total))
    ramp, still = (
        np.arange(101.0)[:, None] * 0.1,
        np.zeros((101, 1)),
    )  # the same error in every step
    assert sts(ramp, still) == pytest.approx(2 * sts(ramp[:26], still[:26]))
    assert sts_rms(ramp, still) == pytest.approx(sts_rms(ramp[:26], still[:26]))


def test_variations():
    x = [[0, 11], [2, 11]]
    assert variation(x) == (1 + 0) / 2
    assert variation_flat(x) == np.var([0, 2, 11, 11]), "the offset between channels counts"


def test_diversity_draws_as_the_references_do():
    x = RNG.normal(size=(40, 3))
    np.random.seed(5)
    first, second = (np.random.choice(40, 30, replace=False) for _ in range(2))
    expected = np.mean(np.sqrt(np.sum((x[first] - x[second]) ** 2, axis=1)))
    assert diversity(x, 30, np.random.RandomState(5)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="draws 41 frames, the clip has 40"):
        diversity(x, 41, np.random.RandomState(0))


def test_seeded_diversity_never_meets_itself_and_is_unbiased():
    assert seeded_diversity(np.eye(12), 12, 3) == pytest.approx(np.sqrt(2))
    assert seeded_diversity(np.full((40, 3), 7.0), 30, 0) == 0
    x = RNG.normal(size=(60, 3))
    everything = np.linalg.norm(x[:, None] - x[None], axis=-1)[~np.eye(60, dtype=bool)].mean()
    drawn = np.mean([seeded_diversity(x, 30, s) for s in range(300)])
    assert drawn == pytest.approx(everything, rel=0.02)


def test_sid_counts_bits():
    y = np.repeat([[0.0], [10], [20], [30]], 10, axis=0)
    assert sid(y, y, 4) == pytest.approx(2, abs=1e-4), "4 equal clusters are 2 bits"
    assert sid(y[:20], y, 4) == pytest.approx(1, abs=1e-4)
    assert sid(y[:10], y, 4) == pytest.approx(0, abs=1e-4), "a frozen face"
    assert sid(np.array([[0.0], [0.0], [0.0], [10]]), y, 4) == pytest.approx(
        -(0.75 * np.log2(0.75) - 0.5), abs=1e-4
    )
    assert sid(y[::-1], y, 4) == sid(y, y, 4)
    with pytest.raises(ValueError, match="fits 41 clusters, there are only 40"):
        sid(y, y, 41)


def test_rpcc_by_hand():
    s = np.array([[0.0], [1], [2], [3]])
    assert rpcc(-s, s, s) == pytest.approx(2) and rpcc_per_channel(-s, s, s) == pytest.approx(2)
    assert rpcc(s + 5, s, s) == pytest.approx(0, abs=1e-12)
    assert np.isnan(rpcc(np.ones((4, 1)), s, s)), "as the references"
    assert rpcc_per_channel(np.ones((4, 1)), s, s) == pytest.approx(1)


def test_offsets_between_channels_dominate_the_flattened_rpcc():
    s = RNG.normal(size=(100, 3)) + [0, 50, 100]
    against = -(s - s.mean(0)) + s.mean(0)  # moves against the partner in every channel
    assert rpcc(against, s, s) < 0.01
    assert rpcc_per_channel(against, s, s) == pytest.approx(2)


@pytest.mark.parametrize("metric", [mse, sts, sts_rms, fd])
def test_distances_are_symmetric_and_zero_for_equals(metric):
    x, y = RNG.normal(size=(2, 30, 4))
    assert metric(x, y) == pytest.approx(metric(y, x)) and metric(x, x) == pytest.approx(
        0, abs=1e-9
    )


def test_what_is_not_finite_is_found():
    x = np.zeros((5, 3))
    x[3, 1] = np.nan
    with pytest.raises(
        ValueError, match=r"y has NaN or infinity, first at frame 3 \(index \(3, 1\)\)"
    ):
        mse(np.zeros((5, 3)), x)
    with pytest.raises(ValueError, match=r"expected an array \(time, dim\).*\(5,\)"):
        variation(np.zeros(5))
