"""The SFT task: L_SFT over recorded listeners (paper Eq. 7-9)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.config import SftConfig
from pipeline.tasks.vla import VlaTask
from policies.vla.loss import sft_loss
from policies.vla.training import batch_rows, collate_prompts, rank_share


@dataclass(frozen=True)
class SftTask(VlaTask):
    """L_SFT over the examples in `table`, from the weights in `initial` (a `learner.Task`)."""

    config: SftConfig

    @property
    def steps(self) -> int:
        return self.config.steps

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """First, for `motion_share` of the steps, how listeners move, whatever is said: short stretches of many clips,
        without the prompt. Then what they answer: whole clips with it. Both hold about as many tokens.

        Within a whole clip the past tells nearly everything (the copycat problem of imitation), so what is learned of
        motion there is learned more cheaply from stretches.
        """
        model = self.checkpoint.model.config
        dims, steps = model.action_dims, min(self.config.motion_steps, model.action_steps - 1)
        motion = steps > 0 and step < self.config.motion_share * self.config.steps
        batch_size = self.config.batch_size
        if motion:
            batch_size *= max(1, (model.prompt_length + model.action_tokens) // (steps * dims))
        order = batch_rows(step, batch_size, len(self.rows), self.seed)
        rows = [self.rows[int(i)] for i in rank_share(order, rank, world_size)]
        if motion:
            first = int(np.random.default_rng([self.seed, step]).integers(1, model.action_steps - steps + 1)) * dims
            actions = torch.tensor([r["actions"][first - 1 : first + steps * dims] for r in rows])
            return {"prompts": None, "frames": None, "inputs": actions, "actions": actions[:, 1:], "start": first - 1}
        prompts, frames = collate_prompts(rows, model)
        actions = torch.tensor([r["actions"] for r in rows])
        return {"prompts": prompts, "frames": frames, "inputs": actions, "actions": actions, "start": 0}

    def loss(self, forward: Callable[..., Any], batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits = forward(batch["prompts"], batch["frames"], batch["inputs"], batch["start"])
        c = self.config
        return sft_loss(logits, batch["actions"], self.checkpoint.actions, c.lambda_exp, c.lambda_pose, c.lambda_reg)
