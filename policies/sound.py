"""Log-mel bands of sound: what a voice is to policies that learn to listen.

Bands at a moment depend on the `WINDOW` samples before it and on nothing else, and on no loudness
but their own: nothing is normalised over a recording, whose end a listener does not know.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from rapport.policies.clip import AUDIO_RATE

BANDS = 32
WINDOW = 400  # samples, 25 ms
FFT = 512
LOWEST_HZ, HIGHEST_HZ = 60.0, 7600.0


def band_levels(samples: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Level of each band in the windows that end at `ends`, dB below a sine of full scale.

    Args:
        samples: (n,) in [-1, 1] at `AUDIO_RATE`; before them it was silent.
        ends: (windows,) int, the sample after each window's last, at most n.

    Returns:
        (windows, BANDS) float64.
    """
    heard = np.concatenate([np.zeros(WINDOW), samples.astype(np.float64)])
    windows = np.lib.stride_tricks.sliding_window_view(heard, WINDOW)[ends]
    spectrum = np.fft.rfft(windows * _hann(), FFT)
    power = (spectrum.real**2 + spectrum.imag**2) @ _bands()
    levels: np.ndarray = 10 * np.log10(power + 1e-12)
    return levels


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
