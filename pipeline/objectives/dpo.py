"""DPO: preference pairs against a frozen reference (paper Eq. 11), whatever the policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor

from rapport.files import atomic
from rapport.pipeline.objectives.objective import Forward, Loss, PolicyObjective, to_device
from rapport.pipeline.objectives.settings import DpoConfig
from rapport.policies.policy import Policy, load_policy, weight_digest
from rapport.policies.tables import generator_of
from rapport.rewards.dpo_loss import PairLogProbs, dpo_loss

NAMES = ("chosen", "rejected")


class ReferenceMismatch(ValueError):
    """Stored reference log-probs belong to another policy, tokenizer or set of pairs."""


def pair_schema(policy: type[Policy] | Policy) -> pa.Schema:
    """Columns of a table of pairs: the prompt, both reactions, their scores, `made_for`, `learnt`.

    That is the other prompt whose speaker the rejected reaction answers, in a pair that no rater
    made; its scores are null. In a pair of raters it is null, as both answer the same speaker.
    `learnt` = the scores are those of a model of people's ratings.
    """
    reactions = dict.fromkeys(NAMES, policy.action_type)
    scores = {f"{name}_score": pa.float64() for name in NAMES}
    other = {"made_for": pa.string(), "learnt": pa.bool_()}
    return pa.schema(dict(policy.prompt_columns) | reactions | scores | other)


class Dpo(PolicyObjective):
    """Eq. 11 over the pairs in `table` (`pair_schema`).

    Where the likelihood has no noise of its own, the reference's is computed once and kept in
    `reference_file`, under the digests of weights and pairs. Where it has (AR-Flow), policy and
    reference meet the same noise in every step: Flow-DPO (Liu et al. 2025, arXiv 2501.13918).

    Args:
        initial: folder of the policy that learns.
        reference: folder of the frozen one.
        table: pairs.
        config: strength, loss, what counts.
        seed: of batches and draws.
        reference_file: of the reference's log-likelihoods.
        policy_config: the policy's own section.
    """

    TOGETHER = 2  # twins of contrast pairs
    config: DpoConfig

    def __init__(
        self,
        initial: Path,
        reference: Path,
        table: Path,
        config: DpoConfig,
        seed: int,
        reference_file: Path,
        policy_config: Any = None,
    ) -> None:
        super().__init__(
            initial, table, config, seed=seed, policy_config=policy_config, part=config.trained_part
        )
        self.reference = str(reference)
        self.reference_file = str(reference_file)
        self.reference_log_likelihoods: Tensor | None = None  # (pairs, 2), set by `prepare`

    @property
    def steps(self) -> int:
        """Optimiser steps of `epochs` passes over the pairs."""
        return max(1, self.config.epochs * len(self.rows) // self.config.batch_size)

    @cached_property
    def policy(self) -> Policy:
        """The policy that learns."""
        policy = load_policy(self.initial)
        policy.prepare_training(self.policy_config, self.part)
        policy.draw_count = self.config.likelihood_draws
        policy.forget_share = self.config.forget_share
        return policy

    @cached_property
    def reference_policy(self) -> Policy:
        """The frozen policy, whole on every rank; kept where every step asks for it."""
        return self._frozen_reference()

    def _frozen_reference(self) -> Policy:
        policy = load_policy(self.reference)
        policy.module().requires_grad_(False)
        if not policy.likelihood_draws:
            policy.module().eval()
        return policy.to(self.device)

    @cached_property
    def key(self) -> dict[str, str]:
        """What the reference's log-likelihoods belong to."""
        reference = load_policy(self.reference)
        return {
            "weights": weight_digest(reference.weights()),
            "actions": reference.action_digest,
            "pairs": pairs_digest(self.rows),
            "first_steps": str(self.config.counted_steps),
        }

    def prepare(self, forward: Forward, rank: int, world_size: int) -> None:
        """Log-likelihoods of every pair under the reference, shared out over the ranks."""
        if self.policy.likelihood_draws:
            return  # they belong to the noise of a step
        file = Path(self.reference_file)
        if not file.is_file():
            if self.reference != self.initial:
                forward = self._frozen_reference().module()
            mine = range(rank, len(self.rows), world_size)
            longest = -(-len(self.rows) // world_size)
            # As many forward passes on every rank, for ZeRO 3.
            indices = [*mine, *[0] * (longest - len(mine))]
            with torch.no_grad():
                computed = [self._reference_row(forward, index) for index in indices]
            shares: list[Any] = [None] * world_size
            dist.all_gather_object(shares, computed)
            if rank == 0:
                pairs = range(len(self.rows))
                values = [shares[i % world_size][i // world_size] for i in pairs]
                write_reference(file, values, self.key)
            dist.barrier()
        self.reference_log_likelihoods = read_reference(file, self.key)

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Pairs, and the reference's log-likelihoods or the noise to meet."""
        share = self.share(step, rank, world_size)
        batch = self._collate(share)
        if self.reference_log_likelihoods is not None:
            return batch | {"reference": self.reference_log_likelihoods[share]}
        # Twins meet the same noise, so that what a reaction has in common beside both of their
        # speakers cancels to the digit.
        size = self.config.batch_size
        drawn = self.policy.draws(-(-size // self.TOGETHER), generator_of(self.seed, step))
        rows = {
            name: value.repeat_interleave(self.TOGETHER, dim=0)[:size]
            for name, value in drawn.items()
        }
        return batch | {name: value[rank::world_size] for name, value in rows.items()}

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """The pair's loss: by how much more than the reference the chosen one is preferred."""
        config = self.config
        policy = self.policy.log_likelihood(forward, batch)
        drawn = "reference" not in batch
        if drawn:
            with torch.no_grad():
                module = self.reference_policy.module()
                reference = self.reference_policy.log_likelihood(module, batch)
        else:
            reference = batch["reference"]
        pairs = PairLogProbs(
            policy_chosen=policy[:, 0],
            policy_rejected=policy[:, 1],
            reference_chosen=reference[:, 0],
            reference_rejected=reference[:, 1],
            num_tokens=1 if drawn else batch["actions"].shape[2],
        )
        result = dpo_loss(
            pairs,
            config.beta,
            config.loss,
            score_margin=batch["margin"] if config.loss == "margin" else None,
            label_smoothing=config.label_smoothing if config.loss == "robust" else 0.0,
            chosen_nll=config.chosen_nll,
        )
        metrics = {name: values.mean() for name, values in result.metrics.items()}
        kl = metrics.pop("kl_per_token")
        if not drawn:  # errors are no log-probabilities
            metrics["kl/reference"] = kl
        return result.losses.mean(), metrics

    def _reference_row(self, forward: Forward, index: int) -> list[float]:
        device = self.device
        batch = to_device(self._collate([index]), device)
        return self.policy.log_likelihood(forward, batch)[0].tolist()

    def _collate(self, indices: Sequence[int]) -> dict[str, Any]:
        rows = [self.rows[int(index)] for index in indices]
        steps = self.config.counted_steps
        counted = [{name: self.policy.counted(row[name], steps) for name in NAMES} for row in rows]
        batch = self.policy.collate(rows) | {"actions": self.policy.collate_actions(counted, NAMES)}
        if self.config.loss == "margin":
            margins = [row["chosen_score"] - row["rejected_score"] for row in rows]
            batch["margin"] = torch.tensor(margins, dtype=torch.float32)
        return batch


def pairs_digest(rows: Dataset) -> str:
    """sha256 over prompts and both reactions of every pair, in order."""
    digest = hashlib.sha256()
    others = [*(f"{name}_score" for name in NAMES), "made_for", "learnt"]
    # A table of an earlier version lacks some of them.
    for row in rows.remove_columns([name for name in others if name in rows.column_names]):
        digest.update(json.dumps(row, default=bytes.hex).encode())
    return digest.hexdigest()


def write_reference(file: Path, values: Sequence[Sequence[float]], key: Mapping[str, str]) -> None:
    """Keep log-likelihoods of (pairs, 2); trials of a sweep may compute them at once."""
    chosen, rejected = zip(*values, strict=True)
    table = pa.table(
        {
            "reference_chosen": pa.array(chosen, pa.float64()),
            "reference_rejected": pa.array(rejected, pa.float64()),
        }
    )
    with atomic(file) as partial:
        pq.write_table(table.replace_schema_metadata(dict(key)), partial)


def read_reference(file: Path, key: Mapping[str, str]) -> Tensor:
    """Reference log-likelihoods (pairs, 2) float32.

    Raises:
        ReferenceMismatch: they belong to other weights, tokens or pairs.
    """
    table = pq.read_table(file)
    stored = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    wrong = [name for name in key if stored.get(name) != key[name]]
    if wrong:
        raise ReferenceMismatch(
            f"{file} holds reference log-probs of other {', '.join(wrong)}; "
            "delete it to compute them anew"
        )
    columns = [table["reference_chosen"].to_numpy(), table["reference_rejected"].to_numpy()]
    return torch.tensor(np.stack(columns, axis=1), dtype=torch.float32)
