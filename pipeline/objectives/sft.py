"""Imitation by the VLA: L_SFT over recorded listeners (paper Eq. 7-9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rapport.pipeline.objectives.objective import Forward, Loss, PolicyObjective
from rapport.pipeline.objectives.settings import SftConfig
from rapport.policies.vla.loss import sft_loss
from rapport.policies.vla.policy import VlaPolicy


class Sft(PolicyObjective):
    """L_SFT over the examples in `table` (SFT_SCHEMA)."""

    config: SftConfig
    policy: VlaPolicy

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Whole clips; before them, in the first `window_share` of the steps, short windows.

        Past actions predict most of a clip, so the policy can ignore the speaker (the copycat
        problem of imitation). The first action of a window has no past, and the prompt must tell.
        A batch of windows holds more clips, so that both hold about as many tokens.
        """
        sizes = self.policy.model.config
        steps = sizes.action_steps
        first = 0
        window_at = None
        batch_size = self.config.batch_size
        if step < self.config.window_share * self.config.steps:
            steps = min(self.config.window_steps, sizes.action_steps)
            rng = np.random.default_rng([self.seed, step])
            first = int(rng.integers(sizes.action_steps - steps + 1))
            window_at = first
            whole = sizes.prompt_length + sizes.action_tokens
            short = sizes.prompt_length + steps * sizes.action_dims
            batch_size *= max(1, whole // short)
        rows = [self.rows[index] for index in self.share(step, rank, world_size, batch_size)]
        window = slice(first * sizes.action_dims, (first + steps) * sizes.action_dims)
        actions = torch.tensor([row["actions"][window] for row in rows])
        return self.policy.collate(rows) | {"window_at": window_at, "actions": actions}

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """Cross-entropy by group of tokens, temporal coherence and identity."""
        logits = forward(batch["prompts"], batch["frames"], batch["actions"], batch["window_at"])
        return sft_loss(
            logits,
            batch["actions"],
            self.policy.actions,
            lambda_exp=self.config.lambda_exp,
            lambda_pose=self.config.lambda_pose,
            lambda_reg=self.config.lambda_reg,
        )
