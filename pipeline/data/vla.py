"""Clips as the VLA policy takes them: prompts, and examples with the listener's actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rapport.policies.clip import Clip
from rapport.policies.motion import LayoutError
from rapport.policies.vla.loading import Checkpoint
from rapport.policies.vla.prompt import build_prompt, select_frames
from rapport.policies.vla.text import encode_text
from rapport.policies.vla.trajectory import Prompt


def prompt_of(clip: Clip, policy: Checkpoint) -> Prompt:
    """What the policy sees of a clip; modalities the clip lacks are marked absent in the prompt."""
    config = policy.model.config
    text = (
        None
        if clip.text is None
        else encode_text(policy.tokenizer, clip.text, config.action_token_start, config.action_bins)
    )
    frames = (
        None
        if clip.speaker_frames is None
        else select_frames(clip.speaker_frames, config.frames, config.image_size)
    )
    return Prompt(clip.clip_id, build_prompt(config, text, frames is not None), frames)


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """The prompt's columns of a training table."""
    return {
        "prompt_id": prompt.prompt_id,
        "prompt": prompt.ids.tolist(),
        "frames": None if prompt.frames is None else np.ascontiguousarray(prompt.frames).tobytes(),
    }


def examples(clips: Iterable[Clip], policy: Checkpoint) -> Iterator[dict[str, Any]]:
    """SFT rows: the prompt and the recorded listener as action tokens.

    Raises:
        LayoutError: a clip's motion is not of the policy's layout or length; names the clip.
    """
    layout = policy.actions.space.layout
    for clip in clips:
        try:
            tokens = policy.actions.to_tokens(clip.listener.subset(layout))
        except LayoutError as error:
            raise LayoutError(
                f"clip {clip.clip_id!r} is not in the policy's action space: {error}. "
                "Take a policy of this corpus, or the corpus of this policy"
            ) from error
        yield prompt_row(prompt_of(clip, policy)) | {"actions": tokens.tolist()}
