"""What a person takes in of a speaker: face, words and voice, and the affect they make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rapport.policies.clip import AUDIO_RATE
from rapport.rewards.ratings.points import Point
from rapport.rewards.ratings.visible import VisibleMotion, displayed_valence
from rapport.rewards.ratings.voice import CLIP, frame_levels, voice_activity
from rapport.rewards.smoothing import moving_mean

SpokenWords = tuple[tuple[str, float, float], ...]  # text, start and end in seconds

# Level of a subdued and of an excited voice, dB below full scale.
SUBDUED_DB = -40.0
EXCITED_DB = -12.0
MEANING_SECONDS = 4.0  # what was said fades over about a sentence
MEANING_GAIN = 1.5  # one strong word (valence 0.7) makes a clear case: tanh(1.05) = 0.78
# Lips that speak move the corners of the mouth. An expression outlasts syllables.
FACE_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class SpeakerCues:
    """What is seen and heard of a speaker during a clip.

    None means that a cue is absent, which is not the same as silence or a blank face.

    Args:
        visible: the face, at the frame rate of the listener.
        words: what is said; `()` when nothing is.
        audio: (samples,) at `audio_rate` Hz, full scale 1.
        audio_rate: samples per second.
        points: what the speaker means, for raters who understand speech; None = nobody knows.
        name: of the clip; who misreads which point depends on it.
    """

    visible: VisibleMotion | None = None
    words: SpokenWords | None = None
    audio: np.ndarray | None = None
    audio_rate: int = AUDIO_RATE
    points: tuple[Point, ...] | None = None
    name: str = ""


@dataclass(frozen=True, eq=False)
class SpeakerRead:
    """A speaker as understood, at the listener's frames; None = there was no cue to tell it by.

    Args:
        face: (time,) valence of the face, in [-1, 1].
        meaning: (time,) valence of what has been said so far, in [-1, 1].
        liveliness: (time,) 0 = subdued, 1 = excited voice.
        pauses: (time,) bool, the speaker is silent.
    """

    face: np.ndarray | None
    meaning: np.ndarray | None
    liveliness: np.ndarray | None
    pauses: np.ndarray | None

    @property
    def has_affect(self) -> bool:
        """Whether glad can be told from angry. Loudness alone does not tell."""
        return self.face is not None or self.meaning is not None


def read_speaker(
    cues: SpeakerCues, lexicon: Mapping[str, float], frames: int, fps: float
) -> SpeakerRead:
    """Understand a speaker over the frames of a listener.

    Args:
        cues: what is seen and heard.
        lexicon: word -> valence in [-1, 1]. Empty = words are not understood.
        frames: length of the listener's motion.
        fps: frames per second of the listener's motion.

    Raises:
        ValueError: the speaker is seen at another frame rate or for another time.
    """
    face = meaning = liveliness = pauses = None
    if cues.visible is not None and cues.visible.expression is not None:
        if (len(cues.visible), cues.visible.fps) != (frames, fps):
            raise ValueError(
                f"speaker seen for {len(cues.visible)} frames at {cues.visible.fps:g} fps, "
                f"listener for {frames} at {fps:g}; resample one of them"
            )
        face = moving_mean(displayed_valence(cues.visible.expression), FACE_SECONDS * fps)
    if cues.words is not None and lexicon:
        meaning = spoken_valence(cues.words, lexicon, frames=frames, fps=fps)
    if cues.audio is not None:
        levels = frame_levels(cues.audio, cues.audio_rate, frames=frames, fps=fps)
        speaks = voice_activity(levels, CLIP)
        loudness = np.clip((levels - SUBDUED_DB) / (EXCITED_DB - SUBDUED_DB), 0, 1)
        # Mean loudness of the speech within the second around: pauses do not make a voice calm.
        loudness_sum = moving_mean(np.where(speaks, loudness, 0), fps)
        speech_share = moving_mean(speaks.astype(np.float64), fps)
        liveliness = loudness_sum / np.maximum(speech_share, 1 / fps)
        pauses = ~speaks
    return SpeakerRead(face=face, meaning=meaning, liveliness=liveliness, pauses=pauses)


def bare_word(text: str) -> str:
    """A word of a transcript as a lexicon has it: lower case, without punctuation around it."""
    return text.lower().strip(".,!?;:\"'")


def spoken_valence(
    words: SpokenWords, lexicon: Mapping[str, float], frames: int, fps: float
) -> np.ndarray:
    """Valence of what has been said so far, (frames,) in (-1, 1).

    Each word counts from its end on and fades exponentially. Words that the lexicon lacks count as
    neutral.
    """
    times = np.arange(frames) / fps
    total = np.zeros(frames)
    for text, _, end in words:
        since = times - end
        fading = np.exp(-np.maximum(since, 0) / MEANING_SECONDS)
        total += np.where(since >= 0, lexicon.get(bare_word(text), 0.0) * fading, 0)
    return np.tanh(MEANING_GAIN * total)
