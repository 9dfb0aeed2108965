"""Frames of a speaker: drawn from tracked motion by a head, or decoded from videos.

A clip has `rate` frames a second, the k-th at (k + 1/2) / rate seconds. What is shown at a moment
is the last thing that was there by then: never a later frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image

from rapport.files import visible
from rapport.pipeline.data.store import CorpusError
from rapport.policies.clip import Clip, Past
from rapport.policies.head.asset import load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.head.settings import HeadConfig
from rapport.policies.head.video import on_this_head
from rapport.policies.motion import Motion

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi")
_ALIKE_S = 1e-4  # moments nearer than this are one
_EARLY_S = 1e-3  # rounding of time stamps
Look = Callable[[np.ndarray], np.ndarray]  # (n,) seconds, ascending -> (n, height, width, 3) uint8


def frame_moments(seconds: float, rate: float) -> np.ndarray:
    """When the frames of a stretch of time are taken, (round(seconds * rate),) seconds."""
    moments: np.ndarray = (np.arange(round(seconds * rate)) + 0.5) / rate
    return moments


def with_frames(clips: Sequence[Clip], recording: Clip, rate: float, look: Look) -> list[Clip]:
    """Clips with the frames of their own time and of their past; each moment is looked at once.

    Args:
        clips: cut from `recording`.
        recording: whose start times count from.
        rate: frames a second.
        look: shows the speaker at moments of the recording.
    """
    wanted = [_moments(clip, recording.start, rate) for clip in clips]
    if not wanted:
        return []
    keys = np.unique(np.round(np.concatenate([np.concatenate(pair) for pair in wanted]) / _ALIKE_S))
    images = look(keys * _ALIKE_S)

    def at(moments: np.ndarray) -> np.ndarray:
        taken: np.ndarray = images[np.searchsorted(keys, np.round(moments / _ALIKE_S))]
        return taken

    shown = []
    for clip, (before, own) in zip(clips, wanted, strict=True):
        past = clip.past
        if past is not None:
            past = replace(past, speaker_frames=at(before))
        shown.append(replace(clip, speaker_frames=at(own), past=past))
    return shown


def _moments(clip: Clip, start: float, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Of the past and of the clip itself, in seconds of the recording."""
    begin = clip.start - start
    own = begin + frame_moments(clip.seconds, rate)
    if clip.past is None:
        return np.zeros(0), own
    seconds = _seconds(clip.past)
    return begin - seconds + frame_moments(seconds, rate), own


def _seconds(past: Past) -> float:
    return past.listener.seconds


@dataclass(frozen=True)
class Drawing:
    """How a speaker's motion is drawn.

    Args:
        rate: frames a second.
        size: height and width, pixels.
        head: that is drawn.
    """

    rate: float
    size: int
    head: HeadConfig = HeadConfig()


