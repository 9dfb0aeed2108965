"""What reaches a listener while it listens, whichever policy it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapport.policies.clip import Word
from rapport.policies.motion import Motion


@dataclass(frozen=True, eq=False)
class Chunk:
    """What reached a listener in a chunk; None where a stream is absent.

    A policy reads what it was trained on and leaves the rest.

    Args:
        frames: (n, height, width, 3) uint8; none may have been taken in a short chunk.
        taken: (n,) when, seconds from the start of the chunk, rising.
        audio: (samples,) float32 in [-1, 1] at `AUDIO_RATE`, the whole chunk.
        words: those that ended in it, in order; their times are not read.
        motion: the speaker's, the whole chunk, in the policy's layout.
        own_audio: the listener's own voice, like `audio`.
    """

    frames: np.ndarray | None = None
    taken: np.ndarray | None = None
    audio: np.ndarray | None = None
    words: tuple[Word, ...] | None = None
    motion: Motion | None = None
    own_audio: np.ndarray | None = None
