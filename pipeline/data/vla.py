"""Clips as the VLA learns from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rapport.policies.clip import Clip
from rapport.policies.motion import LayoutError
from rapport.policies.vla.policy import VlaPolicy


def faces_at_rest(clips: Iterable[Clip], policy: VlaPolicy) -> dict[str, np.ndarray]:
    """What a listener mostly does: the median action, (dims,) ids, by dyad.

    Raises:
        LayoutError: a clip's motion is not of the policy's layout or length; names the clip.
    """
    actions = defaultdict(list)
    for clip in clips:
        steps = _actions_of(clip, policy).reshape(-1, policy.actions.space.dims)
        actions[clip.dyad_id].append(np.median(steps, axis=0))
    return {
        dyad: np.median(medians, axis=0).round().astype(np.int64)
        for dyad, medians in actions.items()
    }


def examples(
    clips: Iterable[Clip], policy: VlaPolicy, rests: Mapping[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    """SFT rows: the prompt, the recorded listener as action tokens, and that listener at rest.

    Clips that show listeners to the same moment, one after the other, share what they perceive.

    Args:
        clips: of training.
        policy: that learns from them.
        rests: of `faces_at_rest`.
    """
    sizes = policy.model.config
    moment = None
    face = policy.actions.space.expression
    if not face.any():
        face = ~face
    for clip in clips:
        tokens = _actions_of(clip, policy)
        if clip.moment != moment:
            moment, shared = clip.moment, policy.encode(clip)
        prompt = replace(shared, prompt_id=clip.clip_id, own=policy.own_of(clip))
        rest = rests[clip.dyad_id]
        before = np.where(prompt.own == sizes.absent_token_id, rest, prompt.own)
        yield policy.prompt_row(prompt) | {
            "actions": tokens.tolist(),
            "rest": rest.tolist(),
            "moves": _moves(tokens, before, sizes.chunk_tokens, face).tolist(),
        }


def _actions_of(clip: Clip, policy: VlaPolicy) -> np.ndarray:
    try:
        return policy.actions_of(clip.listener)
    except LayoutError as error:
        raise LayoutError(
            f"clip {clip.clip_id!r} is not in the policy's action space: {error}. "
            "Take a policy of this corpus, or the corpus of this policy"
        ) from error


def _moves(tokens: np.ndarray, before: np.ndarray, chunk: int, face: np.ndarray) -> np.ndarray:
    """How far the face is in each chunk from where it was before it, (chunks,) bins, on average.

    Args:
        tokens: (chunks * chunk,) ids of a reaction.
        before: (dims,) ids of the action before it.
        chunk: tokens of a chunk.
        face: (dims,) bool, the dimensions that count.
    """
    actions = tokens.reshape(-1, chunk // len(before), len(before))
    starts = np.concatenate([before[None], actions[:-1, -1]])
    moves: np.ndarray = np.abs(actions - starts[:, None])[..., face].mean(axis=(1, 2))
    return moves
