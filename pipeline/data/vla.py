"""Clips as the VLA learns from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from rapport.policies.clip import Clip
from rapport.policies.motion import LayoutError
from rapport.policies.vla.policy import VlaPolicy


def examples(clips: Iterable[Clip], policy: VlaPolicy) -> Iterator[dict[str, Any]]:
    """SFT rows: the prompt, and the recorded listener as action tokens.

    Clips that show listeners to the same moment, one after the other, share what they perceive.

    Args:
        clips: of training.
        policy: that learns from them.

    Raises:
        LayoutError: a clip's motion is not of the policy's layout or length; names the clip.
    """
    moment = None
    for clip in clips:
        try:
            listener = policy.recorded(clip)
        except LayoutError as error:
            raise LayoutError(
                f"clip {clip.clip_id!r} is not in the policy's action space: {error}. "
                "Take a policy of this corpus, or the corpus of this policy"
            ) from error
        if clip.moment != moment:
            moment, shared = clip.moment, policy.encode(clip)
        prompt = replace(
            shared, prompt_id=clip.clip_id, own=policy.pose_of(clip), rest=policy.rest_of(clip)
        )
        yield policy.prompt_row(prompt) | {
            "actions": listener.actions.tolist(),
            "moves": _moves(listener.actions, policy).tolist(),
        }


def _moves(tokens: np.ndarray, policy: VlaPolicy) -> np.ndarray:
    """How far the face is from rest in each chunk of a reaction, (chunks,) bins, on average."""
    space = policy.actions.space
    face = space.expression if space.expression.any() else ~space.expression
    still = policy.actions.encode(np.zeros((1, space.dims)), np.zeros(space.dims))
    actions = tokens.reshape(policy.model.config.chunks, -1, space.dims)
    moves: np.ndarray = np.abs(actions - still)[..., face].mean(axis=(1, 2))
    return moves
