"""Speech masks: which frames of a clip count as speaking and as listening."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def as_masks(speech_mask: Any, frames: Sequence[int], people: int) -> list[np.ndarray]:
    """One (people, time) boolean mask a clip.

    Args:
        speech_mask: (time,) of a single clip and person, (people, time) of a single clip, or a list of these.
        frames: of each clip.
        people: 1 = the actor, 2 = the actor and the partner.
    """
    wanted = "(time,) of the actor" if people == 1 else "(2, time) of actor and partner"
    if speech_mask is None:
        raise ValueError(f"speech_mask is missing: {wanted} for each clip, true where they speak")
    single = isinstance(speech_mask, np.ndarray) and speech_mask.ndim == people
    masks = [speech_mask] if single else list(speech_mask)
    if len(masks) != len(frames):
        raise ValueError(f"{len(masks)} speech masks for {len(frames)} clips; one each")
    return [_mask(mask, count, people, f"speech mask {index}, {wanted},")
            for index, (mask, count) in enumerate(zip(masks, frames, strict=True))]


def _mask(mask: Any, frames: int, people: int, what: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.shape != ((frames,) if people == 1 else (people, frames)):
        raise ValueError(f"{what} has shape {mask.shape}, its clip {frames} frames")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"{what} must hold true and false only")
    return mask.astype(bool).reshape(people, frames)
