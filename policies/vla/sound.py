"""What a policy hears of a chunk: log-mel bands as bytes, like the pixels of a frame.

A chunk's bands depend on the sound of that chunk and of `LEFT_S` before it, and on nothing else:
engines encode one chunk at a time, and a listener knows nothing of what comes later.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from rapport.policies.clip import AUDIO_RATE

BANDS = 32
HOP = AUDIO_RATE // 100
WINDOW = 400  # samples, 25 ms; a frame of bands ends with its window
FFT = 512
LEFT_S = 0.2  # sound before the chunk that its bands begin with
LOWEST_HZ, HIGHEST_HZ = 60.0, 7600.0
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
    heard = samples[-needed:].astype(np.float64)
    padded = np.concatenate([np.zeros(needed - len(heard)), heard])
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    spectrum = np.fft.rfft(windows * _hann(), FFT)
    power = (spectrum.real**2 + spectrum.imag**2) @ _bands()
    decibels = 10 * np.log10(power + 1e-12)
    share = (decibels - QUIET_DB) / (LOUD_DB - QUIET_DB)
    found: np.ndarray = np.clip(np.round(255 * share), 0, 255).astype(np.uint8)
    return found


@cache
def _hann() -> np.ndarray:
    """A window whose sine of full scale has power 1."""
    window = np.hanning(WINDOW)
    scaled: np.ndarray = window / (window.sum() / 2)
    return scaled


@cache
def _bands() -> np.ndarray:
    """(FFT / 2 + 1, BANDS): triangles, evenly spaced in mel (O'Shaughnessy 1987)."""

    def mel(hertz: float | np.ndarray) -> np.ndarray:
        return 2595 * np.log10(1 + np.asarray(hertz) / 700)

    edges = np.linspace(mel(LOWEST_HZ), mel(HIGHEST_HZ), BANDS + 2)
    lines = mel(np.linspace(0, AUDIO_RATE / 2, FFT // 2 + 1))[:, None]
    rising = (lines - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - lines) / (edges[2:] - edges[1:-1])
    triangles: np.ndarray = np.clip(np.minimum(rising, falling), 0, None)
    # The lowest triangles are narrower than the lines of a spectrum are apart.
    nearest = np.abs(lines - edges[1:-1]).argmin(axis=0)
    empty = ~triangles.any(axis=0)
    triangles[nearest[empty], np.flatnonzero(empty)] = 1.0
    return triangles
