"""How much generated listeners move, band by band, against people: who somebody is, slow, fast.

A policy can have the variance of people over a window and still have none of what tells windows
apart, or too little of what is slow and too much of what is fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rapport.policies.motion import Motion, require_same_layout
from rapport.rewards.metrics.measures.likeness import STILL, amplitude, log_amplitudes

SLOWER = 2.0  # seconds: periods from here on are slow
FASTER = 0.5  # seconds: periods below are fast
# A moving average over this share of a period lets half of its power through: sinc(.443)^2 = 1/2.
HALF_POWER = 0.443


def bands(
    generated: Sequence[Motion], recorded: Sequence[Motion], counted: Sequence[np.ndarray]
) -> dict[str, dict[str, float]]:
    """Group -> `between`, `slow`, `middle`, `fast` and `spread`, each over that of people.

    - `between`: variance over windows (ddof 1) of a window's mean, summed over channels.
    - `slow`, `middle`, `fast`: power within windows of motion with periods of more than 2 s (in
      windows of 8 s, of 8 to 2 s), 2 to .5 s, and less than .5 s; see `split`.
    - `spread`: standard deviation over windows of the log of their amplitude, as likeness has it;
      0 where everybody moves as much as everybody else.

    A group in which no one recorded moves is left out.

    Args:
        generated: (time, dim) of each window.
        recorded: likewise, of the same layout.
        counted: (time,) bool of each window, frames that count, at least 2.

    Raises:
        LayoutError: unlike layouts.
        ValueError: fewer than two windows.
    """
    if len(recorded) < 2:
        raise ValueError(f"what is between windows needs two or more of them, got {len(recorded)}")
    for motion, other in zip(generated, recorded, strict=True):
        require_same_layout(motion.layout, other.layout, "power by band")
    layout = recorded[0].layout
    values = {}
    for group in layout.names:
        x = [each.group(group).astype(np.float64) for each in generated]
        y = [each.group(group).astype(np.float64) for each in recorded]
        of_people = [amplitude(each[part]) for each, part in zip(y, counted, strict=True)]
        if not any(of_people):
            continue
        least = STILL * float(np.mean(of_people))
        own = _sizes(x, counted, layout.fps, least=least)
        people = _sizes(y, counted, layout.fps, least=least)
        values[group] = {name: own[name] / size for name, size in people.items() if size > 0}
    return values


def split(values: np.ndarray, counted: np.ndarray, fps: float) -> dict[str, np.ndarray]:
    """`slow`, `middle`, `fast`: (frames that count, channels) each; they add up to x - mean(x).

    Each is the difference of two centred moving averages, at whose period of 2 s or .5 s half of
    the power is on either side; the widest is the mean, the narrowest the motion itself. Averages
    are taken over those frames within reach that count, so that windows with pauses need no
    stitching; at their edges they lean to one side.

    Args:
        values: (time, channels).
        counted: (time,) bool.
        fps: frames per second.
    """
    slow = _moving_average(values, counted, HALF_POWER * SLOWER * fps)
    faster = _moving_average(values, counted, HALF_POWER * FASTER * fps)
    x = values[counted]
    return {"slow": slow - x.mean(axis=0), "middle": faster - slow, "fast": x - faster}


def _sizes(
    windows: Sequence[np.ndarray], counted: Sequence[np.ndarray], fps: float, least: float
) -> dict[str, float]:
    """What `bands` divides, of one group.

    Args:
        windows: (time, channels) of each.
        counted: (time,) bool of each.
        fps: frames per second.
        least: amplitude, than which none counts as less.
    """
    parts = [x[part] for x, part in zip(windows, counted, strict=True)]
    means = np.stack([part.mean(axis=0) for part in parts])
    amplitudes = np.array([amplitude(part) for part in parts])
    powers = []
    for x, part in zip(windows, counted, strict=True):
        by_band = split(x, part, fps)
        powers.append({name: np.square(motion).mean() for name, motion in by_band.items()})
    power = {name: float(np.mean([each[name] for each in powers])) for name in powers[0]}
    return {
        "between": float(means.var(axis=0, ddof=1).sum()),
        **power,
        "spread": float(log_amplitudes(amplitudes, least).std(ddof=1)),
    }


def _moving_average(values: np.ndarray, counted: np.ndarray, width: float) -> np.ndarray:
    """(frames that count, channels) means over the nearest odd number of frames to `width`."""
    reach = round((width - 1) / 2)
    weights = counted.astype(np.float64)[:, None]
    sums = np.cumsum(np.pad(np.where(weights, values, 0.0), ((1, 0), (0, 0))), axis=0)
    counts = np.cumsum(np.pad(weights, ((1, 0), (0, 0))), axis=0)
    frames = np.flatnonzero(counted)
    first = np.maximum(frames - reach, 0)
    last = np.minimum(frames + reach + 1, len(values))
    averages: np.ndarray = (sums[last] - sums[first]) / (counts[last] - counts[first])
    return averages
