"""Reflow: the same answers in fewer evaluations (Liu et al. 2023, arXiv 2209.03003).

A latent and the noise that a teacher made it of are a pair; the velocity that leads from one to the
other on a straight line needs few steps. Every latent has the teacher's own past.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rapport.pipeline.objectives.objective import Forward, Loss, PolicyObjective
from rapport.pipeline.objectives.settings import DistilTraining
from rapport.policies.flow.conditions import MODALITIES
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.flow.training import from_bytes
from rapport.policies.tables import generator_of


class Reflow(PolicyObjective):
    """Eq. 4 over the answers in `table` (ANSWER_SCHEMA), each with its own noise."""

    config: DistilTraining
    policy: FlowPolicy

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Conditions, how much of them was heard, latents, their noise, and drawn flow times."""
        config = self.config
        sizes = self.policy.flow.config
        shape = (config.batch_size, 1, sizes.window, config.draws)
        time = torch.rand(shape, generator=generator_of(self.seed, step))
        rows = [self.rows[index] for index in self.share(step, rank, world_size)]

        def stacked(name: str) -> torch.Tensor:
            dims = (1, sizes.window, sizes.latent_dim)
            return torch.stack([from_bytes(row[name], *dims) for row in rows])

        return self.policy.collate(rows) | {
            "lead": torch.tensor([row["lead"] for row in rows]),
            "latents": stacked("latents"),
            "noise": stacked("noise").unsqueeze(3).expand(-1, -1, -1, config.draws, -1),
            "time": time[rank::world_size],
        }

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """Mean squared error of the velocities."""
        conditions = {name: batch[name] for name in (*MODALITIES, "present")}
        names = ("lead", "latents", "noise", "time")
        error = forward("straightened", conditions, *[batch[name] for name in names]).mean()
        return error, {"velocity": error.detach()}
