"""Metrics by FLAME group: values by hand, parts, and what is left out."""

import numpy as np
import pytest

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.metrics.measures.flame_groups import score

LAYOUT = Layout((("expr", 2), ("jaw", 1)), 25, "builtin")
ALL = np.ones(60, bool)


@pytest.fixture
def clips():
    rng = np.random.default_rng(0)
    return [Motion(rng.normal(size=(60, 3)), LAYOUT) for _ in range(3)]


def scaled(motions, factor):
    return [
        Motion(m.values.mean(0) + factor * (m.values - m.values.mean(0)), LAYOUT) for m in motions
    ]


def test_a_perfect_prediction(clips):
    values = score(clips, clips, clips[::-1], [ALL] * 3)
    for group in LAYOUT.names:
        assert values[f"FD/{group}"] == pytest.approx(0, abs=1e-9) and values[f"MSE/{group}"] == 0
        assert (
            values[f"P-FD/{group}"] == pytest.approx(0, abs=1e-9) and values[f"rPCC/{group}"] == 0
        )
        assert values[f"variance_ratio/{group}"] == values[f"jerk_ratio/{group}"] == 1
        assert values[f"SID/{group}"] == values[f"SID_recorded/{group}"] > 0
    assert values["clips"] == 3


def test_half_the_amplitude_has_a_quarter_of_the_variance_and_half_the_jerk(clips):
    values = score(scaled(clips, 0.5), clips, [None] * 3, [ALL] * 3)
    for group in LAYOUT.names:
        assert values[f"variance_ratio/{group}"] == pytest.approx(0.25, rel=1e-5)
        assert values[f"jerk_ratio/{group}"] == pytest.approx(0.5, rel=1e-5)
    assert not any(name.startswith(("P-FD", "rPCC")) for name in values), "without a partner"


def test_only_the_frames_of_the_part_count(clips):
    part = np.zeros(60, bool)
    part[10:30] = part[40:55] = True
    spoilt = [Motion(np.where(part[:, None], m.values, 99.0), LAYOUT) for m in clips]
    values, wanted = (score(p, clips, [None] * 3, [part] * 3) for p in (spoilt, clips))
    assert values == wanted


def test_clips_without_the_part_are_left_out(clips):
    nobody, three = np.zeros(60, bool), np.arange(60) < 3
    assert score(clips, clips, [None] * 3, [nobody, nobody, three]) == {"clips": 0}
    one = score(scaled(clips, 2.0), clips, [None] * 3, [nobody, ALL, three])
    assert one["clips"] == 1 and one["variance_ratio/jaw"] == pytest.approx(4, rel=1e-5)


def test_a_group_that_stands_still_has_no_ratio(clips):
    still = [Motion(m.values * [1, 1, 0], LAYOUT) for m in clips]
    values = score(clips, still, [None] * 3, [ALL] * 3)
    assert (
        "variance_ratio/jaw" not in values
        and "variance_ratio/expr" in values
        and "MSE/jaw" in values
    )


def test_unlike_layouts_are_refused(clips):
    other = [Motion(m.values, Layout((("jaw", 1), ("expr", 2)), 25, "builtin")) for m in clips]
    with pytest.raises(LayoutError, match="metrics by FLAME group"):
        score(other, clips, [None] * 3, [ALL] * 3)
