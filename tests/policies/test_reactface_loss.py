"""The losses of ReactFace against numbers worked out by hand."""

import math

import pytest
import torch

from rapport.policies.motion import Layout
from rapport.policies.reactface.loss import (
    appropriate_loss,
    aspects,
    by_group,
    distances,
    diversity_loss,
    energy_distances,
    kl_loss,
    path_loss,
    smooth_loss,
    speaker_loss,
    spread_loss,
)

LAYOUT = Layout((("expr", 3), ("rot", 1)), 25, "builtin")


def test_a_group_of_one_channel_weighs_as_much_as_one_of_three():
    errors = torch.tensor([[3.0, 0.0, 0.0, 5.0]])
    assert by_group(errors, LAYOUT).tolist() == [3.0]


def test_smooth_l1_is_a_square_near_and_a_distance_far():
    samples = torch.zeros(1, 1, 2, 4)
    labels = torch.stack([torch.full((2, 4), 0.2), torch.full((2, 4), 3.0)])[None]
    torch.testing.assert_close(distances(samples, labels, LAYOUT), torch.tensor([[[0.02, 2.5]]]))


APART = torch.tensor([[[4.0, 1.0, 6.0], [2.0, 3.0, 0.0]]])  # two samples, three labels
THERE = torch.tensor([[True, True, False]])


@pytest.mark.parametrize(
    ("assign", "expected"),
    [
        ("recorded", (4 + 2) / 2),
        ("nearest", (1 + 2) / 2),
        ("cover", (2 + 1) / 2),
        ("random", (1 + 2) / 2),  # the second label for the first sample, the first for the other
    ],
)
def test_assignments(assign, expected):
    """What is not there is never near, though its distance is 0."""
    picked = torch.tensor([[0.6, 0.4]])
    assert appropriate_loss(APART, THERE, assign, picked).tolist() == [expected]


def test_random_never_takes_what_is_not_there():
    there = torch.tensor([[False, True, True]])
    picked = torch.tensor([[0.0, 0.999]])
    assert appropriate_loss(APART, there, "random", picked).tolist() == [(1 + 0) / 2]
    with pytest.raises(ValueError, match="needs `picked`"):
        appropriate_loss(APART, there, "random")


def test_an_output_that_ignores_its_speaker_is_paid_by_the_nearest():
    """What the paper's central loss cannot tell, and the recorded listener can."""
    apart = torch.tensor([[[2.0, 0.0]], [[0.0, 2.0]]])  # two speakers, one answer to both
    there = torch.ones(2, 2, dtype=torch.bool)
    assert appropriate_loss(apart, there, "nearest").tolist() == [0, 0]
    assert appropriate_loss(apart, there, "recorded").tolist() == [2, 0]


def test_kl_is_that_of_torch():
    torch.manual_seed(0)
    mean, log_std = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    normal = torch.distributions.Normal(mean, log_std.exp())
    standard = torch.distributions.Normal(torch.zeros(5), torch.ones(5))
    expected = torch.distributions.kl_divergence(normal, standard).mean()
    torch.testing.assert_close(kl_loss(mean, log_std), expected)


def test_constant_velocity_is_smooth_and_a_corner_is_not():
    line = torch.arange(5.0)[:, None].expand(5, 4)
    assert smooth_loss(line, LAYOUT) == 0
    corner = torch.tensor([0.0, 1.0, 2.0, 1.0])[:, None].expand(4, 4)
    # Of two second differences one is 2, beyond where it is a square: 1.5.
    assert smooth_loss(corner, LAYOUT) == pytest.approx(0.75)


def test_diversity_is_in_units_of_an_element():
    """Whatever the frames and channels; the paper's is of sums, and vanishes as clips grow."""
    for frames in (2, 50):
        samples = torch.zeros(1, 3, frames, 4)
        samples[:, 1] = 1.0
        samples[:, 2] = -1.0
        expected = (2 * math.exp(-1 / 0.5) + math.exp(-4 / 0.5)) / 3
        assert diversity_loss(samples, 0.5, LAYOUT).item() == pytest.approx(expected, rel=1e-5)


