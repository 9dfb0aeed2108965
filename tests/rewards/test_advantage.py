"""Advantages against tables worked out by hand, the textbook in numpy, and invariances."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rapport.rewards.advantage import (
    advantage_moments,
    component_advantages,
    decoupled_advantages,
    grpo_advantages,
    has_preference,
    normalise_advantages,
)

NAN = float("nan")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def textbook(rewards, weights):
    """Eq. 8-9 with loops, for rewards without gaps."""
    out = np.zeros(rewards.shape[:2])
    for g, group in enumerate(rewards):
        for k, weight in enumerate(weights):
            std = np.std(group[:, k], ddof=1)
            out[g] += weight * (group[:, k] - group[:, k].mean()) / std
    return out / np.sum(weights)


def random_rewards(seed=0, shape=(5, 4, 3)):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * [1, 1e-3, 50])


def test_by_hand():
    # First reward 1, 2, 3: mean 2, std 1. Second 0, 0, 3: mean 1, std sqrt(3).
    rewards = tensor([[[1, 0], [2, 0], [3, 3]]])
    root = 3**0.5
    components = component_advantages(rewards)[0]
    torch.testing.assert_close(components, tensor([[-1, -1 / root], [0, -1 / root], [1, 2 / root]]))
    torch.testing.assert_close(
        decoupled_advantages(rewards, [3, 1])[0],
        tensor([(-3 - 1 / root) / 4, -1 / root / 4, (3 + 2 / root) / 4]),
    )
    # GRPO: totals 3, 6, 12: mean 7, deviations -4, -1, 5, std sqrt(21).
    torch.testing.assert_close(grpo_advantages(rewards, [3, 1])[0], tensor([-4, -1, 5]) / 21**0.5)


def test_equals_the_textbook():
    rewards, weights = random_rewards(), [0.5, 2.0, 1.0]
    expected = textbook(rewards.numpy(), weights)
    np.testing.assert_allclose(decoupled_advantages(rewards, weights).numpy(), expected, atol=1e-12)


def test_the_collapse_example():
    # Two binary rewards, two samples: totals (0, 1) in one group and (0, 2) in the other (GDPO,
    # figure 2).
    rewards, weights = tensor([[[0, 0], [0, 1]], [[0, 0], [1, 1]]]), [1, 1]
    grpo = grpo_advantages(rewards, weights)
    assert torch.equal(grpo[0], grpo[1])
    gdpo = decoupled_advantages(rewards, weights)
    torch.testing.assert_close(gdpo[1], 2 * gdpo[0])
    batch = normalise_advantages(gdpo, rewards, advantage_moments(gdpo, rewards))
    torch.testing.assert_close(batch[1], 2 * batch[0])
    # +-a and +-2a: mean 0, variance 10 a^2 / 3
    torch.testing.assert_close(batch[1, 1], tensor(2 / (10 / 3) ** 0.5))


def test_a_loud_reward_drowns_the_others_in_grpo_only():
    rewards = tensor([[[0, 0.3], [100, 0.1], [200, 0.2]]])
    quiet = rewards.clone()
    quiet[..., 1] = rewards[:, [1, 2, 0], 1]
    gap = (grpo_advantages(rewards, [1, 1]) - grpo_advantages(quiet, [1, 1])).abs().max()
    assert gap < 2e-3
    gap = (decoupled_advantages(rewards, [1, 1]) - decoupled_advantages(quiet, [1, 1])).abs().max()
    assert gap > 0.4


def test_small_units_count_as_much_as_large_ones():
    # TRL adds 1e-4 to the standard deviation: a reward in squared radians would lose most of its
    # say.
    rewards = tensor([[[0.0], [1e-5], [2e-5]]])
    torch.testing.assert_close(decoupled_advantages(rewards, [1])[0], tensor([-1, 0, 1]))
    trl = (rewards - rewards.mean(1)) / (rewards.std(1) + 1e-4)
    assert trl.max() < 0.1


@pytest.mark.parametrize("value", [0.0, 1 / 3, 1e8, -7.1])
def test_equal_rewards_give_exactly_zero(value):
    rewards = torch.full((1, 7, 1), value, dtype=torch.float32)
    assert torch.equal(decoupled_advantages(rewards, [1]), torch.zeros(1, 7, dtype=torch.float64))
    noisy = rewards.clone()
    noisy[0, 3] = torch.nextafter(
        rewards[0, 3], torch.tensor(float("inf"))
    )  # one rounding step in float32
    if value:
        assert torch.equal(decoupled_advantages(noisy, [1]), torch.zeros(1, 7, dtype=torch.float64))
    assert not has_preference(rewards).any()


def test_a_missing_reward_changes_nothing_but_its_own_component_of_its_own_group():
    rewards = random_rewards()
    gap = rewards.clone()
    gap[2, 1, 0] = NAN
    before, after = component_advantages(rewards), component_advantages(gap)
    changed = torch.zeros_like(before, dtype=torch.bool)
    changed[2, :, 0] = True
    assert torch.equal(before[~changed], after[~changed])
    assert after[2, 1, 0] == 0
    # The others of the group are what they would be had the sample never been there.
    kept = [0, 2, 3]
    torch.testing.assert_close(after[2, kept, 0], component_advantages(rewards[2:3, kept])[0, :, 0])


def test_a_sample_without_any_reward_changes_nothing_but_itself():
    rewards, weights = random_rewards(), [1, 2, 3]
    lost = rewards.clone()
    lost[1, 2] = NAN
    advantages = decoupled_advantages(lost, weights)
    assert advantages[1, 2] == 0 and advantages.isfinite().all()
    kept = [0, 1, 3]
    torch.testing.assert_close(
        advantages[1, kept], decoupled_advantages(rewards[1:2, kept], weights)[0]
    )
    # ... also over the batch, where its 0 must not count as a value
    batch = normalise_advantages(advantages, lost, advantage_moments(advantages, lost))
    values = torch.cat([advantages[[0, 2, 3, 4]].flatten(), advantages[1, kept]])
    torch.testing.assert_close(batch[0], (advantages[0] - values.mean()) / values.std())
    assert batch[1, 2] == 0


def test_too_few_values_to_compare():
    rewards = tensor([[[1, NAN], [NAN, NAN]], [[1, 2], [3, 4]]])
    advantages = decoupled_advantages(rewards, [1, 1])
    assert torch.equal(advantages[0], tensor([0, 0]))
    assert has_preference(rewards).tolist() == [[False, False], [True, True]]


def test_grpo_leaves_out_a_sample_without_a_total():
    rewards = tensor([[[1, 1], [2, NAN], [4, 4]]])
    torch.testing.assert_close(grpo_advantages(rewards, [1, 1])[0], tensor([-1, 0, 1]) / 2**0.5)
    # ... unless what it lacks has no weight
    torch.testing.assert_close(grpo_advantages(rewards, [1, 0])[0], tensor([-4, -1, 5]) / 21**0.5)


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_shards_give_the_numbers_of_the_whole_batch(shards):
    rewards, weights = random_rewards(), [1, 1, 1]
    rewards[0, 1] = NAN
    whole = decoupled_advantages(rewards, weights)
    expected = normalise_advantages(whole, rewards, advantage_moments(whole, rewards))
    parts = rewards.tensor_split(shards)
    advantages = [decoupled_advantages(part, weights) for part in parts]
    reduced = sum(advantage_moments(a, part) for a, part in zip(advantages, parts, strict=True))
    got = torch.cat(
        [normalise_advantages(a, part, reduced) for a, part in zip(advantages, parts, strict=True)]
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    local = torch.cat(
        [
            normalise_advantages(a, p, advantage_moments(a, p))
            for a, p in zip(advantages, parts, strict=True)
        ]
    )
    assert (
        shards == 1 or (local - expected).abs().max() > 1e-3
    )  # what forgetting to reduce would do


def test_the_batch_step_only_rescales_and_amplifies_rare_rewards():
    rewards = torch.zeros(64, 8, 1, dtype=torch.float64)
    rewards[:8, 0] = 1  # one success in 8 of 64 groups
    advantages = decoupled_advantages(rewards, [1])
    batch = normalise_advantages(advantages, rewards, advantage_moments(advantages, rewards))
    ratio = batch[0, 0] / advantages[0, 0]
    assert ratio > 2.5
    torch.testing.assert_close(batch, ratio * advantages)


def test_a_batch_without_spread_is_zero():
    rewards = torch.ones(3, 4, 2)
    advantages = decoupled_advantages(rewards, [1, 1])
    assert torch.equal(
        normalise_advantages(advantages, rewards, advantage_moments(advantages, rewards)),
        torch.zeros(3, 4).double(),
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-4, 1e4),
    shift=st.floats(-10, 10),
    loudness=st.floats(1e-3, 1e3),
)
def test_invariances(seed, scale, shift, loudness):
    rewards, weights = random_rewards(seed, (3, 5, 3)), torch.tensor([1.0, 0.0, 2.5]).double()
    advantages = decoupled_advantages(rewards, weights)
    changed = rewards.clone()
    changed[..., 0] = changed[..., 0] * scale + shift * scale
    torch.testing.assert_close(
        decoupled_advantages(changed, weights * loudness), advantages, rtol=1e-6, atol=1e-8
    )
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        decoupled_advantages(rewards[:, order], weights), advantages[:, order]
    )
    torch.testing.assert_close(decoupled_advantages(rewards.flip(0), weights), advantages.flip(0))
    torch.testing.assert_close(decoupled_advantages(-rewards, weights), -advantages)
    assert advantages.sum(1).abs().max() < 1e-9
    assert (advantages.abs() <= 4 / 5**0.5 + 1e-9).all()  # the largest z-score of 5 values


def test_float32_and_float64_agree():
    rewards = random_rewards()
    single, double = (decoupled_advantages(r, [1, 1, 1]) for r in (rewards.float(), rewards))
    torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        (torch.ones(2, 3), [1], "groups, group_size, rewards"),
        (torch.ones(2, 1, 1), [1], "at least 2"),
        (torch.ones(2, 3, 2), [1], "one each"),
        (torch.ones(2, 3, 2), [1, -1], "not negative"),
        (torch.ones(2, 3, 2), [0, 0], "not all 0"),
        (torch.full((2, 3, 1), float("inf")), [1], "sample 0 in group 0"),
    ],
)
def test_what_does_not_fit_is_refused(rewards, weights, message):
    with pytest.raises(ValueError, match=message):
        decoupled_advantages(rewards, weights)


def test_moments_of_other_rewards_are_refused():
    with pytest.raises(ValueError, match="not of rewards"):
        advantage_moments(torch.zeros(2, 4), torch.zeros(2, 3, 1))
