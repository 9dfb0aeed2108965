"""What learners of the VLA policy share: tables on disk, the order of the data, the module that is trained."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from policies.vla.config import FaceVLAConfig
from policies.vla.model import FaceVLA

PROMPT_COLUMNS = {"prompt_id": pa.string(), "prompt": pa.list_(pa.int32()), "frames": pa.binary()}
SFT_SCHEMA = pa.schema(PROMPT_COLUMNS | {"actions": pa.list_(pa.int32())})
PAIR_SCHEMA = pa.schema(
    PROMPT_COLUMNS
    | {"chosen": pa.list_(pa.int32()), "rejected": pa.list_(pa.int32()),
       "chosen_score": pa.float64(), "rejected_score": pa.float64()}
)


def write_table(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> int:
    """Stream rows into an Arrow file that `read_table` maps into memory; returns how many. Atomic."""
    partial = path.with_name(path.name + ".tmp")
    count = 0
    with pa.ipc.new_stream(partial, schema) as stream:
        for row in rows:
            stream.write_batch(pa.RecordBatch.from_pylist([row], schema=schema))
            count += 1
    os.replace(partial, path)
    return count


def read_table(path: Path) -> datasets.Dataset:
    """Rows by index, read from the mapped file as they are asked for."""
    return datasets.Dataset.from_file(str(path))


def batch_rows(step: int, batch_size: int, size: int, seed: int) -> np.ndarray:
    """Row numbers (batch_size,) of the global batch of `step`: every row once per epoch, reshuffled each epoch.

    A function of its arguments alone, so a resumed run reads on where it stopped.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    orders = {e: np.random.default_rng([seed, e]).permutation(size) for e in np.unique(positions // size)}
    return np.array([orders[p // size][p % size] for p in positions])


def rank_share(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """This rank's equal share, so that the mean over ranks is the mean over the batch."""
    if len(rows) % world_size:
        raise ValueError(f"a batch of {len(rows)} cannot be shared equally by {world_size} learners")
    return rows[rank::world_size]


def collate_prompts(rows: Sequence[dict[str, Any]], config: FaceVLAConfig) -> tuple[Tensor, Tensor]:
    """Prompt ids (batch, prompt_length) and frames (batch, frames, size, size, 3) uint8.

    A row without video gets blank pixels here, which the model never looks at: its prompt says <absent>.
    They are there so that every rank runs the vision towers and gradients are reduced in the same order.
    """
    shape = (config.frames, config.image_size, config.image_size, 3)
    frames = [np.zeros(shape, np.uint8) if r["frames"] is None else np.frombuffer(r["frames"], np.uint8).reshape(shape)
              for r in rows]
    return torch.tensor([r["prompt"] for r in rows]), torch.from_numpy(np.stack(frames))


class ActionLogits(nn.Module):
    """The policy with `action_logits`, or `window_logits`, as its forward pass, which sharded training hooks into."""

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
