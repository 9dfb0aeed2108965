"""What the VLA makes of a speaker: nats of the first action of every chunk, means over chunks.

With a context that begins at the chunk, as a rollout asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rapport.policies.perception import Cost
from rapport.policies.vla.model import FaceVLA, action_log_probs
from rapport.policies.vla.sequence import STREAMS, later, pose_before, seen_of, without
from rapport.policies.vla.vla_prompt import VlaPrompt

BATCH = 64  # contexts at once
# What is asked: everything, and each stream alone.
ASKED: Mapping[str, tuple[str, ...]] = {"all": STREAMS} | {name: (name,) for name in STREAMS}


class _Clips(NamedTuple):
    """What is shown, encoded, and what was done.

    Args:
        seen: of `seen_of`, without pixels and bands.
        perceived: (clips, items, item_tokens, hidden).
        actions: (clips, tokens) ids.
    """

    seen: dict[str, Tensor]
    perceived: Tensor
    actions: Tensor


def perception(
    model: FaceVLA,
    prompts: Sequence[VlaPrompt],
    actions: np.ndarray,
    others: np.ndarray,
) -> dict[str, Cost]:
    """What each stream is worth to the policy.

    Args:
        model: the policy's network.
        prompts: of clips.
        actions: (clips, tokens) ids of what recorded listeners did.
        others: (clips, n) numbers of clips of other conversations.

    Returns:
        `all`, and each stream alone that some clip has.
    """
    clips = _encoded(model, prompts, actions)
    present = {
        "frames": bool(clips.seen["present"][..., 0].any()),
        "voice": bool(clips.seen["present"][..., 1].any()),
        "words": bool((clips.seen["said"] != model.config.absent_token_id).any()),
    }
    nothing = _nats(model, clips, np.arange(len(prompts)), shown=())
    costs = {}
    for name, shown in ASKED.items():
        if not any(present[stream] for stream in shown):
            continue
        own = _nats(model, clips, np.arange(len(prompts)), shown)
        foreign = [_nats(model, clips, others[:, n], shown) for n in range(others.shape[1])]
        costs[name] = Cost(own, np.mean(foreign, axis=0) - own, nothing - own)
    return costs


@torch.inference_mode()
def _encoded(model: FaceVLA, prompts: Sequence[VlaPrompt], actions: np.ndarray) -> _Clips:
    """Every item once, however often it is shown."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(prompts), BATCH):
        seen = seen_of(model.config, prompts[start : start + BATCH])
        seen = {name: values.to(device) for name, values in seen.items()}
        perceived = model.perceive(seen)
        del seen["frames"], seen["voice"]
        parts.append(seen | {"perceived": perceived})
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    tokens = torch.from_numpy(np.asarray(actions, np.int64)).to(device)
    return _Clips(whole, whole.pop("perceived"), tokens)


@torch.inference_mode()
def _nats(model: FaceVLA, clips: _Clips, speakers: np.ndarray, shown: Sequence[str]) -> np.ndarray:
    """Nats of the first action of a chunk, mean over chunks, (clips,).

    Args:
        model: the policy's network.
        clips: whose listeners are asked about.
        speakers: (clips,) the clip whose speaker each of them is shown.
        shown: streams that are not absent.
    """
    config = model.config
    found = np.zeros(len(speakers))
    for start in range(0, len(speakers), BATCH):
        rows = slice(start, start + BATCH)
        speaker = torch.from_numpy(speakers[rows]).to(clips.actions.device)
        perceived = clips.perceived[speaker]
        seen = {name: values[speaker] for name, values in clips.seen.items()}
        everywhere = torch.ones(len(speaker), dtype=torch.bool, device=speaker.device)
        absent = {name: everywhere for name in STREAMS if name not in shown}
        seen = without(config, seen, absent)
        own = clips.seen["own"][rows]
        for chunk in range(config.chunks):
            first = chunk * config.chunk_tokens
            if chunk:
                own = pose_before(config, clips.actions[rows, :first])
            actions = clips.actions[rows, first : first + config.action_dims]
            logits = model.logits_of(later(seen, chunk, own), perceived[:, chunk:], actions)
            log_probs = action_log_probs(logits, actions, config.action_token_start)
            found[rows] -= log_probs.sum(-1).double().cpu().numpy()
    return found / config.chunks
