"""The DPO task: preference pairs against a frozen reference (paper Eq. 11)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from rapport.pipeline.config import DpoConfig
from rapport.pipeline.objectives.vla import VlaTask, trainable
from rapport.policies.tables import batch_rows, rank_share
from rapport.policies.vla.loading import Checkpoint, load_checkpoint, weight_digest
from rapport.policies.vla.pretrained import freeze_language_model
from rapport.policies.vla.training import ActionLogits, collate_prompts
from rapport.rewards.dpo_loss import dpo_loss


class ReferenceMismatch(ValueError):
    """Stored reference log-probs belong to another policy, tokenizer or set of pairs."""


@dataclass(frozen=True)
class DpoTask(VlaTask):
    """Eq. 11 over the pairs in `table` (a `learner.Task`), on the first `config.first_steps` action
    steps.

    The log-probability of a beginning is that of the sequence with what follows summed out, so this
    is DPO on beginnings. That early tokens carry the preference is known of language models (Shao
    et al. 2025, arXiv 2502.14340); here, over whole clips the policy learns to make bad reactions
    go on badly instead of not starting them.

    Reference log-probs are computed once with the weights in `reference` and kept in
    `reference_file`, keyed by the digests of weights, action tokens and pairs, and the steps that
    count."""

    config: DpoConfig
    reference: str
    reference_file: str

    @cached_property
    def checkpoint(self) -> Checkpoint:
        checkpoint = trainable(Path(self.initial), self.policy)
        if self.config.train == "inputs":
            freeze_language_model(checkpoint.model)
        return checkpoint

    @property
    def steps(self) -> int:
        return max(1, self.config.epochs * len(self.rows) // self.config.batch_size)

    @cached_property
    def key(self) -> dict[str, str]:
        """What the reference log-probs belong to."""
        fresh = load_checkpoint(Path(self.reference))
        return {
            "weights": weight_digest(fresh.model.state_dict()),
            "actions": fresh.actions.digest,
            "pairs": pairs_digest(self.rows),
            "first_steps": str(self.config.first_steps),
        }

    def prepare(self, forward: Callable[..., Any], rank: int, world_size: int) -> None:
        """Reference log-probs of every pair, shared out over the ranks."""
        file = Path(self.reference_file)
        if not file.is_file():
            if self.reference != self.initial:
                forward = self._reference_policy()
            mine = range(rank, len(self.rows), world_size)
            longest = -(-len(self.rows) // world_size)
            indices = [
                *mine,
                *[0] * (longest - len(mine)),
            ]  # equal forward passes on every rank, for ZeRO-3
            with torch.no_grad():
                computed = [self._reference_row(forward, i) for i in indices]
            shares: list[Any] = [None] * world_size
            dist.all_gather_object(shares, computed)
            if rank == 0:
                values = [shares[i % world_size][i // world_size] for i in range(len(self.rows))]
                write_reference(file, values, self.key)
            dist.barrier()
        self.__dict__["reference_log_probs"] = read_reference(file, self.key)

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        order = batch_rows(step, self.config.batch_size, len(self.rows), self.seed)
        share = rank_share(order, rank, world_size)
        return self._collate(share) | {"reference": self.reference_log_probs[share]}

    def loss(
        self, forward: Callable[..., Any], batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        policy, reference = self._log_probs(forward, batch), batch["reference"]
        robust, margin = self.config.loss == "robust", self.config.loss == "margin"
        losses, metrics = dpo_loss(
            policy[:, 0],
            policy[:, 1],
            reference[:, 0],
            reference[:, 1],
            self.config.beta,
            self.config.loss,
            score_margin=batch["margin"] if margin else None,
            label_smoothing=self.config.label_smoothing if robust else 0.0,
            num_tokens=batch["actions"].shape[-1],
        )
        return losses.mean(), {name: values.mean() for name, values in metrics.items()}

    def _reference_policy(self) -> Callable[..., Any]:
        """The frozen policy, whole on every rank and only for as long as its log-probs are
        computed.
        """
        model = load_checkpoint(Path(self.reference)).model
        return ActionLogits(model.to(next(self.checkpoint.model.parameters()).device).eval())

    def _reference_row(self, forward: Callable[..., Any], index: int) -> list[float]:
        device = next(self.checkpoint.model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in self._collate([index]).items()}
        return self._log_probs(forward, batch)[0].tolist()

    def _collate(self, indices: Any) -> dict[str, Any]:
        rows = [self.rows[int(i)] for i in indices]
        config = self.checkpoint.model.config
        prompts, frames = collate_prompts(rows, config)
        counted = (
            None
            if self.config.first_steps is None
            else self.config.first_steps * config.action_dims
        )
        return {
            "prompts": prompts,
            "frames": frames,
            "actions": torch.tensor(
                [[r["chosen"][:counted], r["rejected"][:counted]] for r in rows]
            ),
            "margin": torch.tensor(
                [r["chosen_score"] - r["rejected_score"] for r in rows], dtype=torch.float32
            ),
        }

    def _log_probs(self, forward: Callable[..., Any], batch: dict[str, Any]) -> torch.Tensor:
        """Log-probs over the bins, summed over the tokens given (batch, 2): chosen, rejected."""
        actions = batch["actions"]
        logits = forward(batch["prompts"], batch["frames"], actions)
        bins = (actions - self.checkpoint.model.config.action_token_start).unsqueeze(-1)
        return torch.log_softmax(logits.float(), dim=-1).gather(-1, bins).squeeze(-1).sum(-1)


def pairs_digest(rows: datasets.Dataset) -> str:
    """sha256 over prompts and both reactions of every pair, as token ids, in order."""
    digest = hashlib.sha256()
    for row in rows.select_columns(["prompt_id", "prompt", "chosen", "rejected"]):
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def write_reference(file: Path, values: list[list[float]], key: dict[str, str]) -> None:
    chosen, rejected = zip(*values, strict=True)
    table = pa.table(
        {
            "reference_chosen": pa.array(chosen, pa.float64()),
            "reference_rejected": pa.array(rejected, pa.float64()),
        }
    )
    partial = file.with_name(
        f"{file.name}.{os.getpid()}.tmp"
    )  # trials of a sweep may compute them at once
    pq.write_table(table.replace_schema_metadata(key), partial)
    partial.replace(file)


def read_reference(file: Path, key: dict[str, str]) -> torch.Tensor:
    """Reference log-probs (pairs, 2) float32. Raises when they belong to other weights, tokens or
    pairs.
    """
    table = pq.read_table(file)
    stored = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    wrong = [name for name in key if stored.get(name) != key[name]]
    if wrong:
        raise ReferenceMismatch(
            f"{file} holds reference log-probs of other {', '.join(wrong)}; delete it to compute "
            "them anew"
        )
    columns = [table["reference_chosen"].to_numpy(), table["reference_rejected"].to_numpy()]
    return torch.tensor(np.stack(columns, axis=1), dtype=torch.float32)
