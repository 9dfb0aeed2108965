"""Small signals that motion is made of: smooth noise, events, pulses, steps.

All are arrays (time, ...).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

BAND_HZ = 4.5  # faces live below this; blinks, saccades and consonants are the exceptions
_SAGS = 0.12  # of an event's height is lost while it is held
_SHORTEST_HOLD_S = 0.2


@dataclass(frozen=True)
class Event:
    """Something a face does once.

    Args:
        start: seconds.
        rise: seconds to its apex.
        hold: seconds it is held.
        fall: seconds until it is over.
        size: height of the apex.
    """

    start: float
    rise: float
    hold: float
    fall: float
    size: float

    @property
    def falls(self) -> float:
        """When its fall begins, seconds."""
        return self.start + self.rise + self.hold

    def cut_short(self, by: float) -> Event:
        """The same, falling from `by` seconds on at the latest, but held for a moment."""
        hold = min(self.hold, max(by - self.start - self.rise, _SHORTEST_HOLD_S))
        return replace(self, hold=hold)


def jerk(phase: np.ndarray) -> np.ndarray:
    """Minimum-jerk way from 0 to 1 as `phase` goes from 0 to 1 (Flash & Hogan 1985)."""
    x = np.clip(phase, 0, 1)
    return np.asarray(x**3 * (10 - 15 * x + 6 * x**2))


def track(events: Iterable[Event], clock: np.ndarray) -> np.ndarray:
    """(time,) the sum of events: minimum-jerk rises and falls, a sagging apex between.

    Args:
        events: in any order.
        clock: (time,) evenly spaced seconds.
    """
    total = np.zeros(len(clock))
    for event in events:
        during = _around(clock, event.start, event.falls + event.fall)
        now = clock[during] - event.start
        sag = 1 - _SAGS * np.clip((now - event.rise) / event.hold, 0, 1)
        falling = jerk((now - event.rise - event.hold) / event.fall)
        total[during] += event.size * jerk(now / event.rise) * sag * (1 - falling)
    return total


def _around(clock: np.ndarray, start: float, end: float) -> slice:
    """The places of an evenly spaced `clock` from `start` to `end`, one more at either side."""
    step = clock[1] - clock[0]
    first = int((start - clock[0]) / step)
    last = int((end - clock[0]) / step) + 2
    return slice(max(first, 0), max(last, 0))


def steps(
    times: list[float], places: np.ndarray, lengths: Iterable[float], clock: np.ndarray
) -> np.ndarray:
    """(time, dims) from place to place in minimum-jerk steps; `places[0]` before the first.

    Args:
        times: when each step begins, seconds.
        places: (steps + 1, dims).
        lengths: of each step, seconds.
        clock: (time,) seconds.
    """
    way = np.repeat(places[:1], len(clock), axis=0)
    for number, (start, length) in enumerate(zip(times, lengths, strict=True)):
        done = jerk((clock - start) / length)[:, None]
        way = way + done * (places[number + 1] - places[number])
    return way


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


def blur(signal: np.ndarray, width_s: float, fps: float) -> np.ndarray:
    """Gaussian smoothing over time, standard deviation `width_s`."""
    return gaussian_filter1d(signal, width_s * fps, axis=0, mode="nearest")


def event_times(
    rng: np.random.Generator, start: float, end: float, per_minute: float
) -> list[float]:
    """Times in [start, end) of events that are irregular, but seldom in bursts.

    Their intervals are gamma distributed with shape 2.
    """
    times = []
    now = start + float(rng.gamma(2.0, 30.0 / per_minute)) * rng.random()
    while now < end:
        times.append(now)
        now += float(rng.gamma(2.0, 30.0 / per_minute))
    return times


def lid_closure(
    times: Iterable[float], blink_s: tuple[float, float, float], clock: np.ndarray
) -> np.ndarray:
    """Lid closure (time,) in [0, 1] by blinks: closing, closed, opening for `blink_s` seconds."""
    close, closed, opening = blink_s
    closure = np.zeros(len(clock))
    for start in times:
        during = _around(clock, start, start + sum(blink_s))
        now = clock[during] - start
        down = jerk(now / close) * (1 - jerk((now - close - closed) / opening))
        closure[during] = np.maximum(closure[during], down)
    return closure


def nod(clock: np.ndarray, start: float, hz: float, radians: float, cycles: int) -> np.ndarray:
    """Pitch (time,) of one nod: `cycles` downward strokes that fall by half (Mori 2025)."""
    phase = (clock - start) * hz
    inside = (phase >= 0) & (phase <= cycles)
    fading = 1 - 0.5 * phase / cycles
    return np.where(inside, radians * fading * 0.5 * (1 - np.cos(2 * np.pi * phase)), 0.0)