class Painter:
    """Draws motion of any head in FLAME's layout on one head."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self.asset = load_head(drawing.head.path, drawing.head.topology)
        self._head = FlameHead(self.asset)
        self._rasterizer = Rasterizer(self.asset, size=drawing.size, supersample=2)

    def shows_faces_of(self, topology: str) -> bool:
        """Whether expressions are shown; else only how head and jaw turn."""
        return topology == self.asset.topology

    def of(self, motion: Motion, shape: np.ndarray | None) -> Look:
        """A speaker to look at.

        Args:
            motion: of the speaker.
            shape: (n,) identity on the head that the motion is of; not used on another.
        """
        shown, whole = on_this_head(motion, self.asset)
        identity = shape if whole else None

        def look(moments: np.ndarray) -> np.ndarray:
            frames = np.floor(moments * motion.layout.fps + _EARLY_S).astype(int)
            poses = Motion(shown.values[frames], shown.layout)
            return self._rasterizer.render(self._head.vertices_of(poses, identity))

        return look


@dataclass(frozen=True)
class Filming:
    """Where videos of the speakers are, and how frames are taken from them.

    Args:
        folder: of the videos, at any depth.
        rate: frames a second.
        size: height and width, pixels; the middle of the picture is taken.
        side: what part of the picture the speaker is in.
    """

    folder: Path
    rate: float
    size: int
    side: Literal["whole", "left", "right"] = "whole"

    def files(self) -> list[Path]:
        """All videos.

        Raises:
            CorpusError: there are none.
        """
        files = [file for file in visible(self.folder, "**/*") if file.suffix.lower() in VIDEOS]
        if not files:
            raise CorpusError(
                f"corpus.videos={self.folder}: no {', '.join(VIDEOS)} in this folder or below"
            )
        return files

    def file_of(self, recording: str, files: Sequence[Path]) -> Path | None:
        """The video of a recording; None where there is none.

        Args:
            recording: its path or name, with any suffix or none.
            files: of `files()`. That one is taken which shares most of the end of its path.

        Raises:
            CorpusError: several are as much alike.
        """
        wanted = Path(recording).with_suffix("").parts
        alike = {file: _common_end(wanted, file.with_suffix("").parts) for file in files}
        most = max(alike.values())
        best = [file for file, count in alike.items() if count == most]
        if most and len(best) > 1:
            raise CorpusError(
                f"{', '.join(map(str, best))} could all be the video of {recording!r}: keep one "
                "in corpus.videos, or its folders as in that name"
            )
        return best[0] if most else None

    def of(self, file: Path, begin: float) -> Look:
        """A speaker to look at.

        Args:
            file: the video.
            begin: second of the video at which the recording begins.
        """

        def look(moments: np.ndarray) -> np.ndarray:
            return np.stack(self._decode(file, begin + moments))

        return look

    def _decode(self, file: Path, moments: np.ndarray) -> list[np.ndarray]:
        images: list[np.ndarray] = []
        shown: av.VideoFrame | None = None
        try:
            with av.open(str(file)) as video:
                stream = video.streams.video[0]
                assert stream.time_base is not None
                video.seek(int(max(moments[0] - 1, 0) / stream.time_base), stream=stream)
                for frame in video.decode(stream):
                    left = moments[len(images) :]
                    # Until the next frame comes, the one before is seen.
                    due = int((left < frame.time - _EARLY_S).sum())
                    if due and shown is None:
                        raise CorpusError(f"{file} has no picture at {left[0]:.2f} s")
                    if due and shown is not None:
                        images += [self._picture(shown)] * due
                    if len(images) == len(moments):
                        return images
                    shown = frame
                lasts = 1 / float(stream.average_rate or 25)
        except (av.FFmpegError, IndexError) as error:
            raise CorpusError(f"{file} cannot be decoded as a video: {error}") from error
        if shown is None or moments[-1] > shown.time + lasts + _EARLY_S:
            raise CorpusError(
                f"{file} ends before {moments[-1]:.2f} s: is it another recording, or are its "
                "tracks at another rate (corpus.fps)?"
            )
        return images + [self._picture(shown)] * (len(moments) - len(images))

    def _picture(self, frame: av.VideoFrame) -> np.ndarray:
        """The speaker's part of a picture, its middle square, (size, size, 3) uint8."""
        image = frame.to_image()
        half = image.width // 2
        left = half if self.side == "right" else 0
        right = half if self.side == "left" else image.width
        return _middle(image.crop((left, 0, right, image.height)), self.size)


@dataclass(frozen=True)
class Stills:
    """Videos as folders of pictures, `1.png` the first.

    Args:
        fps: pictures a second.
        size: height and width, pixels; the middle of the picture is taken.
    """

    fps: float
    size: int

    def of(self, folder: Path) -> Look:
        """A speaker to look at; raises `CorpusError` where a picture is missing or damaged."""

        def look(moments: np.ndarray) -> np.ndarray:
            numbers = np.floor(moments * self.fps + _EARLY_S).astype(int) + 1
            return np.stack([self._picture(folder / f"{number}.png") for number in numbers])

        return look

    def _picture(self, file: Path) -> np.ndarray:
        try:
            with Image.open(file) as image:
                return _middle(image.convert("RGB"), self.size)
        except OSError as error:
            raise CorpusError(f"{file} is missing or no picture: {error}") from error


def _middle(image: Image.Image, size: int) -> np.ndarray:
    """The middle square of a picture, (size, size, 3) uint8."""
    edge = min(image.size)
    x = (image.width - edge) // 2
    y = (image.height - edge) // 2
    square = image.crop((x, y, x + edge, y + edge))
    return np.asarray(square.resize((size, size), Image.Resampling.BOX))


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    """How many of the last parts of two paths are the same."""
    count = 0
    for one, other in zip(reversed(a), reversed(b), strict=False):
        if one != other:
            break
        count += 1
    return count
