"""Dynamics rewards against values worked out by hand, and what each must and must not see."""

import math

import numpy as np
import pytest
import torch

from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.dynamics import (
    LEAST_FRAMES,
    Recorded,
    energy_features,
    group_rewards,
    listening_frames,
    motion_limits,
    moving_average,
    paper_features,
)
from rapport.rewards.settings import EnergyWeights, PaperWeights, RewardConfig

LAYOUT = Layout((("expr", 2), ("jaw", 1)), 25, "builtin")
LIMITS = Motion(np.array([[-10, -10, -1], [10, 10, 1]]), LAYOUT)
FRAMES = 50
PAPER = RewardConfig(form="paper")
ENERGY = RewardConfig()
FORMS = pytest.mark.parametrize("config", [PAPER, ENERGY], ids=["paper", "energy"])


def clip(seed=0, frames=FRAMES):
    return np.random.default_rng(seed).normal(size=(frames, 3)) * [1, 1, 0.1]


def group(*seeds, frames=FRAMES):
    return torch.from_numpy(np.stack([clip(seed, frames) for seed in seeds]))


def recorded(values=None, listening=None, limits=LIMITS):
    values = clip() if values is None else values
    mask = np.ones(len(values), bool) if listening is None else listening
    return Recorded(Motion(np.asarray(values, np.float32), LAYOUT), mask, limits)


def rewards(samples, wanted, config, name):
    """(samples, frames, groups) of one component."""
    place = list(config.weights).index(name)
    return group_rewards(samples, wanted, config)[:, :, place]


def test_the_papers_components_by_hand():
    still = np.tile([[1.0, 0.0, 0.0]], (FRAMES, 1))
    swings = still.copy()
    swings[::2, 0] = 3.0  # mean 2, deviation 1, velocities of 2
    mine, theirs = torch.from_numpy(swings)[None], recorded(still)
    unbiased = math.sqrt(FRAMES / (FRAMES - 1))
    first = {name: rewards(mine, theirs, PAPER, name)[0, 0] for name in PAPER.weights}
    assert first["positional_variance"].tolist() == pytest.approx([-unbiased, 0], abs=1e-5)
    assert first["mean_drift"].tolist() == pytest.approx([-1, 0], abs=1e-5)
    assert first["mse"].tolist() == pytest.approx([-2, 0], abs=1e-5)
    deviation = np.diff(swings[:, 0]).std(ddof=1)
    assert first["velocity_variance"].tolist() == pytest.approx([-deviation, 0], abs=1e-5)


def test_moving_average_by_hand():
    values = torch.tensor([0.0, 3.0, 6.0, 0.0])[None, :, None]
    assert moving_average(values, 3.0)[0, :, 0].tolist() == [1.5, 3, 3, 3]
    assert torch.equal(moving_average(values, 1.0), values)


def test_the_energy_score_by_hand():
    """Two samples at 1 and 4, the recorded face at 0: distances 1 and 4, and 3 between them."""
    still = torch.tensor([1.0, 4.0])[:, None, None] * torch.tensor([1.0, 0, 0]).expand(FRAMES, 3)
    wanted = recorded(np.zeros((FRAMES, 3)))
    got = rewards(still, wanted, ENERGY, "mean")[:, 0, 0]
    assert got.tolist() == pytest.approx([-(1 - 3), -(4 - 3)], abs=1e-5)


def test_the_energy_score_is_best_for_the_spread_of_people_and_the_papers_form_for_none():
    """People rest at N(0, 1). Mean score of groups drawn as wide as `spread`."""
    generator = torch.Generator().manual_seed(0)

    def score(config, name, spread):
        people = torch.randn(400, generator=generator)
        groups = torch.randn(400, 8, generator=generator) * spread
        total = 0.0
        for person, drawn in zip(people, groups, strict=True):
            still = drawn[:, None, None] * torch.tensor([1.0, 0, 0]).expand(LEAST_FRAMES, 3)
            wanted = recorded(np.tile([[float(person), 0, 0]], (LEAST_FRAMES, 1)))
            got = rewards(still, wanted, config, name)[:, 0, 0]
            if config.form == "energy":  # the score counts each pair once
                apart = (drawn[:, None] - drawn).abs().sum(1) / 7
                got = got - apart / 2
            total += float(got.mean())
        return total / 400

    energy = {spread: score(ENERGY, "mean", spread) for spread in (0.1, 1.0, 2.0)}
    assert energy[1.0] > energy[0.1] + 0.05 and energy[1.0] > energy[2.0] + 0.05
    paper = {spread: score(PAPER, "mean_drift", spread) for spread in (0.1, 1.0)}
    assert paper[0.1] > paper[1.0] + 0.1


def test_bands_hear_what_is_theirs():
    time = np.arange(200) / 25

    def liveliness(hertz):
        wave = np.sin(2 * np.pi * hertz * time)
        values = torch.from_numpy(np.stack([wave, 0 * wave, 0 * wave], 1))[None]
        features = energy_features(values, torch.ones(200, dtype=torch.bool), 25)
        return {name: features[name][0, 100, 0].item() for name in ("slow", "middle", "fast")}

    for hertz, band in ((0.2, "slow"), (1.0, "middle"), (5.0, "fast")):
        heard = liveliness(hertz)
        assert max(heard, key=heard.get) == band
        assert heard[band] > 0.4
        assert all(value < 0.6 * heard[band] for name, value in heard.items() if name != band)


