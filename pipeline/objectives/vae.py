"""The motion VAE's task (GDPO-Listener, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rapport.pipeline.config import VaeConfig
from rapport.pipeline.objectives.table import TableTask
from rapport.policies.flow import checkpoint
from rapport.policies.flow.training import from_bytes, generator_of
from rapport.policies.flow.vae import MotionVAE, vae_loss
from rapport.policies.tables import batch_rows, rank_share


@dataclass(frozen=True)
class VaeTask(TableTask):
    """Reconstruction of the clips in `table` (MOTION_SCHEMA), from the weights in `initial` (a
    `learner.Task`).
    """

    initial: str
    table: str
    seed: int
    config: VaeConfig

    @cached_property
    def vae(self) -> MotionVAE:
        return checkpoint.load_vae(Path(self.initial)).train().requires_grad_(True)

    def module(self) -> torch.nn.Module:
        return self.vae

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        order = batch_rows(step, self.config.batch_size, len(self.rows), self.seed)
        config = self.vae.config
        frames = torch.stack(
            [
                from_bytes(self.rows[int(i)]["frames"], -1, config.layout.dim)
                for i in rank_share(order, rank, world_size)
            ]
        )
        noise = torch.randn(
            len(order),
            frames.shape[1] // config.downsample,
            config.latent_dim,
            generator=generator_of(self.seed, step),
        )
        return {"frames": frames, "noise": noise[rank::world_size]}

    def loss(
        self, forward: Callable[..., Any], batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return vae_loss(
            *forward(batch["frames"], batch["noise"]),
            self.config.velocity_weight,
            self.config.kl_weight,
        )

    def save(self, state: dict[str, torch.Tensor], directory: Path) -> None:
        checkpoint.save(self.vae, directory, state)
