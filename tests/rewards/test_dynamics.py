"""Dynamics rewards against values worked out by hand, and what each must and must not see."""

import math

import numpy as np
import pytest

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.dynamics import (
    COMPONENTS,
    RewardConfig,
    group_rewards,
    listening_frames,
    motion_limits,
    penalties,
    variance_ratio,
)

LAYOUT = Layout((("expr", 2), ("jaw", 1)), 25, "builtin")
LIMITS = Motion(np.array([[-10, -10, -1], [10, 10, 1]]), LAYOUT)


def motion(expr0, expr1, jaw):
    return Motion(np.stack([expr0, expr1, jaw], axis=1), LAYOUT)


def everywhere(clip):
    return np.ones(len(clip), bool)


def random_clip(seed, frames=40, scale=1.0):
    return Motion(
        np.random.default_rng(seed).normal(size=(frames, 3)) * scale * [1, 1, 0.1], LAYOUT
    )


def test_by_hand():
    recorded = motion([0, 2, 0, 2], [1, 1, 1, 1], [0, 0, 0, 0])
    generated = motion([1, 2, 1, 2], [1, 1, 1, 1], [0, 0, 0, 0.4])
    p = penalties(generated, recorded, everywhere(recorded), LIMITS)
    # expr 0: deviations +-1 and +-0.5 over 4 frames, ddof 1; half of it, as expr 1 stands still in
    # both
    assert p["positional_variance"]["expr"] == pytest.approx(
        (math.sqrt(4 / 3) - math.sqrt(1 / 3)) / 2
    )
    # velocities 2, -2, 2 and 1, -1, 1: variances 16/3 and 4/3
    assert p["velocity_variance"]["expr"] == pytest.approx(
        (math.sqrt(16 / 3) - math.sqrt(4 / 3)) / 2
    )
    assert p["mean_drift"]["expr"] == pytest.approx(0.5 / 2)
    assert p["mse"]["expr"] == pytest.approx(0.5 / 2)
    # one third difference each: x3 - 3 x2 + 3 x1 - x0 = 8 and 4
    assert p["jerk"]["expr"] == pytest.approx((8 - 4) / 2)
    assert p["mean_drift"]["jaw"] == pytest.approx(0.1)
    assert p["mse"]["jaw"] == pytest.approx(0.04)
    assert p["jerk"]["jaw"] == pytest.approx(0.4)
    assert p["range"] == {"expr": 0, "jaw": 0}
    assert tuple(p) == COMPONENTS


def test_range_is_the_distance_outside():
    clip = motion([0, 12, 0, 0], [0, 0, -14, 0], [0, 0, 0, 1.5])
    p = penalties(clip, clip, everywhere(clip), LIMITS)["range"]
    assert p == pytest.approx({"expr": (2 / 4 + 4 / 4) / 2, "jaw": 0.5 / 4})
    own = motion_limits([clip, motion([-20] * 4, [0] * 4, [0] * 4)])
    assert penalties(clip, clip, everywhere(clip), own)["range"] == {"expr": 0, "jaw": 0}
    assert own.values.tolist() == [[-20, -14, 0], [12, 0, 1.5]]


def test_the_recorded_motion_is_the_best():
    clip = random_clip(0)
    perfect = penalties(clip, clip, everywhere(clip), motion_limits([clip]))
    assert all(value == 0 for groups in perfect.values() for value in groups.values())
    assert group_rewards(perfect) == {"expr": 0, "jaw": 0}
    for seed in (1, 2, 3):
        rewards = group_rewards(
            penalties(random_clip(seed), clip, everywhere(clip), motion_limits([clip]))
        )
        assert all(value < 0 for value in rewards.values())


def test_a_still_face_loses_to_a_lively_one_with_another_timing():
    """Regression to the mean has the better MSE and the worse reward."""
    recorded, lively = random_clip(0, 200), random_clip(1, 200)
    still = Motion(np.repeat(recorded.values.mean(0, keepdims=True), 200, axis=0), LAYOUT)
    p_still, p_lively = (
        penalties(x, recorded, everywhere(recorded), LIMITS) for x in (still, lively)
    )
    assert p_still["mse"]["expr"] < p_lively["mse"]["expr"]
    assert group_rewards(p_still)["expr"] < group_rewards(p_lively)["expr"]
    assert variance_ratio(still, recorded, everywhere(recorded))["expr"] < 1e-6
    assert variance_ratio(lively, recorded, everywhere(recorded))["expr"] == pytest.approx(
        1, abs=0.3
    )


def test_trembling_with_the_right_variance_is_caught_by_jerk():
    time = np.arange(200)
    smooth = motion(np.sin(time / 8), np.sin(time / 8), 0.1 * np.sin(time / 8))
    tremble = motion(
        *(a * np.std(np.sin(time / 8)) * np.where(time % 2, 1, -1) for a in (1, 1, 0.1))
    )
    p = penalties(tremble, smooth, everywhere(smooth), LIMITS)
    assert p["positional_variance"]["expr"] < 0.01
    assert (
        p["jerk"]["expr"]
        > 100 * penalties(smooth, smooth, everywhere(smooth), LIMITS)["jerk"]["expr"] + 1
    )


