"""The GDPO task of the VLA: vLLM rollouts, rewards by FLAME group, a clipped policy gradient on
tokens.

Rewards and advantages are those of `rapport.pipeline.objectives.gdpo` (Eq. 8-9 of GDPO-Listener);
an action is a token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rapport.actors.fleet import Fleet, FleetOptions
from rapport.pipeline.config import GroupWeightsConfig, RewardConfig, VlaGdpoConfig
from rapport.pipeline.objectives.dynamics import DynamicsTask, Measured
from rapport.pipeline.objectives.vla import VlaTask
from rapport.policies.flow.training import from_bytes
from rapport.policies.motion import Motion
from rapport.policies.vla.loading import Checkpoint, load_checkpoint, serving_state_dict
from rapport.policies.vla.training import (
    PROMPT_COLUMNS,
    ActionLogits,
    collate_prompts,
    policy_state,
)
from rapport.policies.vla.trajectory import Prompt, Trajectory
from rapport.rewards.dynamics import Penalties, penalties
from rapport.rewards.policy_loss import clipped_policy_loss, importance_weights

# A prompt, the recorded listener's frames in the policy's layout, and when they listen.
LISTENER_SCHEMA = pa.schema(
    PROMPT_COLUMNS | {"recorded": pa.binary(), "listening": pa.list_(pa.bool_())}
)


@dataclass(frozen=True)
class VlaGdpoTask(DynamicsTask, VlaTask):
    """Eq. 10 on action tokens, from the policy in `initial`, which is also the fixed reference (a
    `learner.Task`).

    Every `gdpo.sync_every` steps the present weights become the behaviour policy: the learner of
    rank 0 hands them to its fleet, which answers new prompts. Log-probs of the behaviour policy are
    computed anew by the learners, so the ratio of the first step is exactly 1; what the engines say
    of the same tokens differs a little, as other kernels sum in another order, and that is
    corrected by truncated importance weights and reported as `mismatch`. The same weights correct
    for older weights of the engines where rollouts overlap learning (`gdpo.asynchronous`).

    Args:
        table: prompts (LISTENER_SCHEMA).
        limits: of the corpus in the policy's layout, see `rapport.rewards.dynamics.motion_limits`.
        losses: lost engines that the fleet replaces.
    """

    config: VlaGdpoConfig
    reward: RewardConfig
    groups: GroupWeightsConfig
    limits: Motion
    rollout: FleetOptions
    losses: int

    @cached_property
    def reference(self) -> ActionLogits:
        model = load_checkpoint(Path(self.initial)).model.requires_grad_(False).eval()
        return ActionLogits(model.to(self.device))

    @cached_property
    def behaviour(self) -> Checkpoint:
        """Holds the weights that were last given to the fleet; on the CPU of rank 0."""
        return load_checkpoint(Path(self.initial))

    @cached_property
    def fleet(self) -> Fleet:
        fleet = Fleet(
            Path(self.initial), self.behaviour.model, self.rollout, self.prompt(0), self.losses
        )
        fleet.ready()
        return fleet

    @property
    def device(self) -> torch.device:
        return next(self.checkpoint.model.parameters()).device

    def prompt(self, index: int) -> Prompt:
        row, sizes = self.rows[index], self.checkpoint.model.config
        frames = (
            None
            if row["frames"] is None
            else np.frombuffer(row["frames"], np.uint8)
            .reshape(sizes.frames, sizes.image_size, sizes.image_size, 3)
            .copy()
        )
        return Prompt(str(index), np.array(row["prompt"]), frames)

    def roll_out(self, state: dict[str, torch.Tensor], step: int) -> list[list[Trajectory]]:
        """`group_size` answers to each prompt of an iteration, sampled with the weights `state`."""
        iteration, chosen = self.chosen(step, len(self.rows))
        fleet = (
            self.fleet
        )  # before `behaviour` gets other weights than those the engines start with
        self.behaviour.model.load_state_dict(
            serving_state_dict(self.checkpoint.model, policy_state(state))
        )
        fleet.update(self.behaviour.model)
        groups: dict[str, list[Trajectory]] = {}
        seed = int(np.random.SeedSequence([self.seed, iteration]).generate_state(1)[0])
        prompts = (self.prompt(int(i)) for i in np.unique(chosen))
        for sampled in fleet.generate(prompts, self.config.group_size, seed):
            for trajectory in sampled:
                groups.setdefault(trajectory.prompt_id, []).append(trajectory)
        return [sorted(groups[str(i)], key=lambda t: t.sample) for i in chosen]

    def measured(self, groups: Sequence[Sequence[Trajectory]]) -> Measured:
        return [[self._penalties(trajectory) for trajectory in group] for group in groups]

    def _penalties(self, trajectory: Trajectory) -> Penalties:
        row, layout = self.rows[int(trajectory.prompt_id)], self.limits.layout
        recorded = Motion(from_bytes(row["recorded"], -1, layout.dim).numpy(), layout)
        generated = self.behaviour.actions.to_motion(trajectory.tokens)
        return penalties(generated, recorded, np.array(row["listening"]), self.limits)

    def loss(
        self, forward: Callable[..., Any], batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Prompt by prompt, as in the replay before: same shapes, hence the same sums to the last
        bit.
        """
        c, losses, metrics = self.config, [], []
        for row in batch["rows"]:
            log_probs = self._log_probs(forward, row)
            apart = row["reference"] - log_probs
            kl = (
                apart.exp() - apart - 1
            )  # not negative, and unbiased where the policy sampled (Schulman 2020)
            weights = importance_weights(row["old"], row["engine"], c.truncation)
            loss, parts = clipped_policy_loss(
                log_probs,
                row["old"],
                row["advantages"],
                kl,
                c.clip,
                c.beta,
                row["listening"],
                weights,
            )
            losses.append(loss)
            gap = (row["old"] - row["engine"]).abs()
            metrics.append(
                parts
                | {
                    "mismatch": gap.mean(),
                    "mismatch_max": gap.max(),
                    "truncated": (weights >= c.truncation).float().mean(),
                }
            )
        mean = {name: torch.stack([parts[name] for parts in metrics]).mean() for name in metrics[0]}
        return torch.stack(losses).mean(), mean

    def replayed(
        self, forward: Callable[..., Any], group: list[Trajectory], advantages: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One prompt: `actions`, `engine`, `old`, `reference` and the mask `listening`, all (group,
        tokens).
        """
        source = self.rows[int(group[0].prompt_id)]
        prompts, frames = collate_prompts([source], self.checkpoint.model.config)
        space = self.checkpoint.actions.space
        listened = np.array(source["listening"])[
            np.round(np.linspace(0, space.frames - 1, space.steps)).astype(int)
        ]
        row = {
            "prompts": prompts,
            "frames": frames,
            "actions": torch.from_numpy(np.stack([t.tokens for t in group]).astype(np.int64)),
            "engine": torch.from_numpy(np.stack([t.log_probs for t in group])),
            "advantages": advantages,
            "listening": torch.from_numpy(np.repeat(listened, space.dims)).expand(len(group), -1),
        }
        row = {name: value.to(self.device) for name, value in row.items()}
        return row | {
            "old": self._log_probs(forward, row),
            "reference": self._log_probs(self.reference, row),
        }

    def _log_probs(self, forward: Callable[..., Any], row: dict[str, torch.Tensor]) -> torch.Tensor:
        """Over the bins, at the temperature of the rollouts: (group, tokens) float32."""
        logits = forward(row["prompts"], row["frames"], row["actions"][None])[0]
        bins = (row["actions"] - self.checkpoint.model.config.action_token_start).unsqueeze(-1)
        return (
            torch.log_softmax(logits.float() / self.rollout.temperature, dim=-1)
            .gather(-1, bins)
            .squeeze(-1)
        )
