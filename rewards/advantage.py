"""Group-relative advantages: rewards normalised one by one in each group, or summed first.

One by one is GDPO: GDPO-Listener (arXiv 2603.25020), Eq. 8-9, as in GDPO (Liu et al. 2026, arXiv
2601.05242). Summed first is GRPO: Shao et al. 2024, arXiv 2402.03300.

Rewards stand at places of a sample (frames): a place is compared with the same place of the other
samples, so that an action is credited with what was seen where it acted. A reward of a whole sample
has the same value at each of its places.

A reward that is missing is NaN. Tensors are float64 throughout: what comes in is small, and
differences count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

# Over which groups the standard deviation of a reward is taken: each by itself as in Eq. 8, or all
# that are given. By itself, a group whose recorded listener is unlike its samples counts less, as
# its rewards differ by more: so who is unusual is heard less, and listeners become alike.
Scale = Literal["all", "group"]

# Rewards travel in float32. What differs by less than this, relative to its size, differs by
# rounding, and dividing by such a standard deviation would make noise as loud as a preference.
ROUNDING = 1e-6


def decoupled_advantages(
    rewards: Tensor, weights: Sequence[float] | Tensor, scale: Scale = "group"
) -> Tensor:
    """A^j of Eq. 8-9: each reward normalised in its own group, then the weighted mean over rewards.

    There is no epsilon, as in the paper: TRL's 1e-4 would all but switch off a reward in squared
    radians. A missing reward is left out of the statistics of its group and gives its sample no
    push. A reward all whose values in the group are equal, or that only one sample has, gives
    exactly 0. Multiplying or shifting any reward, or multiplying all weights, changes nothing.

    Args:
        rewards: (groups, group_size, places, rewards), NaN where missing; whole groups, in which a
            sample whose rollout or reward failed keeps its place.
        weights: (rewards,) lambda_i, not negative, not all 0.
        scale: over which groups a standard deviation is taken.

    Returns:
        (groups, group_size, places) float64.

    Raises:
        ValueError: another shape, groups of one, infinite rewards, or weights that do not fit.
    """
    components = component_advantages(rewards, scale)
    weights = _check_weights(rewards, weights)
    return (components * weights).sum(-1) / weights.sum()


def component_advantages(rewards: Tensor, scale: Scale = "group") -> Tensor:
    """A_i^j of Eq. 8, (groups, group_size, places, rewards) float64: every reward for itself.

    Centred at every place, and over the standard deviation within places, unbiased (one degree of
    freedom a place), as in TRL and NVlabs' GDPO. See `decoupled_advantages`.
    """
    scales = reward_scales(rewards, scale)[:, None, None]
    return _centred(_check_rewards(rewards)) / scales


def grpo_advantages(
    rewards: Tensor, weights: Sequence[float] | Tensor, scale: Scale = "group"
) -> Tensor:
    """GRPO for comparison: the weighted sum of the rewards, normalised in its group.

    Arguments and result as in `decoupled_advantages`. Where a sample lacks a reward of positive
    weight it has no sum, so it is left out and gets 0.
    """
    weights = _check_weights(rewards, weights)
    total = torch.where(weights > 0, _check_rewards(rewards) * weights, 0.0).sum(-1, keepdim=True)
    return component_advantages(total, scale).squeeze(-1)


def reward_scales(rewards: Tensor, scale: Scale = "group") -> Tensor:
    """What `component_advantages` divides by, (groups, rewards) float64; infinite where it is 0.

    For gradients of the rewards themselves: each is then as loud as under Eq. 8.
    """
    rewards = _check_rewards(rewards)
    count = (~rewards.isnan()).sum(1)
    freedom = (count - 1).clamp(min=0).sum(1)
    squares = _centred(rewards).square().sum((1, 2))
    if scale == "all":
        freedom = freedom.sum(0, keepdim=True)
        squares = squares.sum(0, keepdim=True)
    std = (squares / freedom.clamp(min=1)).sqrt().expand(len(rewards), -1)
    return torch.where(has_preference(rewards), std, torch.inf)


def has_preference(rewards: Tensor) -> Tensor:
    """Whether a reward tells the samples of a group apart at any place, (groups, rewards) bool.

    `1 - has_preference(rewards).double().mean(0)` is the share of groups in which each reward
    teaches nothing. A group is worth dropping only where it is false for every reward.
    """
    rewards = _check_rewards(rewards)
    highest = rewards.nan_to_num(nan=-torch.inf).amax(1)
    lowest = rewards.nan_to_num(nan=torch.inf).amin(1)
    magnitude = rewards.nan_to_num().abs().amax(1)
    return ((highest - lowest) > ROUNDING * magnitude).any(1)


def _centred(rewards: Tensor) -> Tensor:
    """Rewards less the mean of their place over the samples; 0 where one is missing."""
    is_present = ~rewards.isnan()
    values = rewards.nan_to_num()
    mean = values.sum(1, keepdim=True) / is_present.sum(1, keepdim=True).clamp(min=1)
    return torch.where(is_present, values - mean, 0.0)


def _check_rewards(rewards: Tensor) -> Tensor:
    if rewards.ndim != 4:
        raise ValueError(
            f"rewards must be (groups, group_size, places, rewards), got {tuple(rewards.shape)}"
        )
    if rewards.shape[1] < 2:
        raise ValueError(
            f"a group of {rewards.shape[1]} has nothing to compare with; group_size must be at "
            "least 2"
        )
    if rewards.isinf().any():
        group, sample, _, reward = rewards.isinf().nonzero()[0].tolist()
        raise ValueError(
            f"reward {reward} of sample {sample} in group {group} is infinite; NaN marks a "
            "missing one"
        )
    return rewards.double()


def _check_weights(rewards: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    weights = torch.as_tensor(weights, dtype=torch.float64, device=rewards.device)
    if weights.shape != rewards.shape[-1:]:
        raise ValueError(
            f"{tuple(weights.shape)} weights for rewards of shape {tuple(rewards.shape)}; one each"
        )
    if not (weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError(
            f"weights {weights.tolist()} must be finite and not negative, and not all 0"
        )
    return weights
