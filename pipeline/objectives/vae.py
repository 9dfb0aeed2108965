"""The motion VAE in front of AR-Flow (GDPO-Listener, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rapport.pipeline.objectives.objective import Forward, Loss, TableObjective
from rapport.pipeline.objectives.settings import VaeTraining
from rapport.policies.flow import checkpoint
from rapport.policies.flow.training import from_bytes
from rapport.policies.flow.vae import MotionVAE, vae_loss
from rapport.policies.tables import generator_of


class MotionCode(TableObjective):
    """Reconstruction of the clips in `table` (MOTION_SCHEMA).

    Args:
        initial: folder of the VAE before training.
        table: the file.
        config: how it is trained.
        seed: of batches and noise.
    """

    config: VaeTraining

    def __init__(self, initial: Path, table: Path, config: VaeTraining, seed: int) -> None:
        super().__init__(table, config, seed)
        self.initial = str(initial)

    @cached_property
    def vae(self) -> MotionVAE:
        """The VAE that learns."""
        return checkpoint.load_vae(Path(self.initial)).train().requires_grad_(True)

    def module(self) -> nn.Module:
        """What is trained."""
        return self.vae

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Frames (share, time, dim), and the noise of their latents."""
        sizes = self.vae.config
        batch_size = self.config.batch_size
        motions = [self.rows[index]["frames"] for index in self.share(step, rank, world_size)]
        frames = torch.stack([from_bytes(motion, -1, sizes.layout.dim) for motion in motions])
        latents = frames.shape[1] // sizes.downsample
        generator = generator_of(self.seed, step)
        noise = torch.randn(batch_size, latents, sizes.latent_dim, generator=generator)
        return {"frames": frames, "noise": noise[rank::world_size]}

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """Reconstruction, velocities, and the KL to N(0, I)."""
        coded = forward(batch["frames"], batch["noise"])
        loss, parts = vae_loss(
            *coded,
            velocity_weight=self.config.velocity_weight,
            kl_weight=self.config.kl_weight,
        )
        parts["kl/prior"] = parts.pop("kl")
        return loss, parts

    def save(self, state: Mapping[str, Tensor], directory: Path) -> dict[str, float]:
        """Write the VAE with the weights `state`; nothing is lost."""
        checkpoint.save(self.vae, directory, state)
        return {}
