"""GDPO whatever the policy: iterations, and from measured motion to advantages."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from rapport.pipeline.config import GdpoConfig, GroupWeightsConfig, RewardConfig, VlaGdpoConfig
from rapport.pipeline.objectives.ahead import OneAhead
from rapport.pipeline.objectives.table import TableTask
from rapport.policies.motion import Motion
from rapport.policies.tables import batch_rows, rank_share
from rapport.rewards.advantage import (
    decoupled_advantages,
    grpo_advantages,
    moments,
    normalise,
    spreads,
)
from rapport.rewards.dynamics import COMPONENTS, DynamicsWeights, Penalties, group_rewards

Measured = Sequence[Sequence[Penalties]]  # prompt by prompt, of each of its samples


class DynamicsTask(TableTask):
    """Base of the GDPO tasks: every `sync_every` steps, new groups are sampled, rewarded,
    normalised and replayed.

    What a group is, how it is sampled, measured and replayed is the policy's.
    """

    config: GdpoConfig | VlaGdpoConfig
    reward: RewardConfig
    groups: GroupWeightsConfig
    limits: Motion
    seed: int

    def roll_out(self, state: dict[str, torch.Tensor], step: int) -> list[Any]:
        """The groups of an iteration, sampled with the weights `state` of the module."""
        raise NotImplementedError

    def measured(self, groups: Sequence[Any]) -> Measured:
        raise NotImplementedError

    def replayed(
        self, forward: Callable[..., Any], group: Any, advantages: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """What `loss` needs of a group, with log-probs of the behaviour policy and what ties it to
        the reference.
        """
        raise NotImplementedError

    def has_reward(self, group: Any) -> bool:
        return True

    @property
    def steps(self) -> int:
        return self.config.iterations * self.config.sync_every

    @property
    def refresh_every(self) -> int:
        return self.config.sync_every

    @property
    def names(self) -> tuple[str, ...]:
        """FLAME groups, the rewards of GDPO."""
        return self.limits.layout.names

    def refresh(
        self,
        forward: Callable[..., Any],
        state: dict[str, torch.Tensor],
        step: int,
        rank: int,
        world_size: int,
    ) -> dict[str, float]:
        """An iteration: roll out, reward, normalise, replay. Collective."""
        iteration: list[Any] = [None]
        metrics: dict[str, float] = {}
        if rank == 0:
            began = time.monotonic()
            sampled = self.sampled(state, step)
            measured = self.measured(sampled)
            rewards = rewards_of(measured, self.reward)
            iteration = [(sampled, advantages_of(rewards, self.groups, self.names, self.config))]
            seen = [i for i, group in enumerate(sampled) if self.has_reward(group)]
            metrics = (
                reward_metrics([measured[i] for i in seen], rewards[seen], self.names)
                if seen
                else {}
            )
            metrics["rollout_s"] = time.monotonic() - began
        dist.broadcast_object_list(iteration)
        sampled, advantages = iteration[0]
        with torch.no_grad():
            self.__dict__["replay"] = [
                self.replayed(forward, sampled[i], advantages[i])
                for i in range(rank, len(sampled), world_size)
            ]
        return metrics

    def sampled(self, state: dict[str, torch.Tensor], step: int) -> list[Any]:
        """The groups of an iteration, of the weights `state` or, where rollouts overlap learning,
        of those before.
        """
        if not self.config.asynchronous:
            return self.roll_out(state, step)
        following = step + self.config.sync_every
        return self.ahead.take(
            self.roll_out, state, step, following if following < self.steps else None
        )

    @cached_property
    def ahead(self) -> OneAhead[list[Any]]:
        return OneAhead()

    def chosen(self, step: int, size: int) -> tuple[int, np.ndarray]:
        """The number of the iteration that begins with `step`, and which of `size` prompts it is
        about.
        """
        iteration, count = (
            step // self.config.sync_every,
            self.config.sync_every * self.config.batch_size,
        )
        return iteration, batch_rows(iteration, count, size, self.seed)

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        share = len(rank_share(np.arange(self.config.batch_size), rank, world_size))
        first = step % self.config.sync_every * share
        return {"rows": self.replay[first : first + share]}


def rewards_of(measured: Measured, config: RewardConfig) -> torch.Tensor:
    """(prompts, group_size, FLAME groups) float64, NaN where missing."""
    weights = DynamicsWeights(**config.model_dump())
    values = [
        [list(group_rewards(sample, weights).values()) for sample in samples]
        for samples in measured
    ]
    return torch.tensor(values, dtype=torch.float64)


def advantages_of(
    rewards: torch.Tensor,
    groups: GroupWeightsConfig,
    names: Sequence[str],
    config: GdpoConfig | VlaGdpoConfig,
) -> torch.Tensor:
    """A^j of Eq. 8-9, (prompts, group_size), over a whole iteration at once.

    Args:
        rewards: as `rewards_of` returns them, one for each of the FLAME groups `names`.
    """
    weights = [getattr(groups, name) for name in names]
    estimate = decoupled_advantages if config.estimator == "gdpo" else grpo_advantages
    advantages = estimate(rewards, weights)
    return (
        normalise(advantages, rewards, moments(advantages, rewards))
        if config.batch_norm
        else advantages
    )


def reward_metrics(
    measured: Measured, rewards: torch.Tensor, names: Sequence[str]
) -> dict[str, float]:
    """Means over samples: `reward/GROUP`, `penalty/COMPONENT/GROUP`; `zero_std/GROUP`, the share of
    prompts in which a reward teaches nothing; `missing`, the share of rewards that are. A mean of
    nothing is left out."""
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
