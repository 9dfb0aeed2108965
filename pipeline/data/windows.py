"""Cut a long recording into clips of equal length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from rapport.policies.clip import AUDIO_RATE, Clip, Word


def window_starts(frames: int, length: int, stride: int) -> range:
    """First frames of all windows of `length` frames that fit wholly into `frames`."""
    return range(0, frames - length + 1, stride)


def cut(recording: Clip, start: int, length: int, clip_id: str) -> Clip:
    """Frames [start, start + length) of a recording with everything that belongs to them.

    A word belongs to the window in which its middle lies; its times count from the window's start.
    Video frames must not be there yet: they are drawn or decoded per clip.
    """
    if recording.speaker_frames is not None:
        raise ValueError(
            f"recording {recording.clip_id!r} has video frames: cut first, then add frames to "
            "the clips"
        )
    fps = recording.listener.layout.fps
    begin, end = start / fps, (start + length) / fps
    first, samples = round(begin * AUDIO_RATE), round(length / fps * AUDIO_RATE)
    return replace(
        recording,
        clip_id=clip_id,
        listener=recording.listener.window(start, length),
        speaker=None if recording.speaker is None else recording.speaker.window(start, length),
        speaker_audio=_samples(recording.speaker_audio, first, samples),
        listener_audio=_samples(recording.listener_audio, first, samples),
        words=None if recording.words is None else _words(recording.words, begin, end),
    )


def windows(recording: Clip, seconds: float, stride_seconds: float) -> Iterator[Clip]:
    """Clips of `seconds`, one every `stride_seconds`, with ids `<recording>-<first frame>`."""
    fps = recording.listener.layout.fps
    length, stride = round(seconds * fps), round(stride_seconds * fps)
    if length < 1 or stride < 1:
        raise ValueError(
            f"windows of {seconds} s every {stride_seconds} s are under a frame at {fps:g} fps"
        )
    for start in window_starts(len(recording.listener), length, stride):
        yield cut(recording, start, length, f"{recording.clip_id}-{start:06d}")


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
    inside = [w for w in words if begin <= (w.start + w.end) / 2 < end]
    return tuple(Word(w.text, max(w.start, begin) - begin, min(w.end, end) - begin) for w in inside)
