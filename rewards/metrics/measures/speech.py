"""Speech masks: in which frames of a clip who speaks."""

from __future__ import annotations

from typing import Any

import numpy as np

PEOPLE = {1: "(time,) of the actor", 2: "(2, time) of actor and partner"}


def mask_list(speech_mask: Any, clips: int, people: int) -> list[Any]:
    """One mask a clip, unchecked; a single array is that of a single clip.

    Raises:
        ValueError: no masks, or not one for each clip.
    """
    if speech_mask is None:
        raise ValueError(
            f"speech_mask is missing: {PEOPLE[people]} for each clip, true where they speak"
        )
    single = isinstance(speech_mask, np.ndarray) and speech_mask.ndim == people
    masks = [speech_mask] if single else list(speech_mask)
    if len(masks) != clips:
        raise ValueError(f"{len(masks)} speech masks for {clips} clips; one each")
    return masks


def as_mask(mask: Any, frames: int, people: int, clip: int) -> np.ndarray:
    """The speech mask of a clip, (people, frames) bool.

    Raises:
        ValueError: another shape, or values other than true and false.
    """
    mask = np.asarray(mask)
    if mask.shape != ((frames,) if people == 1 else (people, frames)):
        raise ValueError(
            f"speech mask {clip}, {PEOPLE[people]}, has shape {mask.shape}, its clip {frames} "
            "frames"
        )
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"speech mask {clip} must hold true and false only")
    by_person: np.ndarray = mask.astype(bool).reshape(people, frames)
    return by_person
