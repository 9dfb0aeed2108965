"""AR-Flow's supervised task (GDPO-Listener, Eq. 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapport.pipeline.config import FlowConfig, FlowDpoConfig
from rapport.pipeline.objectives.table import TableTask
from rapport.policies.flow import checkpoint
from rapport.policies.flow.conditions import MODALITIES, dropout_mask
from rapport.policies.flow.model import ARFlow
from rapport.policies.flow.training import (
    FlowErrors,
    collate_conditions,
    flow_state,
    from_bytes,
    generator_of,
)
from rapport.policies.tables import batch_rows, rank_share


class ArFlowTask(TableTask):
    """Base of the tasks that train AR-Flow by its errors, from the weights in `initial`."""

    initial: str
    seed: int
    config: FlowConfig | FlowDpoConfig

    @cached_property
    def flow(self) -> ARFlow:
        return checkpoint.load_flow(Path(self.initial)).train()

    def module(self) -> torch.nn.Module:
        return FlowErrors(self.flow)

    def drawn(self, step: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor, torch.Generator]:
        """Rows of the whole batch, noise (batch, 1, window, draws, latent_dim) and times (batch, 1,
        window, draws).

        Drawn for the whole batch, so that they do not depend on how it is shared; the generator may
        draw more."""
        order = batch_rows(step, self.config.batch_size, len(self.rows), self.seed)
        generator, sizes = generator_of(self.seed, step), self.flow.config
        shape = (len(order), 1, sizes.window, self.config.draws)
        noise = torch.randn(*shape, sizes.latent_dim, generator=generator)
        return order, noise, torch.rand(shape, generator=generator), generator

    def save(self, state: dict[str, torch.Tensor], directory: Path) -> None:
        checkpoint.save(self.flow, directory, flow_state(state))


@dataclass(frozen=True)
class FlowTask(ArFlowTask):
    """Eq. 4 over the windows in `table` (FLOW_SCHEMA), from the weights in `initial` (a
    `learner.Task`).
    """

    initial: str
    table: str
    seed: int
    config: FlowConfig

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        order, noise, time, generator = self.drawn(step)
        rows = [self.rows[int(i)] for i in rank_share(order, rank, world_size)]
        config, share = self.flow.config, slice(rank, None, world_size)
        streaming = torch.rand(len(order), generator=generator) < self.config.streaming_share
        kept = dropout_mask(len(order), self.config.drop_each, self.config.drop_all, generator)
        conditions = collate_conditions(rows, config)
        return conditions | {
            "present": conditions["present"] & kept[share],
            "streaming": streaming[share],
            "latents": torch.stack(
                [from_bytes(r["latents"], 1, config.window, config.latent_dim) for r in rows]
            ),
            "noise": noise[share],
            "time": time[share],
        }

    def loss(
        self, forward: Callable[..., Any], batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        conditions = {name: batch[name] for name in (*MODALITIES, "present")}
        errors = forward(
            conditions, batch["streaming"], batch["latents"], batch["noise"], batch["time"]
        )
        return errors.mean(), {}
