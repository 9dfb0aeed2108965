"""Cut a long recording into clips of equal length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rapport.policies.clip import AUDIO_RATE, Clip, Word


def window_starts(frames: int, length: int, stride: int) -> range:
    """First frames of all windows of `length` frames that fit wholly into `frames`."""
    return range(0, frames - length + 1, stride)


def cut(recording: Clip, start: int, length: int, clip_id: str) -> Clip:
    """Take frames [start, start + length) of a recording with everything that belongs to them.

    A word belongs to the window in which its middle lies; its times count from the window's start.

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
    return replace(
        recording,
        clip_id=clip_id,
        listener=recording.listener.window(start, length),
        speaker=None if recording.speaker is None else recording.speaker.window(start, length),
        speaker_audio=_samples(recording.speaker_audio, first, samples),
        listener_audio=_samples(recording.listener_audio, first, samples),
        words=None if recording.words is None else _words(recording.words, begin, end),
    )


def _samples(audio: np.ndarray | None, first: int, samples: int) -> np.ndarray | None:
    if audio is None:
        return None
    if first + samples > len(audio):
        raise ValueError(
            f"audio of {len(audio)} samples ends before sample {first + samples}: cut it with "
            "the motion"
        )
    return audio[first : first + samples]


def _words(words: tuple[Word, ...], begin: float, end: float) -> tuple[Word, ...]:
    inside = [word for word in words if begin <= (word.start + word.end) / 2 < end]
    return tuple(
        Word(word.text, max(word.start, begin) - begin, min(word.end, end) - begin)
        for word in inside
    )
