"""Sound files."""

from __future__ import annotations

from math import gcd
from pathlib import Path

import numpy as np
from scipy.io import wavfile
from scipy.signal import resample_poly

from rapport.policies.clip import AUDIO_RATE


class AudioError(ValueError):
    """A sound file cannot be read; the message names it."""


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Read a wav file of any sample format as mono at `AUDIO_RATE`.

    Channels are averaged; other rates are resampled by a polyphase filter.

    Returns:
        (samples,) float32 and the file's own rate in Hz.

    Raises:
        AudioError: the file is not a wav file, is empty or holds NaN or infinite samples.
    """
    try:
        rate, data = wavfile.read(path)
    except (ValueError, OSError) as error:
        raise AudioError(f"{path} cannot be read as wav: {error}") from error
    if data.dtype == np.uint8:  # 8 bit wav is unsigned
        signal = (data.astype(np.float32) - 128) / 128
    elif np.issubdtype(data.dtype, np.integer):
        signal = data.astype(np.float32) / -float(np.iinfo(data.dtype).min)
    else:
        signal = data.astype(np.float32)
    if signal.ndim == 2:
        signal = signal.mean(axis=1)
    if not len(signal) or not np.isfinite(signal).all():
        raise AudioError(f"{path} is empty or holds NaN or infinite samples")
    if rate != AUDIO_RATE:
        common = gcd(rate, AUDIO_RATE)
        signal = resample_poly(signal, AUDIO_RATE // common, rate // common).astype(np.float32)
    return signal, rate
