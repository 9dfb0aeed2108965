"""Sound: reading wav files, who speaks when, and how much of a conversation is silence or overlap."""

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
_BRIDGE_STEPS = (
    20  # gaps up to 0.2 s are inside speech: stop consonants (Heldner & Edlund 2010 use 0.18 s)
)
_SHORTEST_STEPS = 5  # 50 ms


class AudioError(ValueError):
    """A sound file cannot be read; the message names it."""


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """A wav file of any sample format as mono at `AUDIO_RATE`.

    Channels are averaged; other rates are resampled by a polyphase filter.

    Returns:
        (samples,) float32 and the file's own rate in Hz.
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
    """Who-speaks mask by energy: (samples,) at `AUDIO_RATE` -> (samples // 160,) bool, one every 10
    ms.

    A window counts as speech when its level is within 30 dB of the recording's 95th percentile and
    above -60 dBFS; gaps up to 0.2 s are bridged, bursts under 50 ms dropped. Good enough for
    statistics on clean sound.
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


def turn_statistics(speaker: np.ndarray, listener: np.ndarray) -> dict[str, float]:
    """How two people share the time, from their `voice_activity` masks.

    Returns:
        shares of the time in which `speaker` and `listener` speak, both (`overlap`) or neither
        (`silence`), and the speaker's median pause in seconds (`pause_median_s`, NaN when there is
        none).
    """
    steps = min(len(speaker), len(listener))
    a, b = speaker[:steps], listener[:steps]
    pauses = [length for speaking, length in _runs(a)[1:-1] if not speaking]
    return {
        "speaker": float(a.mean()),
        "listener": float(b.mean()),
        "overlap": float((a & b).mean()),
        "silence": float((~a & ~b).mean()),
        "pause_median_s": float(np.median(pauses) / 100) if pauses else float("nan"),
    }


def _runs(mask: np.ndarray) -> list[tuple[bool, int]]:
    """Runs of equal values with their lengths in steps."""
    edges = np.flatnonzero(np.diff(mask)) + 1
    bounds = np.concatenate([[0], edges, [len(mask)]])
    return [
        (bool(mask[start]), int(end - start))
        for start, end in zip(bounds[:-1], bounds[1:], strict=True)
    ]
