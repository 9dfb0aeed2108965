"""Sound: reading wav files, and who speaks when."""

from __future__ import annotations

from math import gcd
from pathlib import Path

import numpy as np
from scipy.io import wavfile
from scipy.ndimage import binary_closing, binary_opening
from scipy.signal import resample_poly

from rapport.policies.clip import AUDIO_RATE

_STEP = AUDIO_RATE // 100  # samples in an energy window: 10 ms
_BELOW_LOUD_DB = 30.0  # speech is within this of the loud moments of the same recording ...
_FLOOR_DBFS = -60.0  # ... and never below this, so that a silent recording has no speech
# Gaps up to 0.2 s belong to speech: they are stop consonants (Heldner & Edlund 2010 use 0.18 s).
_BRIDGE_STEPS = 20
_SHORTEST_STEPS = 5  # 50 ms


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


def voice_activity(audio: np.ndarray) -> np.ndarray:
    """Tell by its energy when somebody speaks.

    A window counts as speech when its level is within 30 dB of the recording's 95th percentile and
    above -60 dBFS; gaps up to 0.2 s are bridged, bursts under 50 ms dropped. Good enough for
    statistics on clean sound.

    Args:
        audio: (samples,) at `AUDIO_RATE`.

    Returns:
        (samples // 160,) bool, one every 10 ms.
    """
    windows = audio[: len(audio) // _STEP * _STEP].reshape(-1, _STEP)
    level = 20 * np.log10(np.sqrt(np.mean(windows**2, axis=1)) + 1e-10)
    loud = level[level > _FLOOR_DBFS]
    if not len(loud):
        return np.zeros(len(level), bool)
    speech = level > max(np.percentile(loud, 95) - _BELOW_LOUD_DB, _FLOOR_DBFS)
    padded = np.pad(speech, _BRIDGE_STEPS)
    bridged = binary_closing(padded, np.ones(_BRIDGE_STEPS + 1))[_BRIDGE_STEPS:-_BRIDGE_STEPS]
    return binary_opening(bridged, np.ones(_SHORTEST_STEPS))
