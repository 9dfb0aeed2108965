"""From a clip to what the policy is shown of it, chunk by chunk.

A policy at time t knows what was seen, heard and said until t. A word is known when it ends, a
frame when it was taken, sound at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rapport.policies.clip import AUDIO_RATE, Clip, Word
from rapport.policies.pictures import SAME_S, resized
from rapport.policies.sound import BANDS
from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.sound import log_mel, sound_before, voice_frames
from rapport.policies.vla.vla_prompt import VlaPrompt

Encode = Callable[[str], Sequence[int]]  # of a word, into ids of the text vocabulary


@dataclass(frozen=True, eq=False)
class Heard:
    """What reaches a listener of a stretch of time; None where a stream is absent.

    Args:
        start: where it begins, seconds from the start of the clip; negative before it.
        end: where it ends.
        frames: (n, height, width, 3) uint8, evenly spaced over it.
        audio: (samples,) float32 in [-1, 1] at `AUDIO_RATE`.
        words: those known at its end.
    """

    start: float
    end: float
    frames: np.ndarray | None
    audio: np.ndarray | None
    words: tuple[Word, ...] | None


def heard_of(clip: Clip) -> list[Heard]:
    """The past of a clip, where it has one, and the clip."""
    stretches = []
    words = clip.words
    if clip.past is not None:
        past = clip.past
        length = len(past.listener) / past.listener.layout.fps
        before = Heard(-length, 0.0, past.speaker_frames, past.speaker_audio, past.words)
        stretches.append(before)
        if words is not None and past.words is not None:
            words = (*past.words, *words)
    return [*stretches, Heard(0.0, clip.seconds, clip.speaker_frames, clip.speaker_audio, words)]


def build_prompt(
    config: FaceVLAConfig, clip: Clip, encode: Encode, own: np.ndarray, rest: np.ndarray
) -> VlaPrompt:
    """What a policy is shown of a clip.

    Args:
        config: of the policy.
        clip: with its past, where there is one.
        encode: ids of a word.
        own: (n,) ids of the pose before the clip.
        rest: (dims,) the listener's face at rest.

    Raises:
        ValueError: the clip is shorter than the reactions of the policy, or has frames that are no
            RGB images; names the clip.
    """
    chunk = config.chunk_seconds
    wanted = config.chunks * chunk
    if clip.seconds < wanted - SAME_S:
        raise ValueError(
            f"clip {clip.clip_id!r} has {clip.seconds:g} s, this policy reacts to {wanted:g} s"
        )
    streams = heard_of(clip)
    ends = [(index - config.history) * chunk for index in range(config.items)]
    frames = [pictures(streams, end, config) for end in ends]
    voice = [voice_of(streams, end, config) for end in ends]
    present = [
        [picture is not None, bands is not None]
        for picture, bands in zip(frames, voice, strict=True)
    ]
    words = streams[-1].words
    before = clip.past is not None and clip.past.words is not None
    starts = [index * chunk for index in range(config.chunks)]
    heads = []
    said = []
    for start in starts:
        # What was said before the clip is not known where it has no past.
        known = words if before or start - chunk > SAME_S else None
        heads.append(
            text_region(config, words_between(known, -math.inf, start - chunk), encode, head=True)
        )
        known = words if before or start > SAME_S else None
        said.append(
            text_region(config, words_between(known, start - chunk, start), encode, head=False)
        )
    return VlaPrompt(
        clip.clip_id,
        frames=_stacked(frames),
        voice=_stacked(voice),
        present=np.array(present, bool).reshape(config.items, 2),
        heard=np.array(heads, np.int64),
        said=np.array(said, np.int64),
        own=np.asarray(own, np.int64),
        rest=np.asarray(rest, np.float64),
    )


def words_between(words: Sequence[Word] | None, start: float, end: float) -> list[Word] | None:
    """The words that end after `start` and not after `end`, by their ends; None stays None."""
    if words is None:
        return None
    inside = [word for word in words if start + SAME_S < word.end <= end + SAME_S]
    return sorted(inside, key=lambda word: word.end)


def text_region(
    config: FaceVLAConfig, words: Sequence[Word] | None, encode: Encode, *, head: bool
) -> list[int]:
    """Ids of words, right-aligned; the end of what is too long is kept.

    Args:
        config: of the policy.
        words: in order; [] is silence, None an absent transcript.
        encode: ids of a word.
        head: whether they stand in the head of a context, or are those of a chunk.
    """
    length = config.text_tokens if head else config.chunk_text
    if words is None:
        return [config.absent_token_id] * length
    ids = [token for word in words for token in encode(word.text)][-length:]
    return [config.blank_token_id] * (length - len(ids)) + ids


def pictures(streams: Sequence[Heard], end: float, config: FaceVLAConfig) -> np.ndarray | None:
    """The frames of the chunk that ends at `end`, (frames, size, size, 3) uint8.

    Each is the newest one at the end of its equal part of the chunk, so that a chunk shorter than
    the time between two frames shows the same one again. None where there is none yet.
    """
    taken = pictures_taken(streams, end, config)
    if taken is None:
        return None
    return resized(np.stack([frame for frame, _ in taken]), config.image_size)


def pictures_taken(
    streams: Sequence[Heard], end: float, config: FaceVLAConfig
) -> list[tuple[np.ndarray, float]] | None:
    """The same as the corpus has them, each with the moment at which it was taken."""
    taken = []
    for part in range(1, config.frames + 1):
        moment = end - config.chunk_seconds * (config.frames - part) / config.frames
        newest = _newest(streams, moment)
        if newest is None:
            return None
        taken.append(newest)
    return taken


def _newest(streams: Sequence[Heard], moment: float) -> tuple[np.ndarray, float] | None:
    """The last frame taken at or before a moment; frame k of n is taken at (k + .5) / n."""
    for stream in reversed(streams):
        if stream.frames is None or not len(stream.frames):
            continue
        every = (stream.end - stream.start) / len(stream.frames)
        number = math.floor((moment - stream.start) / every - 0.5 + SAME_S)
        if number >= 0:
            number = min(number, len(stream.frames) - 1)
            return stream.frames[number], stream.start + (number + 0.5) * every
    return None


def voice_of(streams: Sequence[Heard], end: float, config: FaceVLAConfig) -> np.ndarray | None:
    """Log-mel bands of the chunk that ends at `end`; None where some of its sound is absent."""
    if not config.voice_tokens:
        return None
    pieces: list[np.ndarray] = []
    begin = end - config.chunk_seconds
    known_from = end
    earliest = begin - sound_before(config.chunk_seconds) / AUDIO_RATE
    for stream in reversed(streams):
        if stream.start >= known_from - SAME_S:
            continue
        if stream.audio is None or known_from > stream.end + SAME_S:
            break
        first = max(round((earliest - stream.start) * AUDIO_RATE), 0)
        last = round((known_from - stream.start) * AUDIO_RATE)
        if last > len(stream.audio):
            break
        pieces.insert(0, stream.audio[first:last])
        known_from = stream.start
        if known_from <= earliest:
            break
    if known_from > begin + SAME_S:
        return None
    return log_mel(np.concatenate(pieces), config.chunk_seconds)


def _stacked(items: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """All items in one array, zeros for those that are absent; None where all are."""
    shown = next((item for item in items if item is not None), None)
    if shown is None:
        return None
    return np.stack([np.zeros_like(shown) if item is None else item for item in items])


def picture_shape(config: FaceVLAConfig) -> tuple[int, ...]:
    """Of the frames of an item."""
    return (config.frames, config.image_size, config.image_size, 3)


def voice_shape(config: FaceVLAConfig) -> tuple[int, ...]:
    """Of the bands of an item; empty where the policy hears no voice."""
    return (voice_frames(config.chunk_seconds) if config.voice_tokens else 0, BANDS)
