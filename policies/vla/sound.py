"""What a VLA hears of a chunk: log-mel bands as bytes, like the pixels of a frame.

A chunk's bands depend on the sound of that chunk and of `LEFT_S` before it, and on nothing else:
engines encode one chunk at a time, and a listener knows nothing of what comes later.
"""

from __future__ import annotations

import numpy as np

from rapport.policies.clip import AUDIO_RATE
from rapport.policies.sound import WINDOW, band_levels

HOP = AUDIO_RATE // 100
LEFT_S = 0.2  # sound before the chunk that its bands begin with
# Decibels, of full scale, that bytes stand for.
QUIET_DB, LOUD_DB = -90.0, 0.0


def voice_frames(seconds: float) -> int:
    """Frames of bands of a chunk of this length, those before it included."""
    return round((seconds + LEFT_S) * 100)


def sound_before(seconds: float) -> int:
    """Samples before a chunk that its bands need."""
    return (voice_frames(seconds) - round(seconds * 100)) * HOP + WINDOW - HOP


def log_mel(samples: np.ndarray, seconds: float) -> np.ndarray:
    """The bands of a chunk.

    Args:
        samples: (n,) float32 in [-1, 1] at `AUDIO_RATE`, up to the end of the chunk. Where there
            are fewer than `sound_before` of them before the chunk, it was silent before.
        seconds: length of the chunk.

    Returns:
        (voice_frames, BANDS) uint8.
    """
    frames = voice_frames(seconds)
    needed = (frames - 1) * HOP + WINDOW
    heard = samples[-needed:]
    padded = np.concatenate([np.zeros(needed - len(heard)), heard])
    levels = band_levels(padded, WINDOW + np.arange(frames) * HOP)
    share = (levels - QUIET_DB) / (LOUD_DB - QUIET_DB)
    found: np.ndarray = np.clip(np.round(255 * share), 0, 255).astype(np.uint8)
    return found
