"""Sound files."""

from __future__ import annotations

import warnings
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rapport.policies.clip import AUDIO_RATE

_SLOWEST, _FASTEST = 1_000, 400_000  # Hz
_FAINT = 1e-3  # of full scale: 60 dB below it, where speech is not
_FULL = 0.999
_MOST_CLIPPED = 0.01  # share of samples
# Float samples beyond it are in another unit, say int16's. A mix may well exceed 1 by a little.
_LOUDEST = 4.0


class Sound(NamedTuple):
    """What a file holds.

    Args:
        samples: (samples,) float32 at `AUDIO_RATE`.
        rate: the file's own, Hz.
        fault: what is wrong with its level, to follow the file's name; None where nothing is.
    """

    samples: np.ndarray
    rate: int
    fault: str | None


class AudioError(ValueError):
    """A sound file cannot be read; the message names it."""


def read_wav(path: Path) -> Sound:
    """Read a wav file of any sample format as mono at `AUDIO_RATE`.

    Channels are averaged; other rates are resampled by a polyphase filter.

    Returns:
        The sound; what is wrong with its level is judged before it is resampled.

    Raises:
        AudioError: the file is not a wav file, is empty, holds NaN or infinite samples, or its
            float samples are in another unit than full scale.
    """
    from scipy.io import wavfile  # with `signal` a quarter of what a live server would import

    try:
        with warnings.catch_warnings():
            # Of chunks that it does not know; one that ends early is seen by its length.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            rate, data = wavfile.read(path)
    except OSError as error:
        raise AudioError(f"{path} cannot be opened: {error.strerror or error}") from error
    except Exception as error:  # a damaged header raises nearly anything
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
    loudest = float(np.abs(signal).max())
    if loudest > _LOUDEST:
        raise AudioError(
            f"{path} has float samples up to {loudest:.5g}, full scale is 1: are they int16 "
            "written as float? Divide them by 32768"
        )
    if not _SLOWEST <= rate <= _FASTEST:
        raise AudioError(f"{path} says {rate} samples per second, which no sound has")
    fault = odd_level(signal)
    if rate != AUDIO_RATE:
        from scipy.signal import resample_poly

        common = gcd(rate, AUDIO_RATE)
        signal = resample_poly(signal, AUDIO_RATE // common, rate // common).astype(np.float32)
    return Sound(signal, rate=rate, fault=fault)


def odd_level(signal: np.ndarray) -> str | None:
    """What is wrong with the level of (samples,) in [-1, 1], to follow a file's name; else None."""
    swing = float(np.ptp(signal)) / 2
    if swing == 0:
        return "is silent: all of its samples are the same"
    if swing < _FAINT:
        return f"is nearly silent: it swings by {swing:.1e} of full scale"
    clipped = float(np.mean(np.abs(signal) >= _FULL))
    if clipped > _MOST_CLIPPED:
        return f"is clipped: {clipped:.0%} of its samples are at full scale"
    return None
