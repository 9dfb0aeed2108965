"""Group-relative advantages: rewards normalised one by one in each group, or summed first.

One by one is GDPO: GDPO-Listener (arXiv 2603.25020), Eq. 8-9, which is the first two steps of GDPO
(Liu et al. 2026, arXiv 2601.05242); the third, over the batch, is `normalise_advantages`. Summed
first is GRPO: Shao et al. 2024, arXiv 2402.03300.

A reward that is missing is NaN. Tensors are float64 throughout: what comes in is small, and
differences count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Rewards travel in float32. What differs by less than this, relative to its size, differs by
# rounding, and dividing by such a standard deviation would make noise as loud as a preference.
ROUNDING = 1e-6


def decoupled_advantages(rewards: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """A^j of Eq. 8-9: each reward normalised in its own group, then the weighted mean over rewards.

    Standard deviations are unbiased (ddof 1), as in TRL and NVlabs' GDPO. There is no epsilon, as
    in the paper: TRL's 1e-4 would all but switch off a reward in squared radians. A missing reward
    is left out of the statistics of its group and gives its sample no push. A reward all whose
    values in the group are equal, or that only one sample has, gives exactly 0. Multiplying or
    shifting any reward, or multiplying all weights, changes nothing.

    Args:
        rewards: (groups, group_size, rewards), NaN where missing; whole groups, in which a sample
            whose rollout or reward failed keeps its place.
        weights: (rewards,) lambda_i, not negative, not all 0.

    Returns:
        (groups, group_size) float64.

    Raises:
        ValueError: another shape, groups of one, infinite rewards, or weights that do not fit.
    """
    components = component_advantages(rewards)
    weights = _check_weights(rewards, weights)
    return (components * weights).sum(-1) / weights.sum()


def component_advantages(rewards: Tensor) -> Tensor:
    """A_i^j of Eq. 8, (groups, group_size, rewards) float64: every reward for itself.

    See `decoupled_advantages`.
    """
    rewards = _check_rewards(rewards)
    is_present = ~rewards.isnan()
    count = is_present.sum(1, keepdim=True)
    values = rewards.nan_to_num()
    mean = values.sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(is_present, values - mean, 0.0)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(has_preference(rewards).unsqueeze(1), centred / std, 0.0)


def grpo_advantages(rewards: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """GRPO for comparison: the weighted sum of the rewards, normalised in its group.

    Arguments and result as in `decoupled_advantages`. A sample that lacks a reward of positive
    weight has no sum, so it is left out and gets 0.
    """
    weights = _check_weights(rewards, weights)
    total = torch.where(weights > 0, _check_rewards(rewards) * weights, 0.0).sum(-1, keepdim=True)
    return component_advantages(total).squeeze(-1)


def has_preference(rewards: Tensor) -> Tensor:
    """Whether a reward tells the samples of a group apart, (groups, rewards) bool.

    `1 - has_preference(rewards).double().mean(0)` is the share of groups in which each reward
    teaches nothing. A group is worth dropping only where it is false for every reward.
    """
    rewards = _check_rewards(rewards)
    highest = rewards.nan_to_num(nan=-torch.inf).amax(1)
    lowest = rewards.nan_to_num(nan=torch.inf).amin(1)
    magnitude = rewards.nan_to_num().abs().amax(1)
    return (highest - lowest) > ROUNDING * magnitude


def advantage_moments(advantages: Tensor, rewards: Tensor) -> Tensor:
    """Count, sum and sum of squares, (3,) float64, of the advantages of samples with any reward.

    Those of shards add up to those of the whole batch, so under data parallelism they are
    all-reduced (sum) before `normalise_advantages`.

    Args:
        advantages: (groups, group_size).
        rewards: (groups, group_size, rewards) that they were made from.
    """
    values = advantages.double()[_has_reward(advantages, rewards)]
    return torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])


def normalise_advantages(advantages: Tensor, rewards: Tensor, moments: Tensor) -> Tensor:
    """The batch step of the original GDPO: minus the mean, over the standard deviation (ddof 1).

    Mean and deviation are those of the whole batch. As groups are centred already, the step only
    rescales: it makes the sum of weights irrelevant, and with rewards that rarely differ it
    amplifies. A batch whose advantages are all equal gives 0.

    Args:
        advantages: (groups, group_size) of this shard.
        rewards: (groups, group_size, rewards) that they were made from.
        moments: (3,) `advantage_moments` of the whole batch.
    """
    count, total, squares = moments.double()
    mean = total / count.clamp(min=1)
    std = ((squares - count * mean.square()).clamp(min=0) / (count - 1).clamp(min=1)).sqrt()
    is_rewarded = _has_reward(advantages, rewards)
    if std <= ROUNDING * (squares / count.clamp(min=1)).sqrt():
        return torch.zeros_like(advantages.double())
    return torch.where(is_rewarded, (advantages.double() - mean) / std, 0.0)


def _has_reward(advantages: Tensor, rewards: Tensor) -> Tensor:
    if advantages.shape != rewards.shape[:2]:
        raise ValueError(
            f"advantages {tuple(advantages.shape)} are not of rewards {tuple(rewards.shape)}: "
            "(groups, group_size) and (groups, group_size, rewards)"
        )
    return ~rewards.isnan().all(-1)


def _check_rewards(rewards: Tensor) -> Tensor:
    if rewards.ndim != 3:
        raise ValueError(
            f"rewards must be (groups, group_size, rewards), got {tuple(rewards.shape)}"
        )
    if rewards.shape[1] < 2:
        raise ValueError(
            f"a group of {rewards.shape[1]} has nothing to compare with; group_size must be at "
            "least 2"
        )
    if rewards.isinf().any():
        group, sample, reward = rewards.isinf().nonzero()[0].tolist()
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
