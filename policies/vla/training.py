"""What learners of the VLA share: columns of their tables, batches, the trained module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.model import FaceVLA

PROMPT_COLUMNS = {"prompt_id": pa.string(), "prompt": pa.list_(pa.int32()), "frames": pa.binary()}
SFT_SCHEMA = pa.schema(PROMPT_COLUMNS | {"actions": pa.list_(pa.int32())})


def collate_prompts(
    rows: Sequence[Mapping[str, Any]], config: FaceVLAConfig
) -> tuple[Tensor, Tensor]:
    """Prompt ids (batch, prompt_length) and frames (batch, frames, size, size, 3) uint8.

    A row without video gets blank pixels here, which the model never looks at: its prompt says
    <absent>. They are there so that every rank runs the vision towers and gradients are reduced in
    the same order.
    """
    shape = (config.frames, config.image_size, config.image_size, 3)
    frames = [
        np.zeros(shape, np.uint8)
        if r["frames"] is None
        else np.frombuffer(r["frames"], np.uint8).reshape(shape)
        for r in rows
    ]
    return torch.tensor([r["prompt"] for r in rows]), torch.from_numpy(np.stack(frames))


class ActionLogits(nn.Module):
    """The network whose forward pass is `action_logits`, or `window_logits`.

    Sharded training hooks into the forward pass.
    """

    def __init__(self, policy: FaceVLA):
        super().__init__()
        self.policy = policy

    def forward(
        self, prompt_ids: Tensor, frames: Tensor, action_ids: Tensor, window_at: int | None = None
    ) -> Tensor:
        if window_at is not None:
            return self.policy.window_logits(prompt_ids, frames, action_ids, window_at)
        return self.policy.action_logits(prompt_ids, frames, action_ids)


def policy_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of `ActionLogits` -> names of the policy."""
    return {name.removeprefix("policy."): tensor for name, tensor in state.items()}
