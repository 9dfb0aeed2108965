"""Figures of a motion by which a corpus is compared with people.

They are amplitudes, speeds, bandwidths, rates of blinks and nods, and whether a face moves in
events or all the time.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, find_peaks, sosfiltfilt

from rapport.policies.motion import Motion
from rapport.rewards.ratings.visible import VisibleMotion

WINDOW_S = 8.0  # in which events are looked for
_CLOSED = 0.5  # lid closure that counts as a blink
_NOD_BAND_HZ = (1.0, 4.0)
_NOD_RAD = 0.015  # half a peak-to-peak swing of 1.7 degrees; smaller ones are not counted
_FILTER_FRAMES = 15  # the band-pass needs more frames than this


def motion_statistics(motion: Motion) -> dict[str, float]:
    """Amplitude, speed and bandwidth of head, jaw and expression; rates of blinks and nods.

    Statistics of groups that the layout lacks are left out, not zero; NaN where nothing moves.

    Args:
        motion: one recording, two frames or more; a few seconds at least, or rates mean little.

    Returns:
        `head_{pitch,yaw,roll}_std_deg`, `head_speed_deg_s` (mean size of the velocity),
        `nods_per_min`, `jaw_{mean,std}_deg` and `jaw_speed_deg_s` (opening), `expr_std` (mean over
        coefficients), `expr_speed_ratio` (mean over coefficients of std of velocity / std, 1/s),
        `{head,expr}_power_below_2.5hz` (share of variance), `blinks_per_min`.
    """
    names = motion.layout.names
    fps = motion.layout.fps
    figures: dict[str, float] = {}
    if (rotation := head_rotation(motion)) is not None:
        head = np.degrees(rotation)
        for axis, name in enumerate(("pitch", "yaw", "roll")):
            figures[f"head_{name}_std_deg"] = head[:, axis].std()
        figures["head_speed_deg_s"] = np.linalg.norm(np.diff(head, axis=0), axis=1).mean() * fps
        figures["head_power_below_2.5hz"] = power_below(head, 2.5, fps)
        figures["nods_per_min"] = count_nods(rotation[:, 0], fps) / motion.seconds * 60
    if "jaw" in names:
        jaw = np.degrees(motion.group("jaw")[:, 0].astype(np.float64))
        figures["jaw_mean_deg"] = jaw.mean()
        figures["jaw_std_deg"] = jaw.std()
        figures["jaw_speed_deg_s"] = np.abs(np.diff(jaw)).mean() * fps
    if "expr" in names:
        expr = motion.group("expr").astype(np.float64)
        deviation = expr.std(axis=0)
        speed = np.diff(expr, axis=0).std(axis=0) * fps
        moving = deviation > 0
        figures["expr_std"] = deviation.mean()
        ratios = speed[moving] / deviation[moving]
        figures["expr_speed_ratio"] = ratios.mean() if moving.any() else np.nan
        figures["expr_power_below_2.5hz"] = power_below(expr, 2.5, fps)
    if "eyelid" in names:
        figures["blinks_per_min"] = count_blinks(motion.group("eyelid")) / motion.seconds * 60
    return {name: float(value) for name, value in figures.items()}


def event_statistics(seen: VisibleMotion) -> dict[str, float]:
    """Whether a face and a head rest and move now and then, as people's do, or move all the time.

    Noise of any spectrum has a kurtosis of 3 and hardly rests. Face: corners of the mouth, lips and
    brows, in mm. Paths are smoothed by a Gaussian of one frame, since trackers' noise would pass
    for movement, and looked at in windows of 8 s, by their velocity.

    Args:
        seen: a recording of 8 s or more.

    Returns:
        `{face,head}_kurtosis` of the velocity, mean over landmarks and axes; `{face,head}_still`,
        share of frames slower than a fifth of the rms speed; `{face,head}_fastest_tenth`, the
        energy in the fastest tenth of frames. Empty for a shorter recording; no face where none is
        seen.
    """
    paths = {"head": seen.head}
    if seen.expression is not None:
        face = seen.expression
        singles = [face.lip_opening[:, None]]
        pairs = [face.mouth_lift, face.mouth_spread, face.brow_inner, face.brow_outer]
        paths["face"] = np.concatenate(pairs + singles, axis=1)
    figures = {}
    for name, path in paths.items():
        velocity = np.diff(gaussian_filter1d(path, 1.0, axis=0), axis=0)
        length = round(WINDOW_S * seen.fps) - 1
        starts = range(0, len(velocity) - length + 1, length + 1)
        bursts = [_burst(velocity[start : start + length]) for start in starts]
        rows = [burst for burst in bursts if burst is not None]
        if rows:
            kurtosis, still, fastest = np.mean(rows, axis=0).tolist()
            figures[f"{name}_kurtosis"] = kurtosis
            figures[f"{name}_still"] = still
            figures[f"{name}_fastest_tenth"] = fastest
    return figures


def _burst(velocity: np.ndarray) -> tuple[float, float, float] | None:
    """Kurtosis, share of still frames and energy of the fastest tenth; None where nothing moves."""
    moving = velocity[:, velocity.std(axis=0) > 0]
    if not moving.shape[1]:
        return None
    deviation = moving - moving.mean(axis=0)
    kurtosis = np.mean(deviation**4, axis=0) / np.mean(deviation**2, axis=0) ** 2
    energy = np.sum(moving**2, axis=1)
    still = energy < 0.2**2 * energy.mean()
    fastest = np.sort(energy)[-round(len(energy) / 10) :]
    return float(kurtosis.mean()), float(still.mean()), float(fastest.sum() / energy.sum())


def amplitude_shares(recordings: Iterable[Motion]) -> dict[str, float]:
    """How unlike people are in how much they move: of the log amplitude of windows of 8 s.

    Args:
        recordings: one of each person, of the same layout; those shorter than two windows are left
            out.

    Returns:
        `{expr,head}_log_amplitude_std`, over all windows, and `{expr,head}_between_people`, the
        share of their variance that lies between people (one-way analysis of variance). Empty
        where fewer than two people have moved for long enough.
    """
    amplitudes: dict[str, list[np.ndarray]] = {"expr": [], "head": []}
    for motion in recordings:
        length = round(WINDOW_S * motion.layout.fps)
        count = len(motion) // length
        parts = {"head": head_rotation(motion)}
        if "expr" in motion.layout.names:
            parts["expr"] = motion.group("expr").astype(np.float64)
        for name, path in parts.items():
            if path is None or count < 2:
                continue
            windows = path[: count * length].reshape(count, length, -1)
            amplitude = np.sqrt(windows.var(axis=1).mean(axis=1))
            if (amplitude > 0).all():
                amplitudes[name].append(np.log(amplitude))
    figures = {}
    for name, people in amplitudes.items():
        if len(people) < 2:
            continue
        within = float(np.mean([person.var(ddof=1) for person in people]))
        means = np.array([person.mean() for person in people])
        each = float(np.mean([len(person) for person in people]))
        between = max(float(means.var(ddof=1)) - within / each, 0.0)
        figures[f"{name}_log_amplitude_std"] = float(np.concatenate(people).std())
        figures[f"{name}_between_people"] = between / (between + within) if between else 0.0
    return figures


def head_rotation(motion: Motion) -> np.ndarray | None:
    """(time, 3) float64 radians: the sum of `rot` and `neck`, or None where there is neither.

    The sum of two rotation vectors is exact for small angles.
    """
    rotations = [motion.group(name) for name in ("rot", "neck") if name in motion.layout.names]
    if not rotations:
        return None
    return np.asarray(np.sum(rotations, axis=0, dtype=np.float64))


def power_below(values: np.ndarray, hz: float, fps: float) -> float:
    """Share of the variance of (time, dim) at frequencies up to `hz`.

    All columns that move weigh the same. NaN if none moves.
    """
    spectrum = np.abs(np.fft.rfft(values - values.mean(axis=0), axis=0)) ** 2
    total = spectrum.sum(axis=0)
    low = spectrum[np.fft.rfftfreq(len(values), 1 / fps) <= hz].sum(axis=0)
    moving = total > 0
    if not moving.any():
        return float("nan")
    return float(np.mean(low[moving] / total[moving]))


def count_blinks(eyelids: np.ndarray) -> int:
    """Times at which the mean closure of (time, 2) rises through one half."""
    closed = eyelids.mean(axis=1) > _CLOSED
    return int(np.count_nonzero(closed[1:] & ~closed[:-1]))


def count_nods(pitch: np.ndarray, fps: float) -> int:
    """Count groups of downward swings between 1 and 4 Hz; those within a second are one nod.

    Args:
        pitch: (time,) in radians, down is positive.
        fps: frames per second.
    """
    if len(pitch) <= _FILTER_FRAMES:
        return 0
    band = butter(2, _NOD_BAND_HZ, "bandpass", fs=fps, output="sos")
    swings, _ = find_peaks(sosfiltfilt(band, pitch), height=_NOD_RAD)
    return int(1 + np.count_nonzero(np.diff(swings) > fps)) if len(swings) else 0
