"""What learners of the VLA share: columns of their tables, batches, the trained module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.model import FaceVLA
from rapport.policies.vla.prompt import picture_shape, voice_shape
from rapport.policies.vla.sequence import Seen
from rapport.policies.vla.vla_prompt import VlaPrompt

PROMPT_COLUMNS = {
    "prompt_id": pa.string(),
    "frames": pa.binary(),
    "voice": pa.binary(),
    "present": pa.list_(pa.bool_()),
    "heard": pa.list_(pa.int32()),
    "said": pa.list_(pa.int32()),
    "own": pa.list_(pa.int32()),
    "rest": pa.list_(pa.float64()),
}
IMITATION_COLUMNS = PROMPT_COLUMNS | {"actions": pa.list_(pa.int32())}
IMITATION_SCHEMA = pa.schema(IMITATION_COLUMNS)
# `moves`: (chunks,) how far the face is from rest in each, bins.
SFT_SCHEMA = pa.schema(IMITATION_COLUMNS | {"moves": pa.list_(pa.float32())})


def row_of(prompt: VlaPrompt) -> dict[str, Any]:
    """A prompt as `PROMPT_COLUMNS`."""
    return {
        "prompt_id": prompt.prompt_id,
        "frames": _bytes(prompt.frames),
        "voice": _bytes(prompt.voice),
        "present": prompt.present.flatten().tolist(),
        "heard": prompt.heard.flatten().tolist(),
        "said": prompt.said.flatten().tolist(),
        "own": prompt.own.tolist(),
        "rest": prompt.rest.tolist(),
    }


def _bytes(values: np.ndarray | None) -> bytes | None:
    return None if values is None else np.ascontiguousarray(values).tobytes()


def prompt_of_row(row: Mapping[str, Any], config: FaceVLAConfig) -> VlaPrompt:
    """What `row_of` was given."""
    return VlaPrompt(
        row["prompt_id"],
        frames=_array(row["frames"], (config.items, *picture_shape(config))),
        voice=_array(row["voice"], (config.items, *voice_shape(config))),
        present=np.array(row["present"], bool).reshape(config.items, 2),
        heard=np.array(row["heard"], np.int64).reshape(config.chunks, config.text_tokens),
        said=np.array(row["said"], np.int64).reshape(config.chunks, config.chunk_text),
        own=np.array(row["own"], np.int64),
        rest=np.array(row["rest"], np.float64),
    )


def _array(values: bytes | None, shape: tuple[int, ...]) -> np.ndarray | None:
    return None if values is None else np.frombuffer(values, np.uint8).reshape(shape).copy()


class ActionLogits(nn.Module):
    """The network whose forward pass is `action_logits`: sharded training hooks into it."""

    def __init__(self, policy: FaceVLA):
        super().__init__()
        self.policy = policy

    def forward(self, seen: Seen, actions: Tensor, inputs: Tensor | None = None) -> Tensor:
        return self.policy.action_logits(seen, actions, inputs)


def policy_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of `ActionLogits` -> names of the policy."""
    return {name.removeprefix("policy."): tensor for name, tensor in state.items()}
