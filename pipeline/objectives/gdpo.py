"""The GDPO task: iterations of SDE rollouts, rewards by group and replay under the clipped
objective (Eq. 7-10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapport.actors.flow_rollout import FlowFleet, FlowFleetOptions, Group, Sampling
from rapport.pipeline.config import GdpoConfig, GroupWeightsConfig, RewardConfig
from rapport.pipeline.objectives.dynamics import DynamicsTask, Measured
from rapport.policies.flow import checkpoint
from rapport.policies.flow.conditions import MODALITIES, Conditions
from rapport.policies.flow.model import ARFlow
from rapport.policies.flow.sde import replay_velocities, step_kl, step_log_probs
from rapport.policies.flow.training import FlowReplay, collate_conditions, flow_state, of_latents
from rapport.policies.motion import Motion
from rapport.rewards.policy_loss import clipped_policy_loss


@dataclass(frozen=True)
class GdpoTask(DynamicsTask):
    """Eq. 10 from the supervised policy in `initial`, which is also the fixed reference (a
    `learner.Task`).

    Every `gdpo.sync_every` steps the present weights become the behaviour policy: the learner of
    rank 0 has its fleet sample new groups with them. Their log-probs are replayed by the learners,
    not taken from the rollout, whose sums run in another order: so the ratio of the first step is
    exactly 1. Only where rollouts overlap learning (`gdpo.asynchronous`) they are the rollout's:
    the weights that sampled are no longer there.

    Args:
        table: windows (WINDOW_SCHEMA); prompts are those in which somebody listens.
        vae: checkpoint.
        limits: of the corpus, see `rapport.rewards.dynamics.motion_limits`.
    """

    initial: str
    table: str
    vae: str
    limits: Motion
    seed: int
    config: GdpoConfig
    reward: RewardConfig
    groups: GroupWeightsConfig
    rollout: FlowFleetOptions

    @cached_property
    def flow(self) -> ARFlow:
        return checkpoint.load_flow(Path(self.initial)).train()

    @cached_property
    def reference(self) -> ARFlow:
        reference = checkpoint.load_flow(Path(self.initial)).requires_grad_(False)
        return reference.to(next(self.flow.parameters()).device)

    @cached_property
    def listened(self) -> np.ndarray:
        """(rows,) bool: whether the actor listens in the greater part of some latent, so that there
        is a reward.
        """
        masks = (of_latents(mask, self.flow.config.downsample) for mask in self.rows["listening"])
        return np.array([mask.any() for mask in masks])

    @cached_property
    def prompts(self) -> list[int]:
        """Rows with a reward, and as many without as `gdpo.anchor_share` asks, in which it is held."""
        rewarded, others = np.flatnonzero(self.listened), np.flatnonzero(~self.listened)
        share = self.config.anchor_share
        anchors = others[: round(len(rewarded) * share / (1 - share))]
        return np.concatenate([rewarded, anchors]).tolist()

    @cached_property
    def fleet(self) -> FlowFleet:
        c = self.config
        sampling = Sampling(
            c.group_size, c.steps, c.sigma, c.reduction, c.corrected, c.shared_start
        )
        return FlowFleet(
            Path(self.initial),
            Path(self.vae),
            Path(self.table),
            self.limits,
            sampling,
            self.rollout,
        )

    def module(self) -> torch.nn.Module:
        return FlowReplay(self.flow)

    def roll_out(self, state: dict[str, torch.Tensor], step: int) -> list[Group]:
        iteration, chosen = self.chosen(step, len(self.prompts))
        seeds = np.random.SeedSequence([self.seed, iteration]).generate_state(len(chosen)).tolist()
        self.fleet.update(flow_state(state), step)
        return self.fleet.roll_out([self.prompts[i] for i in chosen], seeds)

    def measured(self, groups: Sequence[Group]) -> Measured:
        return [group.penalties for group in groups]

    def has_reward(self, group: Group) -> bool:
        return bool(self.listened[group.row])

    def replayed(
        self, forward: Callable[..., Any], group: Group, advantages: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        row = self._row(group, advantages)
        device_row = self._to_device(row)
        tied = replay_velocities(
            self.reference, Conditions(**_conditions(device_row)), device_row["states"]
        )
        if self.config.asynchronous:  # sampled with other weights than the present ones
            old = group.log_probs[None]
        else:
            velocities = forward(_conditions(device_row), device_row["states"], self.config.chunk)
            old = self._log_probs(device_row["states"], velocities).cpu()
        return row | {"old": old, "reference": tied.cpu()}

    def loss(
        self, forward: Callable[..., Any], batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Eq. 10 where the actor listens; where they speak nothing is rewarded, the policy is held
        to the reference.

        Prompt by prompt, as in the replay before: same shapes, hence the same sums to the last bit.
        """
        c, losses, metrics = self.config, [], []
        for row in map(self._to_device, batch["rows"]):
            velocities = forward(_conditions(row), row["states"], c.chunk)
            log_probs = self._log_probs(row["states"], velocities)
            kl = step_kl(velocities, row["reference"], c.sigma, c.reduction, c.corrected)
            mask = row["listening"][:, None].expand_as(log_probs[0])  # (group, latents, steps)
            loss, parts = clipped_policy_loss(
                log_probs[0], row["old"][0], row["advantages"], kl[0], c.clip, c.beta, mask
            )
            speaking = row["speaking"][:, None].expand_as(mask)
            speaking_kl = torch.where(speaking, kl[0], 0.0).sum() / speaking.sum().clamp(min=1)
            losses.append(loss + c.hold * speaking_kl)
            metrics.append(parts | {"kl_speaking": speaking_kl.detach()})
        mean = {name: torch.stack([parts[name] for parts in metrics]).mean() for name in metrics[0]}
        return torch.stack(losses).mean(), mean

    def _log_probs(self, states: torch.Tensor, velocities: torch.Tensor) -> torch.Tensor:
        c = self.config
        return step_log_probs(states, velocities, c.sigma, c.reduction, c.corrected)

    def save(self, state: dict[str, torch.Tensor], directory: Path) -> None:
        checkpoint.save(self.flow, directory, flow_state(state))

    def _row(self, group: Group, advantages: torch.Tensor) -> dict[str, torch.Tensor]:
        """One prompt: conditions and `states` as a batch of 1, `advantages` (group,), the masks
        (latents,).
        """
        row, sizes = self.rows[group.row], self.flow.config
        return collate_conditions([row], sizes) | {
            "states": group.states.unsqueeze(0),
            "advantages": advantages,
            **{
                part: torch.from_numpy(of_latents(row[part], sizes.downsample))
                for part in ("listening", "speaking")
            },
        }

    def _to_device(self, row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        device = next(self.flow.parameters()).device
        return {name: value.to(device) for name, value in row.items()}


def _conditions(row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: row[name] for name in (*MODALITIES, "present")}
