"""Clips as the VLA learns from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rapport.policies.clip import Clip
from rapport.policies.motion import LayoutError
from rapport.policies.vla.policy import VlaPolicy


def examples(clips: Iterable[Clip], policy: VlaPolicy) -> Iterator[dict[str, Any]]:
    """SFT rows: the prompt and the recorded listener as action tokens.

    Raises:
        LayoutError: a clip's motion is not of the policy's layout or length; names the clip.
    """
    for clip in clips:
        try:
            tokens = policy.actions_of(clip.listener)
        except LayoutError as error:
            raise LayoutError(
                f"clip {clip.clip_id!r} is not in the policy's action space: {error}. "
                "Take a policy of this corpus, or the corpus of this policy"
            ) from error
        yield policy.prompt_row(policy.encode(clip)) | {"actions": tokens.tolist()}
