"""GDPO, the learner's side: rollouts replayed under the clipped objective (Eq. 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapport.pipeline.objectives.objective import Forward, Loss, PolicyObjective, to_device
from rapport.pipeline.objectives.settings import GdpoConfig
from rapport.policies.flow.training import from_bytes
from rapport.policies.motion import Layout, Motion
from rapport.policies.policy import Policy, Reaction, load_policy
from rapport.policies.tables import rank_share
from rapport.rewards.dynamics import Recorded, enough_listening
from rapport.rewards.policy_loss import PolicyActions, clipped_policy_loss, importance_weights


@dataclass(frozen=True, eq=False)
class Rollouts:
    """The reactions to one prompt, and how much better than each other they are.

    Args:
        row: of the prompt in the table of scenes.
        reactions: the group.
        advantages: (group, frames), of frames in which somebody listens; 0 elsewhere.
        scales: (rewards,) standard deviation of each reward; infinite where it teaches nothing.
    """

    row: int
    reactions: Sequence[Reaction]
    advantages: Tensor
    scales: Tensor


class Gdpo(PolicyObjective):
    """Eq. 10 from the policy in `initial`, which is also the fixed reference.

    Every `sync_every` steps the recipe gives rollouts of the present weights. Their log-probs are
    computed anew by the learners, because engines sum in another order: so the ratio of the first
    step is exactly 1. What other kernels differ in is corrected by truncated importance weights
    (`largest_weight`) and reported as `mismatch`. Where engines are the learners' own code and
    rollouts overlap learning, the rollouts' own log-probs are taken: the weights that sampled them
    are no longer there.

    Args:
        initial: folder of the policy.
        table: scenes, see `steps.rewarding.Scenes`.
        config: the loop and its objective.
        seed: of the choice of prompts.
        sampler: how the rollouts were sampled.
        policy_config: the policy's own section.
    """

    config: GdpoConfig

    def __init__(
        self,
        initial: Path,
        table: Path,
        config: GdpoConfig,
        seed: int,
        sampler: Any,
        policy_config: Any = None,
    ) -> None:
        super().__init__(initial, table, config, seed=seed, policy_config=policy_config)
        self.sampler = sampler
        self.replay: list[dict[str, Tensor]] = []  # this rank's prompts of the present iteration

    @property
    def steps(self) -> int:
        """Optimiser steps of all iterations."""
        return self.config.updates

    @property
    def refresh_every(self) -> int | None:
        """Steps on rollouts of one behaviour policy."""
        return self.config.sync_every

    @cached_property
    def policy(self) -> Policy:
        """The policy that learns."""
        policy = load_policy(self.initial)
        policy.prepare_training(self.policy_config)
        policy.sampler = self.sampler
        return policy

    @cached_property
    def reference(self) -> Policy:
        """The policy as it was, frozen."""
        policy = load_policy(self.initial)
        policy.module().requires_grad_(False)
        policy.sampler = self.sampler
        return policy.to(self.device)

    def refresh(
        self, forward: Forward, experience: Sequence[Rollouts], rank: int, world_size: int
    ) -> None:
        """Replay this rank's share of an iteration under the present weights. Collective."""
        with torch.no_grad():
            self.replay = [
                self._replayed(forward, experience[index])
                for index in range(rank, len(experience), world_size)
            ]

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """This rank's prompts of the step."""
        share = len(rank_share(np.arange(self.config.batch_size), rank, world_size))
        first = step % self.config.sync_every * share
        return {"prompts_of_step": self.replay[first : first + share]}

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """Eq. 10 where there is a reward; elsewhere the policy is held to the reference.

        Prompt by prompt, as in the replay before: same shapes, hence the same sums to the last bit.
        """
        config = self.config
        losses = []
        metrics = []
        for stored in batch["prompts_of_step"]:
            row = to_device(stored, self.device)
            current = self.policy.likelihood(forward, row)
            kl = self.policy.kl(current, row["reference"], row)
            rewarded = row["rewarded"].expand_as(current.log_probs)
            weights = None
            if config.largest_weight is not None:
                weights = importance_weights(row["old"], row["engine"], config.largest_weight)
            actions = PolicyActions(
                log_probs=current.log_probs,
                old_log_probs=row["old"],
                advantages=row["advantages"],
                kl=kl,
                mask=rewarded,
                weights=weights,
            )
            clipped = clipped_policy_loss(actions, config.clip, config.beta)
            loss = clipped.loss
            parts = clipped.metrics
            if config.hold_weight is not None:
                held = torch.where(rewarded, 0.0, kl).sum() / (~rewarded).sum().clamp(min=1)
                loss = loss + config.hold_weight * held
                parts["kl_unrewarded"] = held.detach()
            if weights is not None and config.largest_weight is not None:
                parts |= self._mismatch(row, weights, config.largest_weight)
            parts["kl/reference"] = parts.pop("kl")
            losses.append(loss)
            metrics.append(parts)
        seen = {name: torch.stack([parts[name] for parts in metrics]) for name in metrics[0]}
        means = {n: v.max() if n.endswith("_max") else v.mean() for n, v in seen.items()}
        return torch.stack(losses).mean(), means

    def _mismatch(
        self, row: Mapping[str, Tensor], weights: Tensor, largest: float
    ) -> dict[str, Tensor]:
        gap = (row["old"] - row["engine"]).abs()
        truncated = weights >= largest
        return {
            "mismatch": gap.mean(),
            "mismatch_max": gap.max(),
            "truncated": truncated.float().mean(),
        }

    def _replayed(self, forward: Forward, rollouts: Rollouts) -> dict[str, Tensor]:
        """One prompt: its batch, `advantages`, masks, and log-probs of old policy and reference."""
        policy = self.policy
        batch = self._asked(rollouts)
        reference = self.reference.likelihood(self.reference.module(), batch).density
        engine = torch.from_numpy(np.stack([log_probs_of(r) for r in rollouts.reactions]))
        old = engine
        if not self.config.asynchronous or self.config.largest_weight is not None:
            old = policy.likelihood(forward, batch).log_probs
        row = batch | {
            "advantages": policy.of_actions(rollouts.advantages.numpy()),
            "engine": engine,
            "old": old,
            "reference": reference,
            "rewarded": policy.of_actions(rewarded_frames(self.rows[rollouts.row])) >= 0.5,
        }
        return to_device(row, torch.device("cpu"))

    def _asked(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """A prompt and the reactions to it, on the learner's device."""
        prompt = self.policy.collate([self.rows[rollouts.row]])
        return to_device(prompt | self.policy.collate_group(rollouts.reactions), self.device)


def rewarded_frames(scene: Mapping[str, Any]) -> np.ndarray:
    """(frames,) bool: where the actor of a scene listens, if they do for long enough."""
    listening = np.array(scene["listening"])
    return listening & enough_listening(listening)


def recorded_of(scene: Mapping[str, Any], layout: Layout, limits: Motion) -> Recorded:
    """What reactions to the prompt of a scene are compared with."""
    frames = from_bytes(scene["recorded"], -1, layout.dim).numpy()
    return Recorded(Motion(frames, layout), np.array(scene["listening"]), limits)


def log_probs_of(reaction: Reaction) -> np.ndarray:
    """Those of the weights that sampled it.

    Raises:
        ValueError: its sampler did not keep them, so it cannot be learnt from.
    """
    if reaction.log_probs is None:
        raise ValueError(f"the reaction to {reaction.prompt_id} has no log-probs")
    return reaction.log_probs
