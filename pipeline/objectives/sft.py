"""The SFT task: L_SFT over recorded listeners (paper Eq. 7-9)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rapport.pipeline.config import SftConfig
from rapport.pipeline.objectives.vla import VlaTask
from rapport.policies.tables import batch_rows, rank_share
from rapport.policies.vla.loss import sft_loss
from rapport.policies.vla.training import collate_prompts


@dataclass(frozen=True)
class SftTask(VlaTask):
    """L_SFT over the examples in `table`, from the weights in `initial` (a `learner.Task`)."""

    config: SftConfig

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Whole clips; before them, in the first `window_share` of the steps, more clips cut to
        short windows.

        A whole clip is mostly told by its own past (the copycat problem of imitation); the first
        action of a window has no past, and the prompt must tell. Both hold about as many tokens.
        """
        model = self.checkpoint.model.config
        steps, first, window_at = model.action_steps, 0, None
        batch_size = self.config.batch_size
        if step < self.config.window_share * self.config.steps:
            steps = min(self.config.window_steps, model.action_steps)
            first = int(
                np.random.default_rng([self.seed, step]).integers(model.action_steps - steps + 1)
            )
            window_at = first
            batch_size *= max(
                1,
                (model.prompt_length + model.action_tokens)
                // (model.prompt_length + steps * model.action_dims),
            )
        order = batch_rows(step, batch_size, len(self.rows), self.seed)
        rows = [self.rows[int(i)] for i in rank_share(order, rank, world_size)]
        prompts, frames = collate_prompts(rows, model)
        window = slice(first * model.action_dims, (first + steps) * model.action_dims)
        return {
            "prompts": prompts,
            "frames": frames,
            "window_at": window_at,
            "actions": torch.tensor([r["actions"][window] for r in rows]),
        }

    def loss(
        self, forward: Callable[..., Any], batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits = forward(batch["prompts"], batch["frames"], batch["actions"], batch["window_at"])
        c = self.config
        return sft_loss(
            logits,
            batch["actions"],
            self.checkpoint.actions,
            c.lambda_exp,
            c.lambda_pose,
            c.lambda_reg,
        )
