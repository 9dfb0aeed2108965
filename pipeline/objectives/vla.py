"""What the learning tasks of the VLA policy share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from rapport.pipeline.config import DpoConfig, PolicyConfig, SftConfig
from rapport.pipeline.objectives.table import TableTask
from rapport.policies.vla.loading import Checkpoint, load_checkpoint, save_checkpoint
from rapport.policies.vla.lora import add_lora
from rapport.policies.vla.pretrained import freeze_streams
from rapport.policies.vla.training import ActionLogits, policy_state


@dataclass(frozen=True)
class VlaTask(TableTask):
    """The policy in `initial`, trained on the rows of `table` (the common half of a
    `learner.Task`).
    """

    initial: str
    table: str
    policy: PolicyConfig
    seed: int
    config: SftConfig | DpoConfig

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return trainable(Path(self.initial), self.policy)

    def module(self) -> torch.nn.Module:
        return ActionLogits(self.checkpoint.model)

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
