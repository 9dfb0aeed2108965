"""From measured motion to advantages, the same for every policy that GDPO trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.config import GdpoConfig, GroupWeightsConfig, RewardConfig, VlaGdpoConfig
from rewards.advantage import decoupled_advantages, grpo_advantages, moments, normalise, spreads
from rewards.dynamics import COMPONENTS, DynamicsWeights, Penalties, group_rewards

Measured = Sequence[Sequence[Penalties]]  # prompt by prompt, of each of its samples


def rewards_of(measured: Measured, config: RewardConfig) -> torch.Tensor:
    """(prompts, group_size, FLAME groups) float64, NaN where missing."""
    weights = DynamicsWeights(**config.model_dump())
    values = [[list(group_rewards(sample, weights).values()) for sample in samples] for samples in measured]
    return torch.tensor(values, dtype=torch.float64)


def advantages_of(
    rewards: torch.Tensor, groups: GroupWeightsConfig, names: Sequence[str], config: GdpoConfig | VlaGdpoConfig
) -> torch.Tensor:
    """A^j of Eq. 8-9, (prompts, group_size), over a whole iteration at once.

    Args:
        rewards: as `rewards_of` returns them, one for each of the FLAME groups `names`.
    """
    weights = [getattr(groups, name) for name in names]
    estimate = decoupled_advantages if config.estimator == "gdpo" else grpo_advantages
    advantages = estimate(rewards, weights)
    return normalise(advantages, rewards, moments(advantages, rewards)) if config.batch_norm else advantages


def reward_metrics(measured: Measured, rewards: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """Means over samples: `reward/GROUP`, `penalty/COMPONENT/GROUP`; `zero_std/GROUP`, the share of prompts in which a
    reward teaches nothing; `missing`, the share of rewards that are. A mean of nothing is left out."""
    flat = rewards.flatten(0, 1)
    values = {f"reward/{name}": float(flat[:, i].nanmean()) for i, name in enumerate(names)}
    for component in COMPONENTS:
        for name in names:
            given = [sample[component][name] for samples in measured for sample in samples]
            values[f"penalty/{component}/{name}"] = float(torch.tensor(given).nanmean())
    silent = 1 - spreads(rewards).double().mean(0)
    values |= {f"zero_std/{name}": float(share) for name, share in zip(names, silent, strict=True)}
    values["reward"], values["missing"] = float(flat.nanmean()), float(flat.isnan().double().mean())
    return {name: value for name, value in values.items() if np.isfinite(value)}
