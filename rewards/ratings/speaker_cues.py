"""What a person takes in of a speaker: the face, the words, the voice; and the affect they make of
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter1d

from rapport.rewards.ratings.visible import VisibleMotion, displayed_valence

VOICE_FLOOR_DB = -50.0  # below full scale: never voice, whatever the rest of the clip
VOICE_RANGE_DB = 25.0  # and within this of the clip's loudest frames
LIVELY_DB = (-40.0, -12.0)  # energy of a subdued and of an excited voice
MEANING_SECONDS = 4.0  # what was said fades over about a sentence
MEANING_GAIN = 1.5  # one strong word (valence 0.7) makes a clear case: tanh(1.05) = 0.78
FACE_SECONDS = (
    0.5  # lips that speak move the corners of the mouth; an expression outlasts syllables
)


@dataclass(frozen=True, eq=False)
class SpeakerCues:
    """What is seen and heard of the speaker during a clip; None = absent, which is not silence or a
    blank face.

    Args:
        visible: the face, at the frame rate of the listener.
        words: (text, start, end) with times in seconds; `()` when nothing is said.
        audio: (samples,) at `audio_rate` Hz, full scale 1.
    """

    visible: VisibleMotion | None = None
    words: tuple[tuple[str, float, float], ...] | None = None
    audio: np.ndarray | None = None
    audio_rate: int = 16_000


@dataclass(frozen=True, eq=False)
class SpeakerRead:
    """A speaker as understood, at the listener's frames; None = there was nothing to tell it by.

    Args:
        face, meaning: (time,) valence in [-1, 1] of the face and of what has been said so far.
        liveliness: (time,) 0 = subdued, 1 = excited voice.
        pauses: (time,) bool, the speaker is silent.
    """

    face: np.ndarray | None
    meaning: np.ndarray | None
    liveliness: np.ndarray | None
    pauses: np.ndarray | None

    @property
    def has_affect(self) -> bool:
        """Loudness alone does not tell glad from angry."""
        return self.face is not None or self.meaning is not None


def read_speaker(
    cues: SpeakerCues, lexicon: Mapping[str, float], frames: int, fps: float
) -> SpeakerRead:
    """Understand a speaker over `frames` frames at `fps`. `lexicon`: word -> valence in [-1, 1]."""
    face = meaning = liveliness = pauses = None
    if cues.visible is not None and cues.visible.expression is not None:
        if (len(cues.visible), cues.visible.fps) != (frames, fps):
            raise ValueError(
                f"speaker seen for {len(cues.visible)} frames at {cues.visible.fps:g} fps, "
                "listener for "
                f"{frames} at {fps:g}; resample one of them"
            )
        face = moving_mean(displayed_valence(cues.visible.expression), FACE_SECONDS * fps)
    if cues.words is not None and lexicon:
        meaning = spoken_valence(cues.words, lexicon, frames, fps)
    if cues.audio is not None:
        level = energy_db(cues.audio, cues.audio_rate, frames, fps)
        voiced = voice_activity(level)
        low, high = LIVELY_DB
        loudness = np.where(voiced, np.clip((level - low) / (high - low), 0, 1), 0)
        heard = moving_mean(voiced.astype(np.float64), fps)
        liveliness = moving_mean(loudness, fps) / np.maximum(heard, 1 / fps)
        pauses = ~voiced
    return SpeakerRead(face, meaning, liveliness, pauses)


def spoken_valence(
    words: tuple[tuple[str, float, float], ...],
    lexicon: Mapping[str, float],
    frames: int,
    fps: float,
) -> np.ndarray:
    """(frames,) valence of what has been said: each word counts from its end on and fades
    exponentially.
    """
    times = np.arange(frames) / fps
    total = np.zeros(frames)
    for text, _, end in words:
        since = times - end
        fading = np.exp(-np.maximum(since, 0) / MEANING_SECONDS)
        total += np.where(since >= 0, lexicon.get(text.lower().strip(".,!?;:\"'"), 0.0) * fading, 0)
    return np.tanh(MEANING_GAIN * total)


def energy_db(audio: np.ndarray, rate: int, frames: int, fps: float) -> np.ndarray:
    """(frames,) mean power of the sound during each frame, in dB below full scale; silence past its
    end.
    """
    audio = np.asarray(audio, np.float64)
    edges = np.round(np.arange(frames + 1) * rate / fps).astype(int)
    power = np.concatenate([[0.0], np.cumsum(audio**2)])
    edges = np.minimum(edges, len(audio))
    return 10 * np.log10(np.diff(power[edges]) / (rate / fps) + 1e-10)


def voice_activity(level: np.ndarray, hangover: int = 3) -> np.ndarray:
    """(frames,) bool from energy in dB: above a floor and near the clip's loudest; gaps up to 2 x 3
    frames closed.
    """
    threshold = max(VOICE_FLOOR_DB, float(np.quantile(level, 0.95)) - VOICE_RANGE_DB)
    voiced = (level > threshold).astype(np.float64)
    window = np.ones(2 * hangover + 1)
    grown = np.convolve(np.pad(voiced, hangover, mode="edge"), window, mode="valid") > 0
    return np.convolve(np.pad(~grown, hangover, mode="edge"), window, mode="valid") == 0


def moving_mean(x: np.ndarray, frames: float) -> np.ndarray:
    """Mean of the `frames` frames around each, along the first axis."""
    return uniform_filter1d(x, size=max(1, round(frames)), axis=0, mode="nearest")
