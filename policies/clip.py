"""One clip of a dyad: what the speaker shows and says, and how the listener moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapport.policies.motion import Motion

AUDIO_RATE = 16_000  # Hz, mono; what wav2vec2 and the published corpora use


@dataclass(frozen=True)
class Word:
    """A spoken word; `start` and `end` in seconds from the start of the clip.

    Both are negative for what was said before.
    """

    text: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Past:
    """What came right before a clip, in modalities as those of `Clip`; None where one is absent.

    Motion, sound and frames cover the same stretch of time, which ends where the clip starts.

    Args:
        listener: the listener's motion, (time, dim).
        speaker: the speaker's motion.
        speaker_frames: (frames, height, width, 3) uint8, as many a second as the clip has.
        speaker_audio: (samples,) float32 in [-1, 1] at `AUDIO_RATE`.
        words: what the speaker has said, which may reach back further than motion and sound do.
    """

    listener: Motion
    speaker: Motion | None = None
    speaker_frames: np.ndarray | None = None
    speaker_audio: np.ndarray | None = None
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True, eq=False)
class Clip:
    """A window of a dyad. A modality the corpus lacks is None: absent, never zeros.

    Motion, sound, words and frames cover the same stretch of time. A policy learns the
    listener's motion; the speaker is the person whom the listener sees and hears.

    Args:
        clip_id: unique in its corpus.
        dyad_id: clips of one dyad or recording share it; splits never cut through it unless
            the corpus is a single recording, which is then split by time.
        split: "train", "validation" or "test".
        listener: the listener's motion, (time, dim).
        speaker: the speaker's motion at the same frame rate, or None.
        speaker_frames: (frames, height, width, 3) uint8, evenly spaced over the clip, or None.
        speaker_audio: (samples,) float32 in [-1, 1] at `AUDIO_RATE`, or None.
        listener_audio: the same of the listener.
        words: what the speaker says, in seconds from the start of the clip, or None when there is
            no transcript (silence is `()`).
        speaker_shape: identity coefficients of the speaker's head, (n,), or None.
        manner: what the listener is told to be like, the text prompt of policies that take one.
        speaker_id: who speaks, by a name that no other conversation has; "" = not known.
        start: seconds from the start of the recording. Clips of one speaker with the same start
            are several listeners to the same words.
        past: what came before; None where nothing is known of it.
        rest: the listener's face at rest, one frame; None where it is not known.
    """

    clip_id: str
    dyad_id: str
    split: str
    listener: Motion
    speaker: Motion | None = None
    speaker_frames: np.ndarray | None = None
    speaker_audio: np.ndarray | None = None
    listener_audio: np.ndarray | None = None
    words: tuple[Word, ...] | None = None
    speaker_shape: np.ndarray | None = None
    manner: str | None = None
    speaker_id: str = ""
    start: float = 0.0
    past: Past | None = None
    rest: Motion | None = None

    @property
    def moment(self) -> tuple[str, float]:
        """What is answered: clips with the same one show different listeners to it."""
        return self.speaker_id or self.dyad_id, self.start

    @property
    def seconds(self) -> float:
        """Length."""
        return len(self.listener) / self.listener.layout.fps

    @property
    def speaker_with_past(self) -> Motion | None:
        """The speaker's motion through past and clip; the clip's alone where the past has none."""
        if self.speaker is None or self.past is None or self.past.speaker is None:
            return self.speaker
        values = np.concatenate([self.past.speaker.values, self.speaker.values])
        return Motion(values, self.speaker.layout)

    @property
    def text(self) -> str | None:
        """What the speaker says, as one line; None when there is no transcript."""
        return None if self.words is None else " ".join(word.text for word in self.words)

    @property
    def absent(self) -> list[str]:
        """Names of the modalities this clip lacks."""
        names = ("speaker", "speaker_frames", "speaker_audio", "listener_audio", "words")
        return [name for name in names if getattr(self, name) is None]
