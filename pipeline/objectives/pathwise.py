"""GDPO by the gradient of the rewards themselves, through decoder and denoising."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapport.pipeline.objectives.gdpo import Gdpo, Rollouts, recorded_of, rewarded_frames
from rapport.pipeline.objectives.objective import Forward, Loss, to_device
from rapport.pipeline.objectives.settings import FlowGdpoConfig
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.motion import Motion
from rapport.rewards.dynamics import group_rewards
from rapport.rewards.settings import RewardConfig


@dataclass(frozen=True, eq=False)
class RewardTerms:
    """What learners need to compute rewards.

    Args:
        config: form and components.
        weights: (components x FLAME groups,) of each reward.
        limits: of the corpus, see `motion_limits`.
    """

    config: RewardConfig
    weights: Tensor
    limits: Motion


class Pathwise(Gdpo):
    """Reactions by the ODE are made again from their noise, given the latents sampled before each.

    Their rewards, each over its standard deviation as under Eq. 8, are then functions of the
    weights, and so is their gradient: no likelihood is needed. What a latent does to later ones is
    left out, as in the clipped objective. In place of the KL stands half the squared distance of
    the latents from the reference's: the KL of Gaussians of unit width about them.

    Args:
        initial: as of `Gdpo`.
        table: as of `Gdpo`.
        config: as of `Gdpo`.
        seed: as of `Gdpo`.
        sampler: as of `Gdpo`.
        terms: of the rewards.
    """

    policy: FlowPolicy
    config: FlowGdpoConfig

    def __init__(
        self,
        initial: Path,
        table: Path,
        config: FlowGdpoConfig,
        *,
        seed: int,
        sampler: Any,
        terms: RewardTerms,
    ) -> None:
        super().__init__(initial, table, config, seed=seed, sampler=sampler)
        self.terms = terms

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """Minus the weighted mean of the rewards, and the tie to the reference."""
        losses = []
        parts = []
        for stored in batch["prompts_of_step"]:
            row = to_device(stored["tensors"], self.device)
            latents = self.policy.replayed(forward, row, stored["seed"])
            rewards = group_rewards(
                self.policy.decoder().decode(latents), stored["recorded"], self.terms.config
            ).flatten(2)
            normalised = (rewards.nan_to_num() / row["scales"]).to(latents.dtype)
            counted = row["rewarded_frames"].sum().clamp(min=1)
            weights = (self.terms.weights / self.terms.weights.sum()).to(normalised)
            reward = (normalised * weights).sum() / (len(latents) * counted)
            apart = (latents - row["reference"]).square().sum(-1) / 2
            rewarded = row["rewarded"].expand_as(apart)
            kl = _mean(apart, rewarded)
            held = _mean(apart, ~rewarded)
            losses.append(self.config.beta * kl + self.config.hold * held - reward)
            parts.append(torch.stack([kl, held, _slipped(latents, row)]).detach())
        means = torch.stack(parts).mean(0)
        names = ("kl/reference", "kl_unrewarded", "moved")
        return torch.stack(losses).mean(), dict(zip(names, means, strict=True))

    def _replayed(self, forward: Forward, rollouts: Rollouts) -> dict[str, Any]:
        """One prompt: its batch, what it is compared with, and the reference's latents."""
        scene = self.rows[rollouts.row]
        policy = self.policy
        batch = self._asked(rollouts)
        seed = rollouts.reactions[0].seed
        reference = self.reference
        assert isinstance(reference, FlowPolicy)
        frames = rewarded_frames(scene)
        row = batch | {
            "reference": reference.replayed(reference.module(), batch, seed),
            "rewarded": policy.of_actions(frames)[:, 0] >= 0.5,
            "rewarded_frames": torch.from_numpy(frames),
            "scales": rollouts.scales,
        }
        return {
            "tensors": to_device(row, torch.device("cpu")),
            "seed": seed,
            "recorded": recorded_of(scene, policy.layout, self.terms.limits),
        }


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


def _slipped(latents: Tensor, row: Mapping[str, Tensor]) -> Tensor:
    """How far latents have moved since they were sampled, root mean square."""
    return (latents - row["actions"][0]).square().mean().sqrt()
