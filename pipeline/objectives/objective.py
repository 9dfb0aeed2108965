"""What learning from the rows of a table has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from rapport.policies.policy import Policy, load_policy
from rapport.policies.tables import batch_rows, rank_share, read_table

Forward = Callable[..., Any]
Loss = tuple[Tensor, dict[str, Tensor]]  # mean over a share of the batch, and metrics of it


class TableObjective:
    """Base of objectives over a file of `write_table` (a `learner.Objective`).

    Args:
        table: the file.
        config: the section that says how long and how fast to learn.
        seed: of batches and draws.
    """

    TOGETHER = 1  # rows that follow each other and are learnt in one step

    def __init__(self, table: Path, config: Any, seed: int) -> None:
        self.table = str(table)
        self.config = config
        self.seed = seed

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.config.steps

    @property
    def learning_rate(self) -> float:
        """At its peak."""
        return self.config.learning_rate

    @property
    def weight_decay(self) -> float:
        """Of AdamW."""
        return self.config.weight_decay

    @property
    def refresh_every(self) -> int | None:
        """A table does not change: no experience is asked for."""
        return None

    @cached_property
    def rows(self) -> Dataset:
        """Read from the mapped file as they are asked for."""
        return read_table(Path(self.table))

    def share(
        self, step: int, rank: int, world_size: int, batch_size: int | None = None
    ) -> list[int]:
        """This rank's rows of a step.

        Args:
            step: of the optimiser.
            rank: of this learner.
            world_size: learners.
            batch_size: over all learners; None = that of the config.
        """
        order = batch_rows(
            step,
            batch_size or self.config.batch_size,
            len(self.rows),
            seed=self.seed,
            together=self.TOGETHER,
        )
        shared: list[int] = rank_share(order, rank, world_size).tolist()
        return shared

    def checkpoint_gradients(self) -> None:
        """There are no blocks whose inputs could be kept alone."""
        raise NotImplementedError(
            f"{type(self).__name__} computes nothing twice; leave "
            "learner.gradient_checkpointing=false"
        )

    def prepare(self, forward: Forward, rank: int, world_size: int) -> None:
        """Nothing to compute before learning."""

    def refresh(self, forward: Forward, experience: Any, rank: int, world_size: int) -> None:
        """The table is all there is to learn from."""


class PolicyObjective(TableObjective):
    """Base of objectives that train a policy.

    Args:
        initial: folder of the policy that learns.
        table: the file.
        config: the objective's section.
        seed: of batches and draws.
        policy_config: the policy's own section (adapters, frozen parts); None = it has none.
        part: which weights learn, a word of the policy's own.
    """

    def __init__(
        self,
        initial: Path,
        table: Path,
        config: Any,
        seed: int,
        policy_config: Any = None,
        part: str = "all",
    ) -> None:
        super().__init__(table, config, seed)
        self.initial = str(initial)
        self.policy_config = policy_config
        self.part = part

    @cached_property
    def policy(self) -> Policy:
        """The policy that learns."""
        policy = load_policy(self.initial)
        policy.prepare_training(self.policy_config, self.part)
        return policy

    def module(self) -> nn.Module:
        """What is trained."""
        return self.policy.module()

    def checkpoint_gradients(self) -> None:
        """See the policy's."""
        self.policy.checkpoint_gradients()

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.module().parameters()).device

    def save(self, state: Mapping[str, Tensor], directory: Path) -> dict[str, float]:
        """Write the policy with the weights `state`; returns what that loses, as metrics."""
        self.policy.save(directory, state)
        return self.policy.rounding(state)


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The tensors of a batch on a device."""
    return {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
