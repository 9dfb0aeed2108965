"""The Flow-DPO task: preference pairs for AR-Flow against a frozen reference (Liu et al. 2025,
arXiv 2501.13918).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from rapport.pipeline.config import FlowDpoConfig
from rapport.pipeline.objectives.flow import ArFlowTask
from rapport.policies.flow import checkpoint
from rapport.policies.flow.conditions import MODALITIES
from rapport.policies.flow.training import (
    CONDITION_COLUMNS,
    FlowErrors,
    collate_conditions,
    from_bytes,
)
from rapport.policies.tables import rank_share
from rapport.rewards.dpo_loss import dpo_loss

# A prompt's conditions and two reactions to it, as latents (window, latent_dim).
FLOW_PAIR_SCHEMA = pa.schema(
    CONDITION_COLUMNS
    | {
        "chosen": pa.binary(),
        "rejected": pa.binary(),
        "chosen_score": pa.float64(),
        "rejected_score": pa.float64(),
    }
)


@dataclass(frozen=True)
class FlowDpoTask(ArFlowTask):
    """-log sigmoid(-beta / 2 [(e_w - e_w,ref) - (e_l - e_l,ref)]) over the pairs in `table` (a
    `learner.Task`).

    e is the rectified-flow error of a reaction (Eq. 4 of GDPO-Listener), averaged over its latents,
    their dims and the draws; both reactions of a pair, and policy and reference, meet the same
    noise at the same flow times. So it is DPO's loss with -e / 2 in place of a log-probability.

    Args:
        initial: the policy that learns, which is also the fixed reference.
    """

    initial: str
    table: str
    seed: int
    config: FlowDpoConfig

    @property
    def steps(self) -> int:
        return max(1, self.config.epochs * len(self.rows) // self.config.batch_size)

    @cached_property
    def reference(self) -> FlowErrors:
        reference = FlowErrors(checkpoint.load_flow(Path(self.initial)).requires_grad_(False))
        return reference.to(next(self.flow.parameters()).device)

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        order, noise, time, _ = self.drawn(step)
        rows = [self.rows[int(i)] for i in rank_share(order, rank, world_size)]
        sizes, share = self.flow.config, slice(rank, None, world_size)
        reactions = [
            torch.stack([from_bytes(row[name], sizes.window, sizes.latent_dim) for row in rows])
            for name in ("chosen", "rejected")
        ]
        return collate_conditions(rows, sizes) | {
            "streaming": torch.zeros(len(rows), dtype=torch.bool),
            "latents": torch.stack(reactions, dim=1),
            "noise": noise[share].expand(-1, 2, -1, -1, -1),
            "time": time[share].expand(-1, 2, -1, -1),
        }

    def loss(
        self, forward: Callable[..., Any], batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        policy = self._likelihoods(forward, batch)
        with torch.no_grad():
            reference = self._likelihoods(self.reference, batch)
        losses, metrics = dpo_loss(
            policy[:, 0],
            policy[:, 1],
            reference[:, 0],
            reference[:, 1],
            self.config.beta,
            num_tokens=1,
        )
        del metrics["kl_per_token"]  # no log-probabilities here
        return losses.mean(), {name: values.mean() for name, values in metrics.items()}

    @staticmethod
    def _likelihoods(errors: Callable[..., Any], batch: dict[str, Any]) -> torch.Tensor:
        """-e / 2 of chosen and rejected, (batch, 2)."""
        conditions = {name: batch[name] for name in (*MODALITIES, "present")}
        return (
            -errors(
                conditions, batch["streaming"], batch["latents"], batch["noise"], batch["time"]
            ).mean((2, 3))
            / 2
        )
