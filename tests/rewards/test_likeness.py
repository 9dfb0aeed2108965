"""How alike people a crowd moves: distances by hand and by another library, people against people,
crowds that collapse.
"""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.metrics.measures.likeness import (
    SPLITS,
    amplitude,
    half_of_people,
    likeness,
    relative_distance,
    velocities,
    wasserstein,
)

LAYOUT = Layout((("expr", 4), ("jaw", 1)), 25, "builtin")
FRAMES = 100
WINDOWS = 128
ALL = [np.ones(FRAMES, bool)] * WINDOWS
CONVERSATIONS = [f"c{i // 2}" for i in range(WINDOWS)]


def crowd(seed: int, spread: float = 0.3) -> list[Motion]:
    """People of whom some move a lot and some a little: log amplitudes with this deviation."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(scale=spread, size=WINDOWS))
    noise = rng.normal(size=(WINDOWS, FRAMES, LAYOUT.dim))
    # A second of smooth motion is some motion: neighbouring frames are alike.
    smooth = np.cumsum(noise, axis=1) * 0.1 + noise * 0.05
    return [Motion(size * each, LAYOUT) for size, each in zip(sizes, smooth, strict=True)]


def scaled(motions, factors):
    return [
        Motion(m.values.mean(0) + f * (m.values - m.values.mean(0)), LAYOUT)
        for m, f in zip(motions, factors, strict=True)
    ]


def numbers(values):
    return [value for group in values.values() for value in group.values()]


def test_the_distance_is_that_of_scipy_for_every_split_of_any_size():
    rng = np.random.default_rng(0)
    x = rng.normal(size=12).round(1)  # some are equal
    y = rng.normal(loc=0.3, size=9).round(1)
    of_x = rng.random((20, 12)) < 0.5
    of_y = rng.random((20, 9)) < 0.6
    expected = [
        wasserstein_distance(x[some], y[others]) for some, others in zip(of_x, of_y, strict=True)
    ]
    assert wasserstein(x, y, of_x, of_y) == pytest.approx(np.array(expected), abs=1e-12)


def test_the_distance_of_a_shift_is_the_shift():
    x = np.array([3.0, 1.0, 2.0])
    both = np.ones((1, 3), bool)
    assert wasserstein(x, x + 0.25, both, both) == pytest.approx([0.25])
    assert wasserstein(x, x, both, both) == pytest.approx([0])


def test_halves_never_part_a_conversation_and_differ_from_each_other():
    halves = half_of_people(CONVERSATIONS, seed=0)
    assert halves.shape == (SPLITS, WINDOWS) and (halves.sum(axis=1) == WINDOWS // 2).all()
    assert (halves[:, ::2] == halves[:, 1::2]).all()
    assert len(np.unique(halves, axis=0)) > SPLITS // 2
    assert np.array_equal(halves, half_of_people(CONVERSATIONS, seed=0))
    assert (half_of_people(["a", "b", "c"], seed=0).sum(axis=1) == 1).all()


def test_one_conversation_cannot_be_parted():
    with pytest.raises(ValueError, match="2 conversations or more, got 1"):
        half_of_people(["a", "a"], seed=0)


@pytest.mark.parametrize("windows", [16, 96])
def test_other_people_are_like_people_however_few_the_windows(windows):
    """1 in expectation: over many draws, within four standard errors."""
    distances = []
    for seed in range(200):
        rng = np.random.default_rng([windows, seed])
        people = rng.normal(size=windows)
        others = rng.normal(size=windows)
        halves = half_of_people([str(i) for i in range(windows)], seed)
        distances.append(relative_distance(others, people, halves))
    error = np.std(distances) / np.sqrt(len(distances))
    assert np.mean(distances) == pytest.approx(1, abs=4 * error) and error < 0.03


def test_people_themselves_are_exactly_as_people():
    people = crowd(0)
    values = likeness(people, people, ALL, CONVERSATIONS)
    assert set(values) == {"expr", "jaw"} and set(values["jaw"]) == {"position", "velocity"}
    assert numbers(values) == pytest.approx([1] * 4)


def test_less_variance_in_every_window_is_less_like_people():
    people = crowd(0)
    factor = np.sqrt(0.75)
    values = likeness(scaled(people, [factor] * WINDOWS), people, ALL, CONVERSATIONS)
    assert min(numbers(values)) > 1.3


def test_everybody_at_the_median_is_much_less_like_people():
    """What a paired deviation takes for better than people."""
    people = crowd(0)
    alike = []
    for motion in people:
        values = motion.values.copy()
        for name in LAYOUT.names:
            sizes = [amplitude(other.group(name)) for other in people]
            values[:, LAYOUT.columns(name)] *= np.median(sizes) / amplitude(motion.group(name))
        alike.append(Motion(values, LAYOUT))
    values = likeness(alike, people, ALL, CONVERSATIONS)
    assert values["expr"]["position"] > 3 and values["jaw"]["position"] > 3
    others = crowd(1)
    deviations = {}
    for name, motions in (("alike", alike), ("others", others)):
        deviations[name] = np.mean(
            [
                abs(amplitude(a.values) - amplitude(b.values))
                for a, b in zip(motions, people, strict=True)
            ]
        )
    assert deviations["alike"] < deviations["others"]


def test_too_many_extremes_are_not_like_people_either():
    people = crowd(0)
    rng = np.random.default_rng(2)
    wild = scaled(people, np.exp(rng.normal(scale=1.5, size=WINDOWS)))
    assert min(numbers(likeness(wild, people, ALL, CONVERSATIONS))) > 2


def test_who_is_compared_with_whom_does_not_matter():
    """A method may give everybody the motion of somebody else within their conversation."""
    people = crowd(0)
    swapped = [people[i ^ 1] for i in range(WINDOWS)]
    values = likeness(swapped, people, ALL, CONVERSATIONS)
    assert numbers(values) == pytest.approx([1] * 4)


def test_only_frames_that_count_do():
    people = crowd(0)
    part = np.zeros(FRAMES, bool)
    part[10:40] = part[60:90] = True
    spoilt = [Motion(np.where(part[:, None], m.values, 99.0), LAYOUT) for m in people]
    values = likeness(spoilt, people, [part] * WINDOWS, CONVERSATIONS)
    assert numbers(values) == pytest.approx([1] * 4)


def test_velocities_do_not_reach_across_a_gap():
    values = np.array([[0.0], [1.0], [100.0], [3.0], [5.0]])
    counted = np.array([True, True, False, True, True])
    assert velocities(values, counted).tolist() == [[1.0], [2.0]]


def test_the_amplitude_is_the_root_mean_square_over_channels():
    values = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    assert amplitude(values) == pytest.approx(np.sqrt((4 + 0) / 2))


def test_standing_still_is_far_away_and_not_infinitely():
    people = crowd(0)
    values = likeness(scaled(people, [0.0] * WINDOWS), people, ALL, CONVERSATIONS)
    assert all(np.isfinite(value) and value > 10 for value in numbers(values))


def test_a_group_in_which_nobody_moves_is_left_out():
    still = [Motion(m.values * [1, 1, 1, 1, 0], LAYOUT) for m in crowd(0)]
    assert set(likeness(crowd(1), still, ALL, CONVERSATIONS)) == {"expr"}


def test_unlike_layouts_are_refused():
    other = [Motion(m.values, Layout((("jaw", 1), ("expr", 4)), 25, "builtin")) for m in crowd(0)]
    with pytest.raises(LayoutError, match="likeness"):
        likeness(other, crowd(0), ALL, CONVERSATIONS)
