"""Figures of a motion, on motions whose figures are known."""

import numpy as np
import pytest

from rapport.pipeline.data.statistics import (
    count_blinks,
    count_nods,
    motion_statistics,
    power_below,
)
from rapport.policies.motion import Layout, Motion

FPS = 25.0
CLOCK = np.arange(1000) / FPS  # 40 s


def test_head_amplitude_and_speed_of_a_sine():
    layout = Layout(groups=(("neck", 3), ("rot", 3)), fps=FPS, topology="builtin")
    values = np.zeros((1000, 6))
    values[:, 1] = (
        0.3 * np.radians(10) * np.sin(2 * np.pi * 0.5 * CLOCK)
    )  # yaw, shared by neck and rot
    values[:, 4] = 0.7 * np.radians(10) * np.sin(2 * np.pi * 0.5 * CLOCK)
    figures = motion_statistics(Motion(values, layout))
    assert figures["head_yaw_std_deg"] == pytest.approx(10 / np.sqrt(2), rel=1e-3)
    assert figures["head_speed_deg_s"] == pytest.approx(
        4 * 10 * 0.5, rel=0.01
    )  # 4 amplitudes a period
    assert figures["head_pitch_std_deg"] == 0 and figures["nods_per_min"] == 0
    assert "expr_std" not in figures and "blinks_per_min" not in figures  # absent, not zero


def test_power_below_splits_two_sines():
    low, high = np.sin(2 * np.pi * 1.0 * CLOCK), np.sin(2 * np.pi * 5.0 * CLOCK)
    assert power_below((low + 0.5 * high)[:, None], 2.5, FPS) == pytest.approx(1 / 1.25)
    assert np.isnan(power_below(np.ones((100, 2)), 2.5, FPS))


def test_blinks_are_counted_once_each():
    lids = np.zeros((100, 2))
    lids[10:14] = lids[50:52] = 1.0
    lids[70:75] = 0.3  # half open is no blink
    assert count_blinks(lids) == 2


def test_nods_are_counted_by_group_of_swings():
    pitch = np.zeros(1000)
    for start in (200, 500, 800):
        pitch[start : start + 25] += 0.08 * np.sin(
            2 * np.pi * 2 * np.arange(25) / FPS
        )  # two swings in one second
    assert count_nods(pitch, FPS) == 3
    assert count_nods(0.2 * np.sin(2 * np.pi * 0.1 * CLOCK), FPS) == 0  # slow sway is no nod
    assert count_nods(np.zeros(5), FPS) == 0
