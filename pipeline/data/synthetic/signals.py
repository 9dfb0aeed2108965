"""Small signals that motion is made of: smooth noise, lagged reactions, pulses.

All are arrays (time, ...).
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter

BAND_HZ = 4.5  # faces live below this; blinks and consonants are the exceptions


def smooth_noise(
    rng: np.random.Generator, frames: int, dims: int, fps: float, corner_hz: float = 0.6
) -> np.ndarray:
    """Stationary noise of unit variance, band-limited.

    Args:
        rng: of the noise.
        frames: length.
        dims: independent columns.
        fps: frames per second.
        corner_hz: power falls as 1 / (1 + (f / corner)^2)^1.5; there is none above `BAND_HZ`.

    Returns:
        (frames, dims).
    """
    length = 2 * frames  # longer than needed and cut, so that the ends do not meet
    frequency = np.fft.rfftfreq(length, 1 / fps)
    power = (1 + (frequency / corner_hz) ** 2) ** -1.5 * (frequency <= BAND_HZ)
    power[0] = 0
    amplitude = np.sqrt(power / (2 * power.sum()))
    phases = rng.normal(size=(len(frequency), dims)) + 1j * rng.normal(size=(len(frequency), dims))
    spectrum = amplitude[:, None] * phases * length / np.sqrt(2)
    return np.fft.irfft(spectrum, n=length, axis=0)[:frames]


def lag(signal: np.ndarray, delay_s: float, rise_s: float, fps: float) -> np.ndarray:
    """Delay and smooth `signal` (time, dim) by two equal first-order filters of `rise_s` / 2.

    Before its start the signal is taken as constant.
    """
    shift = round(delay_s * fps)
    delayed = np.concatenate([np.repeat(signal[:1], shift, axis=0), signal])[: len(signal)]
    keep = np.exp(-2 / (rise_s * fps))
    for _ in range(2):
        start = keep * delayed[:1]
        delayed, _ = lfilter([1 - keep], [1, -keep], delayed, axis=0, zi=start)
    return delayed


def blur(signal: np.ndarray, width_s: float, fps: float) -> np.ndarray:
    """Gaussian smoothing over time, standard deviation `width_s`."""
    return gaussian_filter1d(signal, width_s * fps, axis=0, mode="nearest")


def event_times(rng: np.random.Generator, seconds: float, per_minute: float) -> list[float]:
    """Times of events that are irregular, but seldom in bursts.

    Their intervals are gamma distributed with shape 2.
    """
    times = []
    now = float(rng.gamma(2.0, 30.0 / per_minute)) * rng.random()
    while now < seconds:
        times.append(now)
        now += float(rng.gamma(2.0, 30.0 / per_minute))
    return times


def blink_track(
    times: list[float], frames: int, fps: float, close_s: float, open_s: float
) -> np.ndarray:
    """Lid closure (frames,) in [0, 1]: raised-cosine closing, slower opening."""
    clock = np.arange(frames) / fps
    closure = np.zeros(frames)
    for start in times:
        falling = np.clip((clock - start) / close_s, 0, 1)
        rising = np.clip((clock - start - close_s) / open_s, 0, 1)
        closure = np.maximum(closure, 0.5 * (np.cos(np.pi * rising) - np.cos(np.pi * falling)))
    return closure


def nod(clock: np.ndarray, start: float, hz: float, radians: float, cycles: int) -> np.ndarray:
    """Pitch (time,) of one nod: `cycles` downward strokes, each weaker than the one before."""
    phase = (clock - start) * hz
    inside = (phase >= 0) & (phase <= cycles)
    fading = 1 - 0.6 * phase / cycles
    return np.where(inside, radians * fading * 0.5 * (1 - np.cos(2 * np.pi * phase)), 0.0)
