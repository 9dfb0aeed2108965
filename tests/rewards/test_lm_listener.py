"""The lm-listener metrics against hand values and against scipy's matrix square root."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from policies.motion import Layout, LayoutError, Motion
from rewards.metrics.lm_listener import diversity, evaluate, fd, l2, l2_affect, p_fd, variation

RNG = np.random.default_rng(0)
LAYOUT = Layout((("expr", 3), ("jaw", 1)), 25, "builtin")


def motion(values):
    return Motion(np.asarray(values, np.float32), LAYOUT)


def valence_of_first_channel(m):
    return np.stack([m.values[:, 0], np.zeros(len(m))], axis=1)


def fd_by_sqrtm(x, y):
    cx, cy = np.cov(x.T), np.cov(y.T)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cx + cy - 2 * sqrtm(cx @ cy).real)


def test_l2_is_a_mean_square_without_root():
    assert l2([[0, 0], [1, 1]], [[2, 0], [1, 3]]) == (4 + 0 + 0 + 4) / 4


def test_variation_has_ddof_0():
    assert variation([[0, 1], [2, 1]]) == (1 + 0) / 2


def test_fd_of_one_dimensional_gaussians():
    x = np.array([[-1.0], [1.0]])  # mean 0, variance 2 with ddof 1
    y = np.array([[1.0], [5.0]])  # mean 3, variance 8
    assert fd(x, y) == pytest.approx(3**2 + (np.sqrt(2) - np.sqrt(8)) ** 2)


@pytest.mark.parametrize("dim", [1, 2, 7, 40])
def test_fd_agrees_with_scipy_on_full_rank(dim):
    x = RNG.normal(size=(100, dim)) @ RNG.normal(size=(dim, dim))
    y = RNG.normal(size=(80, dim)) @ RNG.normal(size=(dim, dim)) + 0.3
    expected = fd_by_sqrtm(x, y) if dim > 1 else (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert fd(x, y) == pytest.approx(expected, rel=1e-6)


def test_fd_of_rank_deficient_clips():
    # 4 frames in 10 dimensions, y = 2x: the square root is exact, |mu|^2 + tr S (1 - 2)^2
    x = RNG.normal(size=(4, 10))
    assert fd(x, x) == pytest.approx(0, abs=1e-12)
    expected = np.sum(x.mean(0) ** 2) + np.trace(np.cov(x.T))
    assert fd(x, 2 * x) == pytest.approx(expected)
    frozen = np.zeros((4, 10))
    assert fd(x, frozen) == pytest.approx(np.sum(x.mean(0) ** 2) + np.trace(np.cov(x.T)))


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 12), st.integers(1, 9), st.integers(0, 99), st.floats(0.1, 10))
def test_fd_properties(frames, dim, seed, scale):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, frames, dim))
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    assert fd(x, y) >= -1e-9
    assert fd(x, y) == pytest.approx(fd(y, x), abs=1e-9)
    assert fd(x[::-1], y) == pytest.approx(fd(x, y), abs=1e-9)  # the order of frames is not seen
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


def test_diversity_counts_and_seed():
    assert diversity(np.full((40, 3), 7.0)) == 0
    x = RNG.normal(size=(100, 3))
    assert diversity(x, 1) == diversity(x, 1) != diversity(x, 2)
    for frames, pairs in ((100, 30), (31, 30), (30, 10), (10, 10)):
        rng = np.random.default_rng(5)
        first, second = rng.choice(frames, pairs, replace=False), rng.choice(frames, pairs, replace=False)
        expected = np.mean(np.sqrt(np.sum((x[first] - x[second]) ** 2, axis=1)))
        assert diversity(x[:frames], 5) == pytest.approx(expected)
    with pytest.raises(ValueError, match="draws 10 frames"):
        diversity(x[:9])


def test_l2_affect_by_hand():
    x, y = np.zeros(70), np.zeros(70)
    x[:30] = 0.5  # first window differs by .5, second by 0, the tail of 10 frames is dropped
    x[60:] = 9
    assert l2_affect(x, y) == pytest.approx(0.25 / 2)
    wiggle = np.tile([1.0, -1.0], 15)
    assert l2_affect(wiggle, np.zeros(30)) == 0  # windows are averaged before they are squared
    with pytest.raises(ValueError, match="29"):
        l2_affect(x[:29], y[:29])


def test_evaluate_averages_over_clips_and_leaves_out_what_is_absent():
    a, b = RNG.normal(size=(2, 60, 4))
    short = RNG.normal(size=(20, 4))
    speaker = motion(RNG.normal(size=(60, 4)))
    result = evaluate([motion(a), motion(short)], [motion(b), motion(short)], [speaker, None], valence_of_first_channel)
    assert result["l2"] == pytest.approx(l2(a, b) / 2, rel=1e-5)
    assert result["fd"] == pytest.approx(fd(a, b) / 2, rel=1e-5)
    assert result["p_fd"] == pytest.approx(p_fd(a, b, speaker.values), rel=1e-5)
    assert result["variation"] == pytest.approx((variation(a) + variation(short)) / 2, rel=1e-5)
    assert result["l2_affect"] == pytest.approx(l2_affect(a[:, 0], b[:, 0]), rel=1e-5)
    assert (result["clips"], result["p_fd_clips"], result["l2_affect_clips"]) == (2, 1, 1)


def test_what_cannot_be_computed_is_none_and_not_zero():
    x = motion(RNG.normal(size=(40, 4)))
    result = evaluate([x], [x])
    assert result["p_fd"] is None and result["l2_affect"] is None
    assert result["l2"] == 0 and result["diversity"] > 0


def test_only_the_first_240_frames_count():
    x, y = RNG.normal(size=(2, 300, 4))
    assert evaluate([motion(x)], [motion(y)])["l2"] == pytest.approx(l2(x[:240], y[:240]), rel=1e-5)


def test_unlike_clips_are_refused():
    x = motion(np.ones((40, 4)))
    other = Motion(x.values, Layout(LAYOUT.groups, 30, "builtin"))
    with pytest.raises(LayoutError, match="clip 0"):
        evaluate([x], [other])
    with pytest.raises(ValueError, match="39 predicted frames for 40"):
        evaluate([x.window(0, 39)], [x])
    with pytest.raises(ValueError, match="1 predictions for 0"):
        evaluate([x], [])
    with pytest.raises(ValueError, match="shapes"):
        l2(np.ones((3, 2)), np.ones((2, 2)))
