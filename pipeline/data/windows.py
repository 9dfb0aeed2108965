"""Cut a long recording into clips of equal length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from rapport.policies.clip import AUDIO_RATE, Clip, Past, Word

HEARD_S = 20.0  # what has been said is remembered for longer than what has been seen


def window_starts(frames: int, length: int, stride: int) -> range:
    """First frames of all windows of `length` frames that fit wholly into `frames`."""
    return range(0, frames - length + 1, stride)


def cut(recording: Clip, start: int, length: int, clip_id: str, past: int = 0) -> Clip:
    """Take frames [start, start + length) of a recording with everything that belongs to them.

    A word belongs to the window in which its middle lies; its times count from the window's start.

    Args:
        recording: to cut from.
        start: first frame.
        length: frames.
        clip_id: of the clip.
        past: frames before it that are kept as its past; it has none where the recording starts
            later. Words are kept for `HEARD_S`.

    Raises:
        ValueError: the recording's sound ends before the window does, or it has video frames,
            which are drawn or decoded for each clip after the cut.
    """
    if recording.speaker_frames is not None:
        raise ValueError(
            f"recording {recording.clip_id!r} has video frames: cut first, then add frames to "
            "the clips"
        )
    fps = recording.listener.layout.fps
    begin = start / fps
    end = (start + length) / fps
    first = round(begin * AUDIO_RATE)
    samples = round(length / fps * AUDIO_RATE)
    before = None
    if 0 < past <= start:
        before = _past(recording, start, past)
    return replace(
        recording,
        clip_id=clip_id,
        start=recording.start + begin,
        past=before,
        listener=recording.listener.window(start, length),
        speaker=None if recording.speaker is None else recording.speaker.window(start, length),
        speaker_audio=_samples(recording.speaker_audio, first, samples),
        listener_audio=_samples(recording.listener_audio, first, samples),
        words=None if recording.words is None else words_between(recording.words, begin, end),
    )


def _past(recording: Clip, start: int, length: int) -> Past:
    """The `length` frames before frame `start`."""
    fps = recording.listener.layout.fps
    begin = start / fps
    first = round((start - length) / fps * AUDIO_RATE)
    samples = round(length / fps * AUDIO_RATE)
    speaker = recording.speaker
    words = None
    if recording.words is not None:
        heard = begin - max(length / fps, HEARD_S)
        words = tuple(
            Word(word.text, word.start - begin, word.end - begin)
            for word in recording.words
            if heard <= (word.start + word.end) / 2 < begin
        )
    return Past(
        listener=recording.listener.window(start - length, length),
        speaker=None if speaker is None else speaker.window(start - length, length),
        speaker_audio=_samples(recording.speaker_audio, first, samples),
        words=words,
    )


def _samples(audio: np.ndarray | None, first: int, samples: int) -> np.ndarray | None:
    if audio is None:
        return None
    # Begin and length are rounded each for itself: the last sample may be one too many.
    if first and first + samples == len(audio) + 1:
        first -= 1
    if first + samples > len(audio):
        raise ValueError(
            f"audio of {len(audio)} samples ends before sample {first + samples}: cut it with "
            "the motion"
        )
    return audio[first : first + samples]


def words_between(words: Iterable[Word], begin: float, end: float) -> tuple[Word, ...]:
    """Words whose middle lies in [begin, end), in seconds; their times count from `begin`."""
    inside = [word for word in words if begin <= (word.start + word.end) / 2 < end]
    return tuple(
        Word(word.text, max(word.start, begin) - begin, min(word.end, end) - begin)
        for word in inside
    )
