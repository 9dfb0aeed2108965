"""Advantages against tables worked out by hand, the textbook in numpy, and invariances."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rapport.rewards.advantage import (
    component_advantages,
    decoupled_advantages,
    grpo_advantages,
    has_preference,
    reward_scales,
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


def one_place(function):
    """Rewards of whole samples, (groups, group_size, rewards), and what comes of them."""
    return lambda rewards, *rest: function(rewards.unsqueeze(2), *rest).squeeze(2)


whole_components = one_place(component_advantages)
whole_decoupled = one_place(decoupled_advantages)
whole_grpo = one_place(grpo_advantages)


def random_rewards(seed=0, shape=(5, 4, 3)):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * [1, 1e-3, 50])


def test_by_hand():
    # First reward 1, 2, 3: mean 2, std 1. Second 0, 0, 3: mean 1, std sqrt(3).
    rewards = tensor([[[1, 0], [2, 0], [3, 3]]])
    root = 3**0.5
    components = whole_components(rewards)[0]
    torch.testing.assert_close(components, tensor([[-1, -1 / root], [0, -1 / root], [1, 2 / root]]))
    torch.testing.assert_close(
        whole_decoupled(rewards, [3, 1])[0],
        tensor([(-3 - 1 / root) / 4, -1 / root / 4, (3 + 2 / root) / 4]),
    )
    # GRPO: totals 3, 6, 12: mean 7, deviations -4, -1, 5, std sqrt(21).
    torch.testing.assert_close(whole_grpo(rewards, [3, 1])[0], tensor([-4, -1, 5]) / 21**0.5)


def test_equals_the_textbook():
    rewards, weights = random_rewards(), [0.5, 2.0, 1.0]
    expected = textbook(rewards.numpy(), weights)
    np.testing.assert_allclose(whole_decoupled(rewards, weights).numpy(), expected, atol=1e-12)


def test_the_collapse_example():
    # Two binary rewards, two samples: totals (0, 1) in one group and (0, 2) in the other (GDPO,
    # figure 2).
    rewards, weights = tensor([[[0, 0], [0, 1]], [[0, 0], [1, 1]]]), [1, 1]
    grpo = whole_grpo(rewards, weights)
    assert torch.equal(grpo[0], grpo[1])
    gdpo = whole_decoupled(rewards, weights)
    torch.testing.assert_close(gdpo[1], 2 * gdpo[0])


def test_a_loud_reward_drowns_the_others_in_grpo_only():
    rewards = tensor([[[0, 0.3], [100, 0.1], [200, 0.2]]])
    quiet = rewards.clone()
    quiet[..., 1] = rewards[:, [1, 2, 0], 1]
    gap = (whole_grpo(rewards, [1, 1]) - whole_grpo(quiet, [1, 1])).abs().max()
    assert gap < 2e-3
    gap = (whole_decoupled(rewards, [1, 1]) - whole_decoupled(quiet, [1, 1])).abs().max()
    assert gap > 0.4


def test_small_units_count_as_much_as_large_ones():
    # TRL adds 1e-4 to the standard deviation: a reward in squared radians would lose most of its
    # say.
    rewards = tensor([[[0.0], [1e-5], [2e-5]]])
    torch.testing.assert_close(whole_decoupled(rewards, [1])[0], tensor([-1, 0, 1]))
    trl = (rewards - rewards.mean(1)) / (rewards.std(1) + 1e-4)
    assert trl.max() < 0.1


@pytest.mark.parametrize("value", [0.0, 1 / 3, 1e8, -7.1])
def test_equal_rewards_give_exactly_zero(value):
    rewards = torch.full((1, 7, 1), value, dtype=torch.float32)
    assert torch.equal(whole_decoupled(rewards, [1]), torch.zeros(1, 7, dtype=torch.float64))
    noisy = rewards.clone()
    noisy[0, 3] = torch.nextafter(
        rewards[0, 3], torch.tensor(float("inf"))
    )  # one rounding step in float32
    if value:
        assert torch.equal(whole_decoupled(noisy, [1]), torch.zeros(1, 7, dtype=torch.float64))
    assert not has_preference(rewards.unsqueeze(2)).any()


def test_a_missing_reward_changes_nothing_but_its_own_component_of_its_own_group():
    rewards = random_rewards()
    gap = rewards.clone()
    gap[2, 1, 0] = NAN
    before, after = whole_components(rewards), whole_components(gap)
    changed = torch.zeros_like(before, dtype=torch.bool)
    changed[2, :, 0] = True
    assert torch.equal(before[~changed], after[~changed])
    assert after[2, 1, 0] == 0
    # The others of the group are what they would be had the sample never been there.
    kept = [0, 2, 3]
    torch.testing.assert_close(after[2, kept, 0], whole_components(rewards[2:3, kept])[0, :, 0])


def test_a_sample_without_any_reward_changes_nothing_but_itself():
    rewards, weights = random_rewards(), [1, 2, 3]
    lost = rewards.clone()
    lost[1, 2] = NAN
    advantages = whole_decoupled(lost, weights)
    assert advantages[1, 2] == 0 and advantages.isfinite().all()
    kept = [0, 1, 3]
    torch.testing.assert_close(advantages[1, kept], whole_decoupled(rewards[1:2, kept], weights)[0])


def test_too_few_values_to_compare():
    rewards = tensor([[[1, NAN], [NAN, NAN]], [[1, 2], [3, 4]]])
    advantages = whole_decoupled(rewards, [1, 1])
    assert torch.equal(advantages[0], tensor([0, 0]))
    assert has_preference(rewards.unsqueeze(2)).tolist() == [[False, False], [True, True]]


def test_grpo_leaves_out_a_sample_without_a_total():
    rewards = tensor([[[1, 1], [2, NAN], [4, 4]]])
    torch.testing.assert_close(whole_grpo(rewards, [1, 1])[0], tensor([-1, 0, 1]) / 2**0.5)
    # ... unless what it lacks has no weight
    torch.testing.assert_close(whole_grpo(rewards, [1, 0])[0], tensor([-4, -1, 5]) / 21**0.5)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scale=st.floats(1e-4, 1e4),
    shift=st.floats(-10, 10),
    loudness=st.floats(1e-3, 1e3),
)
def test_invariances(seed, scale, shift, loudness):
    rewards, weights = random_rewards(seed, (3, 5, 3)), torch.tensor([1.0, 0.0, 2.5]).double()
    advantages = whole_decoupled(rewards, weights)
    changed = rewards.clone()
    changed[..., 0] = changed[..., 0] * scale + shift * scale
    torch.testing.assert_close(
        whole_decoupled(changed, weights * loudness), advantages, rtol=1e-6, atol=1e-8
    )
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(whole_decoupled(rewards[:, order], weights), advantages[:, order])
    torch.testing.assert_close(whole_decoupled(rewards.flip(0), weights), advantages.flip(0))
    torch.testing.assert_close(whole_decoupled(-rewards, weights), -advantages)
    assert advantages.sum(1).abs().max() < 1e-9
    assert (advantages.abs() <= 4 / 5**0.5 + 1e-9).all()  # the largest z-score of 5 values


def test_float32_and_float64_agree():
    rewards = random_rewards()
    single, double = (whole_decoupled(r, [1, 1, 1]) for r in (rewards.float(), rewards))
    torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        (torch.ones(2, 3, 2), [1, 1], "groups, group_size, places, rewards"),
        (torch.ones(2, 1, 1, 1), [1], "at least 2"),
        (torch.ones(2, 3, 4, 2), [1], "one each"),
        (torch.ones(2, 3, 4, 2), [1, -1], "not negative"),
        (torch.ones(2, 3, 4, 2), [0, 0], "not all 0"),
        (torch.full((2, 3, 4, 1), float("inf")), [1], "sample 0 in group 0"),
    ],
)
def test_what_does_not_fit_is_refused(rewards, weights, message):
    with pytest.raises(ValueError, match=message):
        decoupled_advantages(rewards, weights)


def test_a_place_is_compared_with_the_same_place_of_the_others():
    """Two places: 1, 2, 3 and 10, 10, 16, over the root of the mean of variances 1 and 12."""
    rewards = tensor([[[[1], [10]], [[2], [10]], [[3], [16]]]])
    std = 6.5**0.5
    expected = tensor([[[-1], [-2]], [[0], [-2]], [[1], [4]]]) / std
    torch.testing.assert_close(component_advantages(rewards)[0], expected)
    assert reward_scales(rewards).tolist() == [[pytest.approx(std)]]


def test_a_place_without_rewards_changes_nothing():
    rewards = random_rewards(shape=(2, 4, 6, 3))
    gap = rewards.clone()
    gap[:, :, 2:4] = NAN
    kept = [0, 1, 4, 5]
    torch.testing.assert_close(
        component_advantages(gap)[:, :, kept], component_advantages(rewards[:, :, kept])
    )
    assert (decoupled_advantages(gap, [1, 1, 1])[:, :, 2:4] == 0).all()


def test_a_scale_over_all_groups_by_hand():
    """Variances 1 and 4 of two groups: over all, the root of their mean."""
    rewards = tensor([[1, 2, 3], [0, 2, 4]])[:, :, None, None]
    assert reward_scales(rewards, "all")[:, 0].tolist() == [pytest.approx(2.5**0.5)] * 2
    torch.testing.assert_close(
        component_advantages(rewards, "all")[1, :, 0, 0], tensor([-2, 0, 2]) / 2.5**0.5
    )


def test_a_reward_that_teaches_nothing_has_no_scale():
    rewards = torch.cat([random_rewards(shape=(1, 4, 2, 3)), torch.ones(1, 4, 2, 1)], -1)
    scales = reward_scales(rewards)[0]
    assert scales[:3].isfinite().all() and scales[3] == torch.inf
    torch.testing.assert_close(
        component_advantages(rewards)[0, ..., :3],
        (rewards - rewards.mean(1, keepdim=True))[0, ..., :3] / scales[:3],
    )
