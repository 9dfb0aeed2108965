"""Who speaks when, told by the loudness of the sound alone.

Speech stands out from what is always there. So the level of the background is followed: it is that
of the quietest tenth of a second within some seconds, because people pause and hiss does not
(minimum statistics, Martin 2001). Steady noise, 10 dB below the speech or more, changes little.
What comes and goes as speech does, say music or other people, is taken for it.

Two uses share one detector. `RECORDING` is for a whole recording of one person, in steps of 10 ms.
`CLIP` is what a rater hears of a short clip, frame by frame of its video. Their thresholds differ
because the sounds do: a recording of an hour has loud moments to compare with and real pauses at
its ends; a clip of a few seconds may be mostly silence and was cut out of the middle of speech.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    binary_opening,
    minimum_filter1d,
    uniform_filter1d,
)

from rapport.policies.clip import AUDIO_RATE

STEP = AUDIO_RATE // 100  # samples in a step of 10 ms


@dataclass(frozen=True)
class VoiceThresholds:
    """When a moment of sound counts as speech.

    Args:
        floor_db: quieter than this below full scale is never speech, so that a silent recording
            has none.
        range_db: speech is at most this much quieter than the loud moments of the same sound.
        above_noise_db: speech is at least this much louder than the background.
        pause: moments, a tenth of a second, whose mean is a level of the background.
        horizon: moments around one in which its background is looked for.
        loud_moments: the 95th percentile of what gives their level: of the moments above the floor,
            or of all moments.
        bridge: gaps of up to this many moments are inside speech.
        shortest: bursts of fewer moments are noises, not speech.
        ends: what is taken to lie beyond the ends of the sound: silence, or the sound mirrored, so
            that a gap at an end is bridged when it is up to half as long as one inside.
    """

    floor_db: float
    range_db: float
    above_noise_db: float
    pause: int
    horizon: int
    loud_moments: Literal["above_floor", "all"]
    bridge: int
    shortest: int
    ends: Literal["silent", "mirrored"]


# Stop consonants make gaps of up to 0.2 s (Heldner & Edlund 2010 use 0.18 s), clicks last less
# than 0.05 s. For `step_levels`.
RECORDING = VoiceThresholds(
    floor_db=-60.0,
    range_db=30.0,
    above_noise_db=6.0,
    pause=10,
    horizon=600,
    loud_moments="above_floor",
    bridge=20,
    shortest=5,
    ends="silent",
)
# Six frames of video are 0.24 s at 25 fps. For `frame_levels`.
CLIP = VoiceThresholds(
    floor_db=-50.0,
    range_db=25.0,
    above_noise_db=6.0,
    pause=2,
    horizon=150,
    loud_moments="all",
    bridge=6,
    shortest=1,
    ends="mirrored",
)


def step_levels(audio: np.ndarray) -> np.ndarray:
    """Level of every whole step of 10 ms, dB below full scale, (samples // 160,).

    Args:
        audio: (samples,) at `AUDIO_RATE`, full scale 1.
    """
    windows = audio[: len(audio) // STEP * STEP].reshape(-1, STEP)
    levels: np.ndarray = 20 * np.log10(np.sqrt(np.mean(windows**2, axis=1)) + 1e-10)
    return levels


def frame_levels(audio: np.ndarray, rate: int, frames: int, fps: float) -> np.ndarray:
    """Level during every frame of a video, dB below full scale, (frames,).

    Past the end of the sound there is silence, -100 dB.

    Args:
        audio: (samples,), full scale 1.
        rate: samples per second.
        frames: length of the video.
        fps: frames per second.
    """
    audio = np.asarray(audio, np.float64)
    edges = np.round(np.arange(frames + 1) * rate / fps).astype(int)
    edges = np.minimum(edges, len(audio))
    power = np.concatenate([[0.0], np.cumsum(audio**2)])
    levels: np.ndarray = 10 * np.log10(np.diff(power[edges]) / (rate / fps) + 1e-10)
    return levels


def voice_activity(levels: np.ndarray, thresholds: VoiceThresholds) -> np.ndarray:
    """Which moments are speech, (moments,) bool, from their levels in dB (moments,)."""
    loud = levels
    if thresholds.loud_moments == "above_floor":
        loud = levels[levels > thresholds.floor_db]
    if not len(loud):
        return np.zeros(len(levels), bool)
    lowest = max(np.quantile(loud, 0.95) - thresholds.range_db, thresholds.floor_db)
    noise = noise_levels(levels, thresholds)
    speech = levels > np.maximum(lowest, noise + thresholds.above_noise_db)
    bridged = bridge(speech, thresholds.bridge, mirrored=thresholds.ends == "mirrored")
    lasting: np.ndarray = binary_opening(bridged, np.ones(thresholds.shortest))
    return lasting


def noise_levels(levels: np.ndarray, thresholds: VoiceThresholds) -> np.ndarray:
    """The level of the background at every moment, (moments,) dB, from all levels (moments,)."""
    power = 10 ** (levels.astype(np.float64) / 10)
    power = uniform_filter1d(power, thresholds.pause, mode="nearest")
    quietest = minimum_filter1d(power, thresholds.horizon, mode="nearest")
    background: np.ndarray = 10 * np.log10(np.maximum(quietest, 1e-20))
    return background


def bridge(speech: np.ndarray, longest_gap: int, mirrored: bool) -> np.ndarray:
    """Speech (moments,) bool with its gaps of up to `longest_gap` moments, an even number, closed.

    It is grown, then shrunk. Growing stops at the ends of the sound, so where what lies beyond them
    is silent, that silence is put there first.
    """
    padding = 0 if mirrored else longest_gap
    window = np.ones(longest_gap + 1)
    grown = binary_dilation(np.pad(speech, padding), window)
    # Every moment of a mirrored sound that the window sees beyond an end, it sees inside as well.
    # So what lies beyond may count as speech: it is what lies inside that decides.
    bridged: np.ndarray = binary_erosion(grown, window, border_value=mirrored)
    return bridged[padding : len(bridged) - padding]
