"""The GDPO task: replay of cached SDE rollouts under the clipped objective (GDPO-Listener, Eq. 10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.config import GdpoConfig
from pipeline.tasks.table import TableTask
from policies.flow import checkpoint
from policies.flow.conditions import MODALITIES, Conditions
from policies.flow.model import ARFlow
from policies.flow.sde import replay_velocities, step_kl, step_log_probs
from policies.flow.training import FlowReplay, collate_conditions, flow_state, from_bytes
from policies.vla.training import batch_rows, rank_share
from rewards.policy_loss import clipped_policy_loss


@dataclass(frozen=True)
class GdpoTask(TableTask):
    """Eq. 10 over the groups in `table` (ROLLOUT_SCHEMA, a row a prompt), which `initial` sampled (a `learner.Task`).

    The behaviour policy is `initial`: its log-probs are replayed in `prepare`, not taken from the rollout, whose
    sums run in another order. So the ratio of the first step is exactly 1.
    """

    initial: str
    reference: str
    table: str
    seed: int
    config: GdpoConfig

    @property
    def steps(self) -> int:
        return self.config.sync_every

    @cached_property
    def flow(self) -> ARFlow:
        return checkpoint.load_flow(Path(self.initial)).train()

    def module(self) -> torch.nn.Module:
        return FlowReplay(self.flow)

    def prepare(self, forward: Callable[..., Any], rank: int, world_size: int) -> None:
        """Log-probs of the behaviour policy and velocities of the reference for every row, shared out over ranks."""
        device = next(self.flow.parameters()).device
        reference = checkpoint.load_flow(Path(self.reference)).to(device)
        mine = range(rank, len(self.rows), world_size)
        longest = -(-len(self.rows) // world_size)
        done = []
        with torch.no_grad():
            for i in [*mine, *[0] * (longest - len(mine))]:  # equal forward passes on every rank, for ZeRO-3
                row = {name: value.to(device) for name, value in self._row(i).items()}
                velocities = forward(_conditions(row), row["states"], self.config.chunk)
                tied = replay_velocities(reference, Conditions(**_conditions(row)), row["states"])
                done.append((step_log_probs(row["states"], velocities, self.config.sigma, self.config.reduction).cpu(),
                             tied.cpu()))
        shares: list[Any] = [None] * world_size
        dist.all_gather_object(shares, done)
        self.__dict__["replayed"] = [shares[i % world_size][i // world_size] for i in range(len(self.rows))]

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        order = batch_rows(step, self.config.batch_size, len(self.rows), self.seed)
        return {"rows": [self._row(int(i)) | dict(zip(("old", "reference"), self.replayed[int(i)], strict=True))
                         for i in rank_share(order, rank, world_size)]}

    def loss(self, forward: Callable[..., Any], batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Prompt by prompt, as in `prepare`: same shapes, hence the same sums to the last bit."""
        device = next(self.flow.parameters()).device
        losses, metrics = [], []
        for row in batch["rows"]:
            row = {name: value.to(device) for name, value in row.items()}
            velocities = forward(_conditions(row), row["states"], self.config.chunk)
            log_probs = step_log_probs(row["states"], velocities, self.config.sigma, self.config.reduction)
            kl = step_kl(velocities, row["reference"], self.config.sigma, self.config.reduction)
            mask = row["listening"][:, None].expand_as(log_probs[0])  # (group, latents, steps)
            loss, parts = clipped_policy_loss(
                log_probs[0], row["old"][0], row["advantages"], kl[0], self.config.clip, self.config.beta, mask)
            losses.append(loss)
            metrics.append(parts)
        mean = {name: torch.stack([parts[name] for parts in metrics]).mean() for name in metrics[0]}
        return torch.stack(losses).mean(), mean

    def save(self, state: dict[str, torch.Tensor], directory: Path) -> None:
        checkpoint.save(self.flow, directory, flow_state(state))

    def _row(self, index: int) -> dict[str, torch.Tensor]:
        """One prompt: conditions and `states` as a batch of 1, `advantages` (group,), `listening` (latents,)."""
        row, c = self.rows[index], self.flow.config
        group = len(row["advantages"])
        return collate_conditions([row], c) | {
            "states": from_bytes(row["states"], 1, group, c.window, self.config.steps + 1, c.latent_dim),
            "advantages": torch.tensor(row["advantages"]),
            "listening": torch.tensor(row["listening"]),
        }


def _conditions(row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: row[name] for name in (*MODALITIES, "present")}
