"""Bootstrap intervals, and the baselines Random, Nearest Neighbour, Mirror."""

import numpy as np
import pytest
from scipy.stats import norm

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.metrics.baselines import (
    NearestNeighbour,
    SpeakerInput,
    mirror,
    random_listener,
    words,
)
from rapport.rewards.metrics.statistics import mean_interval, paired_interval, prompt_means

LAYOUT = Layout((("expr", 2), ("jaw", 1)), 25, "builtin")
RNG = np.random.default_rng(1)


def motion(values, layout=LAYOUT):
    return Motion(np.asarray(values, np.float32), layout)


def listeners(n, frames=30):
    return [motion(np.full((frames, 3), i)) for i in range(n)]


def test_interval_agrees_with_the_normal_one_on_many_prompts():
    x = RNG.normal(2.0, 0.5, size=400)
    interval = mean_interval({str(i): v for i, v in enumerate(x)})
    half = norm.ppf(0.975) * x.std(ddof=1) / 20
    assert interval.mean == pytest.approx(x.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (x.mean() - half, x.mean() + half), abs=0.1 * half
    )
    assert interval.n == 400
    wider = mean_interval({str(i): v for i, v in enumerate(x)}, confidence=0.99)
    assert wider.low < interval.low and wider.high > interval.high


def test_interval_does_not_depend_on_order_but_on_the_seed():
    values = {str(i): float(v) for i, v in enumerate(RNG.normal(size=20))}
    turned = dict(reversed(values.items()))
    assert mean_interval(values) == mean_interval(turned)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)
    assert mean_interval({p: v + 3 for p, v in values.items()}).low == pytest.approx(
        mean_interval(values).low + 3
    )


def test_interval_covers_the_mean_about_as_often_as_it_says():
    hits = 0
    for trial in range(200):
        x = np.random.default_rng(trial).normal(size=40)
        interval = mean_interval({str(i): v for i, v in enumerate(x)}, resamples=500)
        hits += interval.low <= 0 <= interval.high
    assert 180 <= hits <= 198


def test_pairing_takes_out_what_prompts_have_in_common():
    difficulty = RNG.normal(0, 5, size=50)
    before = {str(i): d for i, d in enumerate(difficulty)}
    after = {str(i): d + 0.5 + 0.1 * RNG.normal() for i, d in enumerate(difficulty)} | {
        "only after": 99.0
    }
    interval = paired_interval(before, after)
    assert interval.n == 50
    assert interval.low > 0.4 and interval.high < 0.6


def test_prompt_means_leave_out_missing_values():
    assert prompt_means([("b", 1.0), ("a", 4), ("b", None), ("b", 2.0), ("c", None)]) == {
        "a": 4.0,
        "b": 1.5,
    }


def test_intervals_of_nothing_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        mean_interval({"a": 1.0})
    with pytest.raises(ValueError, match="not finite"):
        mean_interval({"a": 1.0, "b": float("nan")})
    with pytest.raises(ValueError, match="confidence"):
        mean_interval({"a": 1.0, "b": 2.0}, confidence=95)
    with pytest.raises(ValueError, match="at least 2"):
        paired_interval({"a": 1.0}, {"b": 2.0})


def test_random_listener_is_a_training_clip_of_the_right_length():
    train = [*listeners(5), motion(np.full((10, 3), 9.0))]
    drawn = {
        int(random_listener(train, 20, np.random.default_rng(s)).values[0, 0]) for s in range(100)
    }
    assert drawn == {0, 1, 2, 3, 4}  # all but the short one
    assert len(random_listener(train, 20, RNG)) == 20
    with pytest.raises(ValueError, match="31 frames"):
        random_listener(train, 31, RNG)


def test_mirror():
    wide = Layout((("jaw", 1), ("expr", 4)), 25, "builtin")
    speaker = motion(np.arange(10).reshape(2, 5), wide)
    assert mirror(speaker, LAYOUT).values.tolist() == [[1, 2, 0], [6, 7, 5]]
    assert mirror(None, LAYOUT) is None
    with pytest.raises(LayoutError):
        mirror(speaker, Layout(LAYOUT.groups, 30, "builtin"))


def test_nearest_neighbour_by_motion():
    speakers = [
        SpeakerInput(motion(np.sin(np.arange(40)[:, None] * f + np.zeros(3))))
        for f in (0.1, 0.5, 1.3)
    ]
    nearest = NearestNeighbour(speakers, listeners(3))
    for index, speaker in enumerate(speakers):
        noisy = motion(speaker.motion.values + 0.05 * RNG.normal(size=(40, 3)))
        assert nearest.nearest(SpeakerInput(noisy)) == index
    assert nearest(speakers[1], 20).values.tolist() == np.ones((20, 3)).tolist()


def test_no_channel_drowns_the_others():
    """Channel 0 is a hundred times wider than channel 1; both count alike once standardised."""
    values = [(0, 0), (100, 1), (60, 0)]
    speakers = [SpeakerInput(motion(np.tile([a, b, 0], (40, 1)))) for a, b in values]
    assert (
        NearestNeighbour(speakers, listeners(3)).nearest(
            SpeakerInput(motion(np.tile([75, 1, 0], (40, 1))))
        )
        == 1
    )


def test_nearest_neighbour_by_what_there_is():
    tone, burst = np.ones(3200), np.concatenate([np.zeros(1600), np.ones(1600)])
    speakers = [
        SpeakerInput(audio=tone, text="we won the game"),
        SpeakerInput(audio=burst, text="grandma died last week"),
        SpeakerInput(text="so the bus was late"),
    ]
    nearest = NearestNeighbour(speakers, listeners(3))
    assert nearest.nearest(SpeakerInput(audio=0.9 * burst)) == 1
    assert nearest.nearest(SpeakerInput(text="The bus was late, so late!")) == 2
    assert (
        nearest.nearest(SpeakerInput(motion(np.zeros((40, 3))), audio=tone)) == 0
    )  # no motion to compare with
    with pytest.raises(ValueError, match="has nothing"):
        nearest.nearest(SpeakerInput())
    with pytest.raises(ValueError, match=r"\['motion'\]"):
        nearest.nearest(SpeakerInput(motion(np.zeros((40, 3)))))


def test_nearest_neighbour_refuses_unlike_layouts():
    other = Layout((("expr", 3),), 25, "builtin")
    with pytest.raises(LayoutError, match="unlike"):
        NearestNeighbour(
            [SpeakerInput(motion(np.zeros((9, 3)))), SpeakerInput(motion(np.zeros((9, 3)), other))],
            listeners(2),
        )
    with pytest.raises(ValueError, match="1 speakers for 2"):
        NearestNeighbour([SpeakerInput()], listeners(2))


def test_words():
    assert words("I can't, CAN'T stop!") == ["i", "can't", "can't", "stop"]
