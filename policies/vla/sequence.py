"""One interleaved sequence of what is perceived and done.

    <s> [history] [words of the past] [pose of the last action]
    then for each chunk: [pictures, voice] [words] <act> [actions]

Pictures, voice and words of a chunk are those of the second (the chunk) before it, so that its
first action knows nothing later than its own start. Head and observations have constant lengths:
a position tells its slot, whatever the policy sees. A sequence is called a context; it begins anew
every `context_chunks` chunks, with a head made of what was known then. That rule is a function of
the number of the chunk and is the same in training, rollouts and live.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.prompt import picture_shape, voice_shape
from rapport.policies.vla.vla_prompt import VlaPrompt

Seen = Mapping[str, Tensor]  # the fields of `VlaPrompt` of several prompts, by name
STREAMS = ("frames", "voice", "words")


def seen_of(config: FaceVLAConfig, prompts: Sequence[VlaPrompt]) -> dict[str, Tensor]:
    """Prompts as tensors, (prompts, ...) each.

    Where a prompt has no frames or voice, zeros stand, which the model never looks at: its ids say
    <absent>. They are there so that every rank runs the encoders, and gradients are reduced in the
    same order.
    """
    arrays = {
        "frames": [_or_zeros(p.frames, config.items, picture_shape(config)) for p in prompts],
        "voice": [_or_zeros(p.voice, config.items, voice_shape(config)) for p in prompts],
        "present": [p.present for p in prompts],
        "heard": [p.heard for p in prompts],
        "said": [p.said for p in prompts],
        "own": [p.own for p in prompts],
    }
    return {name: torch.from_numpy(np.stack(values)) for name, values in arrays.items()}


def _or_zeros(values: np.ndarray | None, items: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros((items, *shape), np.uint8) if values is None else values


def seen_in(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a batch that is seen."""
    return {name: batch[name] for name in ("frames", "voice", "present", "heard", "said", "own")}


def without(config: FaceVLAConfig, seen: Seen, absent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is seen, less some streams.

    Args:
        config: of the policy.
        seen: of several prompts.
        absent: stream -> (prompts,) bool, where it shall be absent.
    """
    present = seen["present"].clone()
    for place, name in enumerate(("frames", "voice")):
        if name in absent:
            present[..., place] &= ~absent[name][:, None]
    changed = dict(seen) | {"present": present}
    if "words" in absent:
        rows = absent["words"][:, None, None]
        for name in ("heard", "said"):
            changed[name] = torch.where(rows, config.absent_token_id, seen[name])
    return changed


def later(seen: Seen, chunk: int, own: Tensor) -> dict[str, Tensor]:
    """What is seen by a context that begins with a later chunk.

    Args:
        seen: of prompts, (rows, ...).
        chunk: the first chunk of the context.
        own: (rows, n) ids of the pose before it.
    """
    shown = {name: values[:, chunk:] for name, values in seen.items() if name != "own"}
    return shown | {"own": own}


def contexts(config: FaceVLAConfig, actions: int) -> Iterator[tuple[int, slice]]:
    """First chunk of each context that the first `actions` tokens are in, and which tokens are."""
    tokens = config.context_chunks * config.chunk_tokens
    for start in range(0, max(actions, 1), tokens):
        yield start // config.chunk_tokens, slice(start, min(start + tokens, actions))


def context_of(
    config: FaceVLAConfig, seen: Seen, actions: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """What the next action is predicted from: what is seen by its context, and the actions in it.

    Args:
        config: of the policy.
        seen: of prompts, (rows, ...).
        actions: (rows, k) ids of the reaction so far.
    """
    tokens = config.context_chunks * config.chunk_tokens
    first = actions.shape[1] // tokens * tokens
    if not first:
        return dict(seen), actions
    own = pose_before(config, actions[:, :first])
    return later(seen, first // config.chunk_tokens, own), actions[:, first:]


def pose_before(config: FaceVLAConfig, actions: Tensor) -> Tensor:
    """The pose of the last action (rows, n) of a reaction so far, ids (rows, k)."""
    last = actions[:, -config.action_dims :]
    return last[:, config.pose_dims]


def context_ids(config: FaceVLAConfig, seen: Seen, actions: Tensor) -> Tensor:
    """Ids of a context up to where its action k is predicted, (rows, length).

    Args:
        config: of the policy.
        seen: of the context: chunk 0 is its first.
        actions: (rows, k) ids of the actions before.
    """
    rows, count = actions.shape
    chunks = count // config.chunk_tokens + 1
    marks = _perception_ids(config, seen["present"])
    history = config.history
    regions = [
        actions.new_full((rows, 1), config.bos_token_id),
        marks[:, :history].flatten(1),
        seen["heard"][:, 0],
        seen["own"],
    ]
    for chunk in range(chunks):
        regions += [
            marks[:, history + chunk],
            seen["said"][:, chunk],
            actions.new_full((rows, 1), config.act_token_id),
            actions[:, chunk * config.chunk_tokens : (chunk + 1) * config.chunk_tokens],
        ]
    return torch.cat(regions, dim=1)


def _perception_ids(config: FaceVLAConfig, present: Tensor) -> Tensor:
    """<image> for every token of an item that is there, else <absent>, (rows, items, tokens)."""
    widths = torch.tensor([config.picture_tokens, config.voice_tokens], device=present.device)
    shown = present.repeat_interleave(widths, dim=-1)
    return torch.where(shown, config.image_token_id, config.absent_token_id)


def item_offsets(config: FaceVLAConfig, chunks: int) -> list[int]:
    """Where the items of a context with so many chunks begin."""
    history = [1 + item * config.item_tokens for item in range(config.history)]
    return history + [config.head_length + chunk * config.period for chunk in range(chunks)]


def predicting(config: FaceVLAConfig, count: int) -> Tensor:
    """Positions at which the first `count` actions of a context are predicted, (count,)."""
    action = torch.arange(count)
    chunk = action // config.chunk_tokens
    first = config.head_length + config.observation_length - 1
    return first + chunk * config.period + action % config.chunk_tokens


def slot_tables(config: FaceVLAConfig) -> dict[str, Tensor]:
    """For every position of a context, what an action token there is about.

    `holds`: whether there is one, and `own`, its dimension; `predicts`: whether one is predicted,
    and `next`, its dimension, `step`, its place in the chunk. (context_length,) each.
    """
    tables = {
        name: torch.zeros(config.context_length, dtype=torch.long)
        for name in ("own", "next", "step")
    }
    flags = {
        name: torch.zeros(config.context_length, dtype=torch.bool) for name in ("holds", "predicts")
    }
    actions = torch.arange(config.context_chunks * config.chunk_tokens)
    positions = predicting(config, len(actions))
    tables["next"][positions] = actions % config.action_dims
    tables["step"][positions] = actions % config.chunk_tokens // config.action_dims
    flags["predicts"][positions] = True
    past = torch.arange(config.head_length - len(config.pose_dims), config.head_length)
    tables["own"][past] = torch.tensor(config.pose_dims, dtype=torch.long)
    tables["own"][positions + 1] = actions % config.action_dims
    flags["holds"][past] = True
    flags["holds"][positions + 1] = True
    return tables | flags
