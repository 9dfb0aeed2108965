"""Joints between windows: smoothers that go on as the head moved, and touch nothing else."""

import numpy as np
import pytest

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.policies.seams import (
    Inertialisation,
    MovingAverage,
    Unsmoothed,
    head_columns,
    head_groups,
    quintics,
    smooth,
    with_jumps,
)

FPS = 25
FRAMES = 20  # of a window
LAYOUT = Layout((("expr", 4), ("rot", 3), ("eyelid", 2), ("trans", 3)), FPS, "builtin")
HEAD = [4, 5, 6, 9, 10, 11]
SMOOTHERS = [MovingAverage(), MovingAverage(9), Inertialisation(), Inertialisation(30)]


def swaying(seed=0, frames=200, layout=LAYOUT):
    rng = np.random.default_rng(seed)
    seconds = np.arange(frames)[:, None] / FPS
    hertz, phase = rng.uniform(0.2, 0.8, layout.dim), rng.uniform(0, 2 * np.pi, layout.dim)
    return Motion(np.sin(2 * np.pi * hertz * seconds + phase), layout)


def broken(seed=0, size=0.7, layout=LAYOUT):
    rng = np.random.default_rng(seed)
    scale = np.ones(len(head_columns(layout)))
    return with_jumps(swaying(seed, layout=layout), FRAMES, rng, scale=scale, size=size)


def steps_over_joints(motion):
    steps = np.abs(np.diff(motion.values[:, HEAD], axis=0)).max(axis=1)
    return steps[FRAMES - 1 :: FRAMES]


def test_the_head_is_how_it_turns_and_where_it_is():
    assert head_columns(LAYOUT).tolist() == HEAD
    without = Layout((("expr", 4), ("rot", 3)), FPS, "builtin")
    assert head_columns(without).tolist() == [4, 5, 6]
    corpus = Layout((("trans", 3), ("neck", 3), ("rot", 3)), FPS, "builtin")
    assert head_groups(corpus) == ["rot", "neck", "trans"]
    assert head_columns(corpus).tolist() == [6, 7, 8, 3, 4, 5, 0, 1, 2]
    with pytest.raises(LayoutError, match="no head that turns.*rot.*neck"):
        head_columns(Layout((("expr", 4), ("trans", 3)), FPS, "builtin"))


def test_windows_that_jump_keep_their_motion_and_lose_their_place():
    whole, jumping = swaying(), broken()
    np.testing.assert_array_equal(jumping.values[:FRAMES], whole.values[:FRAMES])
    apart = jumping.values - whole.values
    assert not np.delete(apart, HEAD, axis=1).any(), "the face stays"
    within = np.diff(apart, axis=0)[:, HEAD].reshape(-1, len(HEAD))
    joint = np.arange(1, len(whole)) % FRAMES == 0
    np.testing.assert_allclose(within[~joint], 0, atol=1e-6)
    assert (np.abs(within[joint]).max(axis=1) > 0.1).all()
    assert 0.4 < apart[FRAMES:, HEAD].std() < 1.0, ".7 standard deviations"


@pytest.mark.parametrize("smoother", [Unsmoothed(), *SMOOTHERS])
def test_the_face_is_left_as_it_is_and_layouts_stay(smoother):
    motion = broken()
    smoothed = smooth(motion, FRAMES, smoother)
    assert smoothed.layout == motion.layout and len(smoothed) == len(motion)
    np.testing.assert_array_equal(
        np.delete(smoothed.values, HEAD, axis=1), np.delete(motion.values, HEAD, axis=1)
    )


@pytest.mark.parametrize("smoother", SMOOTHERS)
def test_joints_are_mended(smoother):
    motion = broken()
    smoothed = smooth(motion, FRAMES, smoother)
    assert steps_over_joints(smoothed).mean() < steps_over_joints(motion).mean() / 1.5
    assert steps_over_joints(smooth(motion, FRAMES, Unsmoothed())).mean() == pytest.approx(
        steps_over_joints(motion).mean()
    )


@pytest.mark.parametrize("smoother", SMOOTHERS)
def test_what_comes_in_later_windows_changes_nothing_before(smoother):
    motion = broken()
    other = motion.values.copy()
    other[3 * FRAMES :] = np.random.default_rng(5).normal(size=other[3 * FRAMES :].shape)
    ours = smooth(motion, FRAMES, smoother).values
    theirs = smooth(Motion(other, LAYOUT), FRAMES, smoother).values
    np.testing.assert_array_equal(ours[: 3 * FRAMES], theirs[: 3 * FRAMES])
    assert not np.array_equal(ours[3 * FRAMES :], theirs[3 * FRAMES :])