def test_one_channel_that_runs_away_does_not_make_samples_diverse():
    """By a mean over channels it does: so a trained one had a brow of 15 standard deviations."""
    still = torch.zeros(1, 2, 8, 4)
    wild = still.clone()
    wild[:, 1, :, 0] = 30.0
    by_mean = torch.exp(-(wild[:, 0] - wild[:, 1]).square().mean() / 0.5)
    assert by_mean < 1e-9
    assert diversity_loss(wild, 0.5, LAYOUT) > 0.5 * diversity_loss(still, 0.5, LAYOUT)


def test_the_energy_score_is_least_where_samples_are_spread_as_people_are():
    """People are N(0, 1) from clip to clip; so must samples be, neither stiller nor wilder."""
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(4000, 1, 1, 1, generator=generator).expand(-1, -1, 3, 4)
    noise = torch.randn(4000, 3, 1, 1, generator=generator).expand(-1, -1, 3, 4)

    def score(spread):
        samples = spread * noise
        apart = energy_distances(samples, people, LAYOUT)
        return (apart.mean() + spread_loss(samples, LAYOUT)).item()

    scores = {spread: score(spread) for spread in (0.0, 0.5, 0.8, 1.0, 1.2, 2.0)}
    assert min(scores, key=scores.get) == 1.0, scores


def test_aspects_of_a_face_by_hand():
    """A step from 0 to 4 in the last of four frames, about a mean of 1."""
    frames = torch.tensor([0.0, 0.0, 0.0, 4.0])[:, None]
    means, rest, movement = aspects(frames)
    assert means.tolist() == [[1.0]] and rest.flatten().tolist() == [-1, -1, -1, 3]
    expected = [math.sqrt(12 / 4), math.sqrt(16 / 3), math.sqrt(16 / 2), 3, 1]
    torch.testing.assert_close(movement.exp().flatten(), torch.tensor(expected), rtol=0, atol=0.011)


def test_a_blink_is_no_trembling():
    """Which moves as much, and as fast on average; and stillness is as still as it can be seen."""
    blink = torch.zeros(100, 1)
    blink[50:53] = 1.0
    trembling = torch.zeros(100, 1)
    trembling[::2] = blink.diff(dim=0).square().mean().sqrt()
    of_blink, of_trembling = (aspects(x)[2].flatten() for x in (blink, trembling))
    assert of_blink[1] == pytest.approx(of_trembling[1])  # velocity
    assert of_blink[3] - of_trembling[3] > 1.5  # how far up
    assert of_blink[3] - of_blink[4] > 3  # and not down
    still = aspects(torch.zeros(1, 2, 100, 1))
    torch.testing.assert_close(still[2], torch.full((1, 2, 5, 1), math.log(0.01)))


def test_the_energy_score_hears_how_much_a_face_moves():
    """Samples whose frames are drawn anew are no nearer for moving as much as people do, but that
    they are."""
    layout = Layout((("rot", 1),), 25, "builtin")
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(500, 1, 40, 1, generator=generator)
    noise = torch.randn(500, 3, 40, 1, generator=generator)

    def score(spread):
        samples = spread * noise
        return (
            energy_distances(samples, people, layout).mean() + spread_loss(samples, layout)
        ).item()

    assert score(1.0) < score(0.6) - 0.1 and score(1.0) < score(1.6) - 0.1


def test_a_path_is_the_mean_of_a_second():
    """A jump in the middle is a ramp of 25 frames; a still face is its own path."""
    motion = torch.zeros(1, 100, 4)
    motion[:, 50:] = 1.0
    ramp = torch.cat([torch.zeros(38), torch.arange(1, 25) / 25, torch.ones(38)])
    expected = ramp[None, :, None].expand(1, -1, 4)
    torch.testing.assert_close(path_loss(expected, motion, LAYOUT), torch.tensor(0.0))
    assert path_loss(motion, motion, LAYOUT) > 0.01
    still = torch.ones(1, 100, 4)
    assert path_loss(still[:, :104], still, LAYOUT) == 0 == path_loss(still + 0, still, LAYOUT)


def test_a_speaker_who_is_not_seen_is_not_read():
    read = torch.zeros(3, 2, 4)
    motion = torch.stack([torch.full((2, 4), value) for value in (0.2, 0.4, 9.0)])
    present = torch.tensor([True, True, False])
    assert speaker_loss(read, motion, present, LAYOUT).item() == pytest.approx((0.02 + 0.08) / 3)
    assert speaker_loss(read, motion, present & False, LAYOUT) == 0
