"""Imitation by AR-Flow: rectified flow over recorded windows (GDPO-Listener, Eq. 4).

Beside it, where `expect` is above 0, what to expect of a face.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rapport.pipeline.objectives.objective import Forward, Loss, PolicyObjective
from rapport.pipeline.objectives.settings import FlowTraining
from rapport.policies.flow.conditions import MODALITIES, draw_leads, dropout_mask
from rapport.policies.flow.loss import paths
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.flow.training import from_bytes
from rapport.policies.tables import generator_of


class RectifiedFlow(PolicyObjective):
    """Eq. 4 over the windows in `table` (FLOW_SCHEMA)."""

    config: FlowTraining
    policy: FlowPolicy

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Conditions, of which some are dropped, how much of them is heard, latents, noise, times.

        Drawn for the whole batch, so that nothing depends on how it is shared.
        """
        config = self.config
        sizes = self.policy.flow.config
        generator = generator_of(self.seed, step)
        shape = (config.batch_size, 1, sizes.window, config.draws)
        noise = torch.randn(*shape, sizes.latent_dim, generator=generator)
        time = torch.rand(shape, generator=generator)
        lead = draw_leads(config.batch_size, config.whole_share, generator)
        kept = dropout_mask(
            config.batch_size, config.drop_each, config.drop_all, generator=generator
        )
        remembers = torch.rand(config.batch_size, generator=generator) >= config.drop_past
        rows = [self.rows[index] for index in self.share(step, rank, world_size)]
        share = slice(rank, None, world_size)
        conditions = self.policy.collate(rows)
        latents = [from_bytes(row["latents"], 1, sizes.window, sizes.latent_dim) for row in rows]
        stacked = torch.stack(latents)
        return (
            conditions
            | {
                "present": conditions["present"] & kept[share].to(conditions["present"].device),
                "lead": lead[share],
                "latents": stacked,
                "noise": noise[share],
                "time": time[share],
                "remembers": remembers[share],
            }
            | self._paths(stacked.squeeze(1).to(conditions["present"].device))
        )

    def _paths(self, latents: Tensor) -> dict[str, Tensor]:
        """What is to be expected of latents (share, n, latent_dim), by a policy that expects."""
        if self.policy.flow.config.path is None:
            return {}
        return {"path": paths(self.policy.decoder(), latents)}

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """Mean squared errors of the velocities, and of what is expected."""
        conditions = {name: batch[name] for name in (*MODALITIES, "present")}
        names = ("lead", "latents", "noise", "time", "remembers")
        given = [batch[name] for name in names]
        velocity, path = forward("imitation", conditions, *given, batch.get("path"))
        loss = velocity + self.config.expect * path
        return loss, {"velocity": velocity.detach(), "path": path.detach()}