@pytest.mark.parametrize("smoother", SMOOTHERS)
def test_a_session_that_keeps_the_last_frames_shown_is_smoothed_as_a_file(smoother):
    """As windows come, with no more in hand than `memory` frames, or with more."""
    motion = broken()
    whole = smooth(motion, FRAMES, smoother).values
    for kept in (smoother.memory, 50):
        shown, done = None, []
        for start in range(0, len(motion), FRAMES):
            done.append(smoother(shown, motion.window(start, FRAMES)).values)
            shown = Motion(np.concatenate(done)[-kept:], LAYOUT)
        np.testing.assert_array_equal(np.concatenate(done), whole)


def test_a_last_window_may_be_short():
    motion = broken().window(0, 4 * FRAMES + 1)
    for smoother in SMOOTHERS:
        smoothed = smooth(motion, FRAMES, smoother)
        assert len(smoothed) == len(motion) and np.isfinite(smoothed.values).all()


def test_a_moving_average_is_the_mean_of_what_is_around():
    motion = broken()
    smoothed = smooth(motion, len(motion), MovingAverage(5)).values[:, HEAD]
    kernel = np.ones(5) / 5
    for column, values in enumerate(motion.values[:, HEAD].T):
        np.testing.assert_allclose(
            smoothed[2:-2, column], np.convolve(values, kernel, "valid"), atol=1e-6
        )
    with pytest.raises(ValueError, match="4 frames has no middle"):
        MovingAverage(4)


def test_quintics_begin_as_asked_and_end_at_rest():
    u = np.linspace(0, 1, 2001)
    for curve, value, speed in zip(quintics(u), (1, 0), (0, 1), strict=True):
        first, second = np.gradient(curve, u), np.gradient(np.gradient(curve, u), u)
        assert curve[0] == value and curve[-1] == pytest.approx(0, abs=1e-12)
        assert first[0] == pytest.approx(speed, abs=1e-2)
        assert first[-1] == pytest.approx(0, abs=1e-2)
        assert second[5] == pytest.approx(0, abs=0.2) and second[-6] == pytest.approx(0, abs=0.2)


def test_inertialisation_goes_on_in_place_and_speed_and_arrives():
    """Two straight ways: it leaves the old one along it, and is on the new one when it is faded."""
    layout = Layout((("rot", 3),), FPS, "builtin")
    old = np.outer(np.arange(-20, 0), [0.02, 0, 0])
    new = np.outer(np.arange(20), [-0.01, 0.03, 0]) + [0.5, 0.2, 0.1]
    shown = Motion(old, layout)
    after = Inertialisation(frames=12)(shown, Motion(new, layout)).values
    way = np.concatenate([old, after])
    speeds = np.diff(way, axis=0)
    np.testing.assert_allclose(after[11:], new[11:], atol=1e-6)
    np.testing.assert_allclose(speeds[19], [0.02, 0, 0], atol=0.01)
    assert np.abs(after[0] - new[0]).max() > 0.45, "it does not jump there"
    # No step is much longer than fading half a unit in 12 frames takes.
    assert np.abs(speeds).max() < 0.13
    assert np.abs(np.diff(way, n=2, axis=0)).max() < 0.03


def test_a_motion_without_seams_is_hardly_touched_by_inertialisation():
    motion = swaying()
    smoothed = smooth(motion, FRAMES, Inertialisation())
    assert np.abs(smoothed.values - motion.values).max() < 0.05  # of a sine of 1
    still = Motion(np.ones((60, LAYOUT.dim)), LAYOUT)
    np.testing.assert_allclose(smooth(still, FRAMES, Inertialisation()).values, 1, atol=1e-6)


def test_a_straight_way_stays_straight():
    ramp = Motion(np.outer(np.arange(100), np.linspace(0.001, 0.01, LAYOUT.dim)), LAYOUT)
    np.testing.assert_allclose(
        smooth(ramp, FRAMES, Inertialisation()).values, ramp.values, atol=1e-6
    )


def test_windows_shorter_than_the_fading_are_joined_too():
    motion = broken()
    smoothed = smooth(motion, 4, Inertialisation(frames=12))
    assert np.isfinite(smoothed.values).all()
    assert steps_over_joints(smoothed).mean() < steps_over_joints(motion).mean() / 1.5


def test_unlike_layouts_are_refused():
    other = Layout((("rot", 3),), FPS, "builtin")
    shown, window = Motion(np.zeros((5, 3)), other), swaying()
    for smoother in (Unsmoothed(), *SMOOTHERS):
        with pytest.raises(LayoutError, match="unlike layouts"):
            smoother(shown, window)