def test_groups_do_not_see_each_other():
    recorded, generated = random_clip(0), random_clip(1)
    other = Motion(
        np.concatenate([generated.values[:, :2], generated.values[:, 2:] * 3], axis=1), LAYOUT
    )
    a, b = (penalties(x, recorded, everywhere(x), LIMITS) for x in (generated, other))
    for component in COMPONENTS:
        assert a[component]["expr"] == b[component]["expr"]
    assert a["mse"]["jaw"] != b["mse"]["jaw"]


def test_frames_that_do_not_listen_do_not_count():
    recorded, generated = random_clip(0), random_clip(1)
    mask = np.zeros(40, bool)
    mask[5:15] = mask[20:30] = True
    noise = np.random.default_rng(9).normal(size=(40, 3)) * 5
    spoken = Motion(np.where(mask[:, None], generated.values, noise), LAYOUT)
    assert penalties(generated, recorded, mask, LIMITS) == penalties(spoken, recorded, mask, LIMITS)
    assert variance_ratio(generated, recorded, mask) == variance_ratio(spoken, recorded, mask)


def test_no_velocity_reaches_across_a_gap():
    values = np.r_[np.zeros(10), np.full(10, 5.0)]
    mask = np.ones(20, bool)
    mask[8:12] = False
    still = motion(values, values, values / 5)
    moving = motion(values * 0, values * 0, values * 0)
    p = penalties(still, moving, mask, LIMITS)
    assert p["velocity_variance"]["expr"] == 0 and p["jerk"]["expr"] == 0
    closed = penalties(still.window(0, 16), moving.window(0, 16), np.ones(16, bool), LIMITS)
    assert closed["velocity_variance"]["expr"] > 1  # the jump, were it counted


def test_the_length_of_a_clip_does_not_matter():
    recorded, generated = random_clip(0), random_clip(1)
    mask = np.tile(np.r_[np.ones(39, bool), False], 2)
    twice = [Motion(np.tile(clip.values, (2, 1)), LAYOUT) for clip in (generated, recorded)]
    once = penalties(generated, recorded, mask[:40], LIMITS)
    again = penalties(*twice, mask, LIMITS)
    for component in ("mean_drift", "mse", "range", "jerk"):
        assert again[component] == pytest.approx(once[component], rel=1e-6)
    assert again["positional_variance"]["expr"] == pytest.approx(
        once["positional_variance"]["expr"], rel=0.05
    )


def test_scale():
    recorded, generated = random_clip(0), random_clip(1)
    wide = Motion(LIMITS.values * 3, LAYOUT)
    once = penalties(generated, recorded, everywhere(recorded), LIMITS)
    thrice = penalties(
        *(Motion(c.values * 3, LAYOUT) for c in (generated, recorded)), everywhere(recorded), wide
    )
    for component in COMPONENTS:
        factor = 9 if component == "mse" else 3
        assert thrice[component]["expr"] == pytest.approx(
            factor * once[component]["expr"], rel=1e-4
        )


@pytest.mark.parametrize(
    ("frames", "missing"),
    [
        (0, set(COMPONENTS)),
        (1, {"positional_variance", "velocity_variance", "jerk"}),
        (2, {"velocity_variance", "jerk"}),
        (3, {"jerk"}),
        (4, set()),
    ],
)
def test_too_few_frames_are_missing_not_zero(frames, missing):
    clip, mask = random_clip(0), np.zeros(40, bool)
    mask[:frames] = True
    p = penalties(random_clip(1), clip, mask, LIMITS)
    assert {name for name in COMPONENTS if math.isnan(p[name]["expr"])} == missing
    assert math.isnan(group_rewards(p)["jaw"]) == bool(missing)
    # a component without weight may be missing
    assert math.isnan(group_rewards(p, RewardConfig(jerk=0))["jaw"]) == bool(missing - {"jerk"})


def test_group_rewards_by_hand():
    p = {name: {"expr": float(i + 1), "jaw": 0.0} for i, name in enumerate(COMPONENTS)}
    weights = RewardConfig(**{name: float(i + 1) for i, name in enumerate(COMPONENTS)})
    assert group_rewards(p, weights) == {
        "expr": -(1 + 4 + 9 + 16 + 25 + 36),
        "jaw": 0,
    }


def test_listening_means_that_the_partner_speaks_and_the_actor_does_not():
    actor, partner = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    assert listening_frames(actor, partner).tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match="bool masks"):
        listening_frames(actor.astype(int), partner)


def test_what_does_not_fit_is_refused():
    clip, mask = random_clip(0), np.ones(40, bool)
    other = Motion(clip.values, Layout((("expr", 2), ("jaw", 1)), 30, "builtin"))
    with pytest.raises(LayoutError, match="unlike"):
        penalties(other, clip, mask, LIMITS)
    with pytest.raises(LayoutError, match="limits"):
        penalties(clip, clip, mask, other.window(0, 2))
    with pytest.raises(ValueError, match="40 frames, the recorded one 30"):
        penalties(clip, clip.window(0, 30), mask, LIMITS)
    with pytest.raises(ValueError, match=r"bool \(40,\)"):
        penalties(clip, clip, mask.astype(float), LIMITS)
    with pytest.raises(ValueError, match="lowest and the highest"):
        penalties(clip, clip, mask, Motion(LIMITS.values[::-1], LAYOUT))
    with pytest.raises(ValueError, match="mse"):
        RewardConfig(mse=-1)
    with pytest.raises(ValueError, match="not all 0"):
        RewardConfig(**dict.fromkeys(COMPONENTS, 0.0))
    with pytest.raises(ValueError, match="finite"):
        RewardConfig(jerk=math.inf)
