"""Smoothness in motion's own units: hand-made heads of which it is known how they move."""

import numpy as np
import pytest

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.metrics.measures.seams import jump, seams

FPS = 25
FRAMES = 10  # of a window
LAYOUT = Layout((("rot", 3), ("trans", 3)), FPS, "builtin")
NAMES = ("jump", "jerk_ratio", "path_ratio", "variance_within", "variance_ratio")


def head(seed=0, frames=200):
    """A head that sways by slow sines, (time, 6)."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(frames)[:, None, None] / FPS
    hertz, phase = rng.uniform(0.2, 1.2, (1, 4, 6)), rng.uniform(0, 2 * np.pi, (1, 4, 6))
    return 0.05 * np.sin(2 * np.pi * hertz * seconds + phase).sum(axis=1)


def of(values):
    return Motion(values, LAYOUT)


def scores(values, reference=None, groups=("rot", "trans")):
    reference = head() if reference is None else reference
    return seams([of(values)], [of(reference)], FRAMES, groups)


def test_a_head_beside_itself_has_lost_nothing_and_no_seams():
    values = scores(head())
    assert values.keys() == {f"{name}/{group}" for name in NAMES for group in ("rot", "trans")}
    for name, value in values.items():
        assert value == pytest.approx(1, abs=0.25 if name.startswith("jump") else 1e-6), name


def test_a_jump_counts_by_its_length_over_the_step_elsewhere():
    ramp = np.arange(40)[:, None] * np.array([[3.0, 4.0]])  # steps of 5
    ramp[20:] += [6.0, 8.0]  # one of three joints is 10 longer
    assert jump([ramp], FRAMES) == pytest.approx((5 + 15 + 5) / 3 / 5)


def test_a_ratio_is_over_the_reference_by_hand():
    slow = np.outer(np.arange(40), np.eye(6)[0])
    fast = 3 * slow
    values = seams([of(fast)], [of(slow)], FRAMES, ["rot"])
    assert values["path_ratio/rot"] == pytest.approx(3)
    assert values["variance_within/rot"] == pytest.approx(9)
    assert values["variance_ratio/rot"] == pytest.approx(9)
    assert np.isnan(values["jerk_ratio/rot"]), "an even ramp has no jerk to compare with"


def test_a_head_that_is_put_elsewhere_in_each_window_has_seams():
    offsets = 0.2 * np.random.default_rng(1).normal(size=(20, 6)).repeat(FRAMES, axis=0)
    values = scores(head() + offsets)
    for group in ("rot", "trans"):
        assert values[f"jump/{group}"] > 4
        assert values[f"jerk_ratio/{group}"] > 3
        assert values[f"variance_within/{group}"] == pytest.approx(1, abs=1e-5)
        assert values[f"variance_ratio/{group}"] > 1.5


def test_a_head_that_stands_still_is_not_smooth_but_still():
    still = scores(np.zeros((200, 6)))
    for group in ("rot", "trans"):
        assert np.isnan(still[f"jump/{group}"]), "nothing moves, so nothing is seamless"
        for name in ("path_ratio", "variance_within", "variance_ratio"):
            assert still[f"{name}/{group}"] == 0
    # One that only goes from place to place, and is still in between.
    steps = head()[::FRAMES].repeat(FRAMES, axis=0)
    held = scores(steps)
    assert held["jump/rot"] == np.inf
    assert held["variance_within/rot"] == pytest.approx(0, abs=1e-12)
    assert held["variance_ratio/rot"] > 0.5, "so variance over time alone is not enough"


def test_a_head_that_moves_half_as_much_is_told():
    values = scores(head() / 2)
    assert values["jump/rot"] == pytest.approx(scores(head())["jump/rot"])
    assert values["jerk_ratio/rot"] == pytest.approx(0.5)
    assert values["variance_within/rot"] == values["variance_ratio/rot"] == pytest.approx(0.25)


def test_a_zigzag_does_not_pass_for_smooth():
    offsets = 0.1 * np.random.default_rng(1).normal(size=(20, 6)).repeat(FRAMES, axis=0)
    broken = scores(head() + offsets)
    zigzag = 0.05 * (-1.0) ** np.arange(200)[:, None]
    trembling = scores(head() + offsets + zigzag)
    assert trembling["jump/rot"] < broken["jump/rot"] / 2, "its jumps drown in its trembling"
    assert trembling["jerk_ratio/rot"] > 3 * broken["jerk_ratio/rot"] > 3
    assert trembling["path_ratio/rot"] > 2


def test_clips_that_hardly_move_have_no_say():
    still, lively = of(head() / 1000), of(head(1))
    both = seams([still, of(head(1) / 2)], [still, lively], FRAMES, ["rot"])
    assert both["variance_ratio/rot"] == pytest.approx(0.25, rel=1e-3)


def test_a_motion_of_one_window_has_no_joint():
    values = seams([of(head(frames=10))], [of(head(frames=10))], FRAMES, ["rot"])
    assert np.isnan(values["jump/rot"]) and values["jerk_ratio/rot"] == pytest.approx(1)


def test_what_cannot_be_compared_is_refused():
    other = Layout((("rot", 3), ("trans", 3)), 30, "builtin")
    with pytest.raises(LayoutError, match="smoothness: unlike layouts"):
        seams([of(head())], [Motion(head(), other)], FRAMES, ["rot"])
    with pytest.raises(LayoutError, match="no group 'neck'"):
        seams([of(head())], [of(head())], FRAMES, ["neck"])
    with pytest.raises(ValueError, match="200 frames beside a reference of 40"):
        seams([of(head())], [of(head(frames=40))], FRAMES, ["rot"])
