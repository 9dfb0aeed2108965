"""Power by band: sines that lie in one band, parts that add up, crowds without differences."""

import numpy as np
import pytest

from rapport.policies.motion import Layout, Motion
from rapport.rewards.metrics.measures.bands import bands, split

FPS = 25
LAYOUT = Layout((("expr", 2), ("jaw", 1)), FPS, "builtin")
FRAMES = 8 * FPS
SECONDS = np.arange(FRAMES) / FPS
ALL = np.ones(FRAMES, bool)
NAMES = ("between", "slow", "middle", "fast", "spread")


def sine(period: float) -> np.ndarray:
    return np.sin(2 * np.pi * SECONDS / period)[:, None]


def crowd(seed: int = 0, windows: int = 12) -> list[Motion]:
    rng = np.random.default_rng(seed)
    motions = []
    for _ in range(windows):
        mean = rng.normal(size=LAYOUT.dim)
        size = np.exp(0.5 * rng.normal(size=LAYOUT.dim))
        motions.append(Motion(mean + size * rng.normal(size=(FRAMES, LAYOUT.dim)), LAYOUT))
    return motions


@pytest.mark.parametrize(
    ("period", "band"), [(6, "slow"), (4, "slow"), (1, "middle"), (0.2, "fast")]
)
def test_a_sine_lies_in_its_band(period, band):
    powers = {name: np.square(x).mean() for name, x in split(sine(period), ALL, FPS).items()}
    assert powers[band] / sum(powers.values()) > 0.9
    assert powers[band] == pytest.approx(0.5, rel=0.4)


@pytest.mark.parametrize(
    ("period", "slower", "faster"), [(2, "slow", "middle"), (0.5, "middle", "fast")]
)
def test_where_one_band_ends_and_the_next_begins_half_of_the_power_is_through(
    period, slower, faster
):
    parts = split(sine(period), ALL, FPS)
    through = parts["slow"] if slower == "slow" else parts["slow"] + parts["middle"]
    inner = slice(FPS, -FPS)  # at the edges averages lean to one side
    share = np.square(through[inner]).mean() / np.square(sine(period)[inner]).mean()
    assert share == pytest.approx(0.5, abs=0.1)


def test_bands_add_up_to_the_motion_without_its_mean():
    x = np.random.default_rng(0).normal(size=(FRAMES, 3))
    counted = np.random.default_rng(1).random(FRAMES) < 0.7
    total = sum(split(x, counted, FPS).values())
    np.testing.assert_allclose(total, x[counted] - x[counted].mean(axis=0), atol=1e-12)


def test_what_does_not_count_is_not_averaged():
    counted = np.ones(FRAMES, bool)
    counted[50:80] = False
    spoilt = np.where(counted[:, None], sine(4), 99.0)
    for name, x in split(spoilt, counted, FPS).items():
        np.testing.assert_array_equal(x, split(sine(4), counted, FPS)[name])


def test_people_have_as_much_as_people():
    values = bands(crowd(), crowd(), [ALL] * 12)
    assert set(values) == {"expr", "jaw"}
    for group in values.values():
        assert group == pytest.approx(dict.fromkeys(NAMES, 1))


def test_half_the_amplitude_has_a_quarter_of_the_power_and_all_of_the_differences():
    halved = [
        Motion(m.values.mean(0) + 0.5 * (m.values - m.values.mean(0)), LAYOUT) for m in crowd()
    ]
    for group in bands(halved, crowd(), [ALL] * 12).values():
        assert [group[name] for name in ("slow", "middle", "fast")] == pytest.approx([0.25] * 3)
        assert group["between"] == pytest.approx(1, rel=1e-4)
        assert group["spread"] == pytest.approx(1, rel=1e-4)


def test_a_crowd_around_one_mean_has_nothing_between():
    centred = [Motion(m.values - m.values.mean(0), LAYOUT) for m in crowd()]
    for group in bands(centred, crowd(), [ALL] * 12).values():
        assert group["between"] == pytest.approx(0, abs=1e-8)
        assert group["fast"] == pytest.approx(1, rel=1e-4)


def test_a_crowd_that_moves_alike_has_no_spread():
    alike = [
        Motion((m.values - m.values.mean(0)) / m.values.std(0, ddof=1), LAYOUT) for m in crowd()
    ]
    for group in bands(alike, crowd(), [ALL] * 12).values():
        assert group["spread"] == pytest.approx(0, abs=1e-4)


def test_what_is_taken_from_slow_and_given_to_fast_shows():
    rng = np.random.default_rng(0)
    phases = rng.uniform(0, 9, size=8)
    people = [Motion(np.tile(np.sin(SECONDS + p)[:, None], LAYOUT.dim), LAYOUT) for p in phases]
    fast = [Motion(np.tile(np.sin(30 * SECONDS + p)[:, None], LAYOUT.dim), LAYOUT) for p in phases]
    jaw = bands(fast, people, [ALL] * 8)["jaw"]
    assert jaw["slow"] < 0.05 and jaw["fast"] > 20


def test_a_group_in_which_nobody_moves_is_left_out():
    still = [Motion(m.values * [1, 1, 0], LAYOUT) for m in crowd()]
    assert set(bands(crowd(1), still, [ALL] * 12)) == {"expr"}


def test_one_window_has_nothing_between():
    with pytest.raises(ValueError, match="two or more of them, got 1"):
        bands(crowd(windows=1), crowd(windows=1), [ALL])
