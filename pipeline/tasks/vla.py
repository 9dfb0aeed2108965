"""What the learning tasks of the VLA policy share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.config import DpoConfig, PolicyConfig, SftConfig
from policies.vla.loading import Checkpoint, load_checkpoint, save_checkpoint
from policies.vla.lora import add_lora
from policies.vla.pretrained import freeze_streams
from policies.vla.training import ActionLogits, policy_state, read_table


@dataclass(frozen=True)
class VlaTask:
    """The policy in `initial`, trained on the rows of `table` (the common half of a `learner.Task`)."""

    initial: str
    table: str
    policy: PolicyConfig
    seed: int
    config: SftConfig | DpoConfig

    @property
    def learning_rate(self) -> float:
        return self.config.learning_rate

    @property
    def weight_decay(self) -> float:
        return self.config.weight_decay

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return trainable(Path(self.initial), self.policy)

    @cached_property
    def rows(self) -> Any:
        return read_table(Path(self.table))

    def module(self) -> torch.nn.Module:
        return ActionLogits(self.checkpoint.model)

    def prepare(self, forward: Callable[..., Any], rank: int, world_size: int) -> None:
        pass

    def save(self, state: dict[str, torch.Tensor], directory: Path) -> None:
        c = self.checkpoint
        save_checkpoint(c.model, c.tokenizer, c.actions, directory, policy_state(state))


def trainable(path: Path, config: PolicyConfig) -> Checkpoint:
    """A checkpoint with adapters added and towers frozen as the config says."""
    checkpoint = load_checkpoint(path)
    if config.lora_rank:
        add_lora(checkpoint.model, config.lora_rank, alpha=2.0 * config.lora_rank)
    if config.freeze_vision:
        freeze_streams(checkpoint.model)
    checkpoint.model.train()
    return checkpoint