def test_range_is_the_distance_outside():
    values = np.zeros((FRAMES, 3))
    values[3] = [12, -14, 1.5]
    got = rewards(torch.from_numpy(values)[None], recorded(), ENERGY, "range")[0]
    assert got[3].tolist() == pytest.approx([-(2 + 4) / 2, -0.5])
    assert (got[:3] == 0).all() and (got[4:] == 0).all()
    limits = motion_limits(
        [Motion(values.astype(np.float32), LAYOUT), Motion(-values.astype(np.float32), LAYOUT)]
    )
    assert limits.values.tolist() == [[-12, -14, -1.5], [12, 14, 1.5]]


@FORMS
def test_the_recorded_motion_is_the_best_of_the_papers_form_and_near_it_in_distance(config):
    wanted = recorded()
    samples = torch.cat([torch.from_numpy(wanted.motion.values).double()[None], group(1, 2, 3)])
    got = group_rewards(samples, wanted, config).nansum((1, 2))
    assert (got[0] > got[1:]).all()


@FORMS
def test_groups_do_not_see_each_other(config):
    samples = group(1, 2, 3)
    other = samples * torch.tensor([1.0, 1.0, 3.0])
    a, b = (group_rewards(each, recorded(), config) for each in (samples, other))
    assert torch.equal(a[..., 0], b[..., 0]) and not torch.equal(a[..., 1], b[..., 1])


def test_the_papers_components_see_listening_frames_only():
    mask = np.zeros(FRAMES, bool)
    mask[5:20] = mask[30:45] = True
    samples = group(1, 2)
    spoken = torch.where(torch.from_numpy(mask)[None, :, None], samples, group(8, 9) * 5)
    a, b = (group_rewards(each, recorded(listening=mask), PAPER) for each in (samples, spoken))
    torch.testing.assert_close(a, b, equal_nan=True)
    assert a[:, ~mask].isnan().all() and a[:, mask].isfinite().all()


def test_no_velocity_reaches_across_a_gap():
    values = torch.tensor([0.0] * 10 + [5.0] * 10)[None, :, None]
    mask = torch.ones(20, dtype=torch.bool)
    assert paper_features(values, mask, 25)["velocity_variance"][0, 0].item() > 1  # the jump
    mask[8:12] = False
    assert paper_features(values, mask, 25)["velocity_variance"][0, 0].item() < 1e-5


@FORMS
def test_a_sample_that_is_not_finite_is_missing_and_changes_nothing_else(config):
    samples = group(1, 2, 3)
    broken = torch.cat([samples, torch.full((1, FRAMES, 3), torch.nan).double()])
    got = group_rewards(broken, recorded(), config)
    assert got[3].isnan().all()
    torch.testing.assert_close(got[:3], group_rewards(samples, recorded(), config))


@FORMS
def test_less_than_a_second_of_listening_gives_no_reward(config):
    mask = np.zeros(FRAMES, bool)
    mask[: LEAST_FRAMES - 1] = True
    assert group_rewards(group(1, 2), recorded(listening=mask), config).isnan().all()
    mask[:LEAST_FRAMES] = True
    assert group_rewards(group(1, 2), recorded(listening=mask), config)[:, mask].isfinite().all()


def test_the_gradient_is_that_of_the_score():
    """Each sample moves in the field of the others: the numerical gradient of the score, in which
    each pair counts once.
    """
    samples, wanted = group(1, 2, 3), recorded()

    def score(samples):
        total = group_rewards(samples, wanted, ENERGY)[..., :5, :].sum()
        distances = rewards(samples, wanted, ENERGY, "mean").sum()
        return total, distances

    moved = samples.clone().requires_grad_()
    score(moved)[0].backward()
    config = RewardConfig(energy=EnergyWeights(path=0, slow=0, middle=0, fast=0, range=0))
    still = samples.clone().requires_grad_()
    group_rewards(still, wanted, config).sum().backward()

    def energy_score(samples):
        means = samples.mean(1)
        target = torch.from_numpy(wanted.motion.values).double().mean(0)
        value = 0.0
        for part in (slice(0, 2), slice(2, 3)):
            apart = torch.cdist(means[:, part], means[:, part]).sum() / 2 / 2  # a pair once, of 2
            value = value + apart - (means - target)[:, part].norm(dim=1).sum()
        return value * FRAMES

    by_hand = samples.clone().requires_grad_()
    energy_score(by_hand).backward()
    torch.testing.assert_close(still.grad, by_hand.grad, atol=1e-4, rtol=1e-4)
    assert moved.grad.isfinite().all()


def test_listening_means_that_the_partner_speaks_and_the_actor_does_not():
    actor, partner = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    assert listening_frames(actor, partner).tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match="bool masks"):
        listening_frames(actor.astype(int), partner)


def test_what_does_not_fit_is_refused():
    motion = recorded().motion
    other = Motion(motion.values, Layout((("expr", 2), ("jaw", 1)), 30, "builtin"))
    mask = np.ones(FRAMES, bool)
    with pytest.raises(LayoutError, match="limits"):
        Recorded(motion, mask, other.window(0, 2))
    with pytest.raises(ValueError, match=r"bool \(50,\)"):
        Recorded(motion, mask.astype(float), LIMITS)
    with pytest.raises(ValueError, match="lowest and the highest"):
        Recorded(motion, mask, Motion(LIMITS.values[::-1], LAYOUT))
    with pytest.raises(ValueError, match=r"\(2, 30, 3\) are not \(group, 50, 3\)"):
        group_rewards(group(1, 2, frames=30), recorded(), ENERGY)
    with pytest.raises(ValueError, match="mse"):
        PaperWeights(mse=-1)
    with pytest.raises(ValueError, match="not all 0"):
        RewardConfig(energy=EnergyWeights(**dict.fromkeys(EnergyWeights.model_fields, 0.0)))
    with pytest.raises(ValueError, match="finite"):
        RewardConfig(energy=EnergyWeights(fast=math.inf))
