"""Figures of a motion, on motions whose figures are known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from rapport.pipeline.data.statistics import (
    amplitude_shares,
    count_blinks,
    count_nods,
    event_statistics,
    motion_statistics,
    power_below,
)
from rapport.pipeline.recipes.prepare import stretches
from rapport.policies.clip import Clip
from rapport.policies.motion import Layout, Motion
from rapport.rewards.ratings.visible import Expression, VisibleMotion

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


def seen(head: np.ndarray, mouth: np.ndarray | None = None) -> VisibleMotion:
    """A head turning as in `head` (time, 3), and corners of a mouth that rise as in `mouth`."""
    if mouth is None:
        return VisibleMotion(25.0, head, None)
    still = np.zeros((len(head), 2))
    pair = np.repeat(mouth[:, None], 2, axis=1)
    face = Expression(pair, still, still[:, 0], still, still, 1 + still)
    return VisibleMotion(25.0, head, face)


def test_noise_has_no_events_and_pulses_have():
    rng = np.random.default_rng(0)
    frames = 2000
    noise = gaussian_filter1d(rng.normal(size=(frames, 3)), 8, axis=0)
    clock = np.arange(frames) / 25
    pulses = np.exp(-0.5 * (((clock % 8) - 4) / 0.3) ** 2)  # one every 8 s
    figures = event_statistics(seen(noise, pulses))
    assert figures["head_kurtosis"] == pytest.approx(3, abs=0.4)  # Gaussian
    assert figures["head_still"] < 0.03 and figures["head_fastest_tenth"] < 0.35
    assert figures["face_kurtosis"] > 7 and figures["face_still"] > 0.7
    # Of the squared slope of a bell, t^2 exp(-t^2 / s^2), in a tenth of the frames.
    assert figures["face_fastest_tenth"] == pytest.approx(0.844, abs=0.01)


def test_events_of_a_constant_speed_by_hand():
    """To and fro at one speed: kurtosis 1, never still, a tenth of the frames has a tenth."""
    path = np.abs((np.arange(1000) % 100) - 50.0)[:, None]
    figures = event_statistics(seen(np.repeat(path, 3, axis=1)))
    assert figures["head_kurtosis"] == pytest.approx(1, abs=0.1)
    assert figures["head_fastest_tenth"] == pytest.approx(0.1, abs=0.01)


def test_trackers_noise_does_not_pass_for_movement_and_short_or_still_ones_have_no_figures():
    rng = np.random.default_rng(0)
    clock = np.arange(1000) / 25
    pulses = np.repeat(np.exp(-0.5 * (((clock % 8) - 4) / 0.3) ** 2)[:, None], 3, axis=1)
    clean = event_statistics(seen(pulses))
    noisy = event_statistics(seen(pulses + 0.002 * rng.normal(size=pulses.shape)))
    assert noisy["head_fastest_tenth"] == pytest.approx(clean["head_fastest_tenth"], abs=0.03)
    assert event_statistics(seen(pulses[:199])) == {}
    assert event_statistics(seen(np.zeros((400, 3)))) == {}
    assert event_statistics(seen(pulses, np.zeros(1000))).keys() == clean.keys()


def test_recordings_are_put_together_where_one_clip_follows_the_other():
    motion = Motion(np.arange(100, dtype=np.float32)[:, None], Layout((("expr", 1),), 25, "arkit"))

    def clip(start: float) -> Clip:
        window = motion.window(round(start * 25), 25)
        return Clip(f"c{start}", "d", "train", window, start=start)

    clips = [clip(1.0), clip(0.0), clip(0.4), clip(3.0)]  # one overlaps, one comes later
    found = stretches(clips, [one.listener for one in clips])
    assert [part.values[:, 0].tolist() for part in found] == [
        list(range(50)),
        list(range(75, 100)),
    ]


def test_shares_between_people_of_amplitudes_that_are_known():
    """Log amplitudes of people vary by 1, of a person's windows by .25: .8 is between people."""
    rng = np.random.default_rng(0)
    layout = Layout((("expr", 2), ("rot", 3)), FPS, "builtin")
    wave = np.sin(2 * np.pi * 0.5 * np.arange(200) / FPS)
    people = []
    for _ in range(300):
        person = rng.normal()
        sizes = np.exp(person + 0.5 * rng.normal(size=6))
        path = np.concatenate([size * wave for size in sizes])
        people.append(Motion(np.repeat(path[:, None], 5, axis=1), layout))
    figures = amplitude_shares(people)
    assert figures["expr_between_people"] == pytest.approx(0.8, abs=0.04)
    assert figures["head_between_people"] == pytest.approx(0.8, abs=0.04)
    assert figures["expr_log_amplitude_std"] == pytest.approx(1.25**0.5, abs=0.1)
    assert amplitude_shares(people[:1]) == {} == amplitude_shares([])
