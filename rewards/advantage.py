"""Group-relative advantages: rewards normalised one by one within each group (GDPO), or summed
first (GRPO).

Sources: GDPO-Listener (arXiv 2603.25020), Eq. 8-9, which is the first two steps of GDPO (Liu et al.
2026, arXiv 2601.05242); the third, over the batch, is `normalise`. GRPO: Shao et al. 2024, arXiv
2402.03300.

A reward that is missing is NaN. Tensors are float64 throughout: what comes in is small, and
differences count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Equal up to rounding of float32, in which rewards travel. A spread below this is no preference,
# however small the unit: dividing it by itself would make noise of it as loud as a real one.
ROUNDING = 1e-6


def complete_groups(prompt_ids: Sequence[str], group_size: int) -> Tensor:
    """Where the samples of each prompt are: (groups, group_size) int64 indices, prompts in order of
    appearance.

    A sample whose rollout or reward failed keeps its place and has NaN rewards. Raises `ValueError`
    when a prompt has another number of samples: its group is split between processes, or samples
    were dropped."""
    places: dict[str, list[int]] = {}
    for place, prompt_id in enumerate(prompt_ids):
        places.setdefault(prompt_id, []).append(place)
    wrong = {
        prompt_id: len(found) for prompt_id, found in places.items() if len(found) != group_size
    }
    if wrong:
        shown = ", ".join(
            f"{prompt_id} has {count}" for prompt_id, count in list(wrong.items())[:3]
        )
        raise ValueError(
            f"{len(wrong)} of {len(places)} groups are not of group_size={group_size}: {shown}; "
            "gather whole groups first, mark failed samples as NaN instead of dropping them"
        )
    return torch.tensor(list(places.values()), dtype=torch.int64).reshape(-1, group_size)


def decoupled_advantages(rewards: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """A^j of Eq. 8-9: each reward normalised in its own group, then the weighted mean over rewards.

    Standard deviations are unbiased (ddof 1), as in TRL and NVlabs' GDPO. There is no epsilon, as
    in the paper: TRL's 1e-4 would all but switch off a reward in squared radians. A missing reward
    is left out of the statistics of its group and gives its sample no push. A reward all whose
    values in the group are equal, or that only one sample has, gives exactly 0.

    Args:
        rewards: (groups, group_size, rewards), NaN where missing; whole groups (see
            `complete_groups`).
        weights: (rewards,) lambda_i, not negative, not all 0.

    Returns:
        (groups, group_size) float64. Multiplying or shifting any reward, or all weights, changes
        nothing.
    """
    components = component_advantages(rewards)
    weights = _weights(rewards, weights)
    return (components * weights).sum(-1) / weights.sum()


def component_advantages(rewards: Tensor) -> Tensor:
    """A_i^j of Eq. 8, (groups, group_size, rewards) float64: every reward for itself. See
    `decoupled_advantages`.
    """
    rewards = _checked(rewards)
    given = ~rewards.isnan()
    count = given.sum(1, keepdim=True)
    values = rewards.nan_to_num()
    centred = torch.where(given, values - values.sum(1, keepdim=True) / count.clamp(min=1), 0.0)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    differs = spreads(rewards).unsqueeze(1)
    return torch.where(differs, centred / std, 0.0)


def grpo_advantages(rewards: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """GRPO for comparison: the weighted sum of the rewards, normalised in its group.

    Arguments and result as in `decoupled_advantages`; a sample that lacks a reward of positive
    weight has no sum, so it is left out and gets 0."""
    weights = _weights(rewards, weights)
    total = torch.where(weights > 0, _checked(rewards) * weights, 0.0).sum(-1, keepdim=True)
    return component_advantages(total).squeeze(-1)


def spreads(rewards: Tensor) -> Tensor:
    """(groups, rewards) bool: whether a reward tells the samples of a group apart.

    `1 - spreads(rewards).double().mean(0)` is the share of groups in which each reward teaches
    nothing. A group is worth dropping only where it is false for every reward."""
    rewards = _checked(rewards)
    highest = rewards.nan_to_num(nan=-torch.inf).amax(1)
    lowest = rewards.nan_to_num(nan=torch.inf).amin(1)
    magnitude = rewards.nan_to_num().abs().amax(1)
    return (highest - lowest) > ROUNDING * magnitude


def moments(advantages: Tensor, rewards: Tensor) -> Tensor:
    """(3,) float64: count, sum and sum of squares of the advantages of samples that have any
    reward.

    Those of shards add up to those of the whole batch, so under data parallelism they are
    all-reduced (sum) before `normalise`.

    Args:
        advantages: (groups, group_size).
        rewards: (groups, group_size, rewards) that they were made from.
    """
    values = advantages.double()[_scored(advantages, rewards)]
    return torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])


def normalise(advantages: Tensor, rewards: Tensor, batch: Tensor) -> Tensor:
    """The batch step of the original GDPO: minus the mean, over the standard deviation (ddof 1) of
    the whole batch.

    As groups are centred already, it only rescales: it makes the sum of weights irrelevant, and
    with rewards that rarely differ it amplifies (notes 4.1). A batch without spread gives 0.

    Args:
        advantages, rewards: this shard's, as in `moments`.
        batch: (3,) moments of the whole batch.
    """
    count, total, squares = batch.double()
    mean = total / count.clamp(min=1)
    std = ((squares - count * mean.square()).clamp(min=0) / (count - 1).clamp(min=1)).sqrt()
    scored = _scored(advantages, rewards)
    if std <= ROUNDING * (squares / count.clamp(min=1)).sqrt():
        return torch.zeros_like(advantages.double())
    return torch.where(scored, (advantages.double() - mean) / std, 0.0)


def _scored(advantages: Tensor, rewards: Tensor) -> Tensor:
    if advantages.shape != rewards.shape[:2]:
        raise ValueError(
            f"advantages {tuple(advantages.shape)} are not of rewards {tuple(rewards.shape)}: "
            "(groups, group_size) and (groups, group_size, rewards)"
        )
    return ~rewards.isnan().all(-1)


def _checked(rewards: Tensor) -> Tensor:
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


def _weights(rewards: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
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
