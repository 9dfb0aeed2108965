"""Frames to watchable files: a motion drawn, panels side by side, MP4 or WebM with sound."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont

from rapport.files import atomic
from rapport.policies.head.asset import HeadAsset
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import BACKGROUND, Rasterizer
from rapport.policies.motion import Layout, Motion

Codec = Literal["libx264", "libvpx-vp9"]
# libx264 is bundled with PyAV but GPL; VP9 and Opus are free of that, so images can be passed on.
AUDIO_CODEC = {"libx264": "aac", "libvpx-vp9": "libopus"}
CODEC_OPTIONS = {
    "libx264": {"preset": "veryfast"},
    "libvpx-vp9": {"b": "0", "deadline": "realtime", "cpu-used": "8"},
}
CONTAINER = {".mp4": "mp4", ".webm": "webm"}
POSE_GROUPS = ("rot", "neck", "jaw")  # radians about joints that every head has
Part = tuple[np.ndarray, np.ndarray | None]  # frames, and their sound
ABREAST = 6  # panels in a row
CHUNK = 50  # frames whose vertices are computed at once: enough to be fast, 3 MB of vertices


def on_this_head(motion: Motion, asset: HeadAsset) -> tuple[Motion, bool]:
    """The motion as this head can show it, and whether all of it is shown.

    Expression coefficients of another head mean nothing here. Joint rotations do: they alone are
    kept, and the caller must say so in the picture.
    """
    if motion.layout.topology == asset.topology:
        return motion, True
    widths = {
        name: motion.layout.width(name) for name in motion.layout.names if name in POSE_GROUPS
    }
    posed = motion.subset(motion.layout.subset(widths))
    resting = np.zeros((len(motion), 1), np.float32)
    layout = Layout((("expr", 1), *posed.layout.groups), motion.layout.fps, asset.topology)
    return Motion(np.concatenate([resting, posed.values], axis=1), layout), False


def render_motion(
    head: FlameHead, rasterizer: Rasterizer, motion: Motion, shape: np.ndarray | None = None
) -> np.ndarray:
    """Draw a motion.

    Args:
        head: that moves.
        rasterizer: of the same head.
        motion: of the same topology.
        shape: (n,) identity, or None for the neutral head.

    Returns:
        (time, size, size, 3) uint8.

    Raises:
        TopologyError: the motion belongs to another head.
    """
    frames = np.empty((len(motion), rasterizer.size, rasterizer.size, 3), np.uint8)
    for start in range(0, len(motion), CHUNK):
        part = motion.window(start, min(CHUNK, len(motion) - start))
        frames[start : start + len(part)] = rasterizer.render(head.vertices_of(part, shape))
    return frames


def panels(frames: Sequence[np.ndarray | None], captions: Sequence[str]) -> np.ndarray:
    """Clips side by side, each with its caption, at most `ABREAST` in a row.

    Args:
        frames: (time, height, width, 3) each, of one shape; None stands for a panel without video.
        captions: one for each.

    Returns:
        (time, rows height, columns width, 3).

    Raises:
        ValueError: no clip has frames, or their shapes differ.
    """
    shapes = [clip.shape for clip in frames if clip is not None]
    if not shapes:
        raise ValueError(f"panels {list(captions)}: none has frames, there is nothing to show")
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"panels {list(captions)}: unlike shapes {shapes}")
    blank = np.broadcast_to(np.array(BACKGROUND, np.uint8), shapes[0])
    captioned = []
    for clip, caption in zip(frames, captions, strict=True):
        if clip is None:
            captioned.append(with_caption(blank, f"{caption}: no video"))
        else:
            captioned.append(with_caption(clip, caption))
    columns = min(len(captioned), ABREAST)
    captioned += [blank] * (-len(captioned) % columns)
    rows = [captioned[first : first + columns] for first in range(0, len(captioned), columns)]
    return np.concatenate([np.concatenate(row, axis=2) for row in rows], axis=1)


def with_caption(frames: np.ndarray, text: str) -> np.ndarray:
    """A copy of the frames with white text in the upper left corner."""
    height, width = frames.shape[1:3]
    mask = Image.new("L", (width, height))
    size = max(10, height // 18)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(mask).text((size // 2, size // 3), text, fill=230, font=font)
    # Only the band with the text is touched, which is a ninth of the frame.
    band = slice(0, 2 * size)
    alpha = np.asarray(mask)[band, :, None]
    captioned = frames.copy()
    below = captioned[:, band]
    captioned[:, band] = np.where(alpha > 0, np.maximum(alpha, below), below)
    return captioned


def write_mp4(
    path: str | Path,
    frames: np.ndarray,
    fps: float,
    audio: np.ndarray | None = None,
    sample_rate: int = 16_000,
    codec: Codec = "libx264",
    crf: int = 23,
) -> Path:
    """Encode frames, with sound if there is any; the file appears whole or not at all.

    Args:
        path: `.mp4` or `.webm` (VP9 only).
        frames: (time, height, width, 3) uint8 RGB, even height and width (4:2:0 colour).
        fps: frames per second.
        audio: (samples,) float32 in [-1, 1], mono, or None for a silent file.
        sample_rate: of the audio, Hz.
        codec: "libx264" with AAC, or "libvpx-vp9" with Opus.
        crf: quality, lower is better.

    Returns:
        The path.

    Raises:
        ValueError: frames, audio, codec and file name do not fit.
    """
    return write_movie(path, [(frames, audio)], fps, sample_rate=sample_rate, codec=codec, crf=crf)


def write_movie(
    path: str | Path,
    parts: Iterable[Part],
    fps: float,
    sample_rate: int = 16_000,
    codec: Codec = "libx264",
    crf: int = 23,
) -> Path:
    """Encode a film of any length, part by part; the file appears whole or not at all.

    Args:
        path: as of `write_mp4`.
        parts: frames and their sound, each as of `write_mp4`; all like the first.
        fps: frames per second.
        sample_rate: of the audio, Hz.
        codec: as of `write_mp4`.
        crf: quality, lower is better.

    Returns:
        The path.

    Raises:
        ValueError: there is no part; frames, audio, codec and file name do not fit.
    """
    path = Path(path)
    rest = iter(parts)
    first = next(rest, None)
    if first is None:
        raise ValueError(f"{path}: a film of nothing")
    frames, audio = first
    _check(path, frames, audio=audio, codec=codec)
    with (
        atomic(path) as partial,
        av.open(str(partial), "w", format=CONTAINER[path.suffix]) as container,
    ):
        # Both streams are announced before the first packet: the file's header names them.
        video = _add_video(container, frames, fps=fps, codec=codec, crf=crf)
        sound = None
        if audio is not None:
            stream = container.add_stream(AUDIO_CODEC[codec], rate=sample_rate, layout="mono")
            sound = cast(AudioStream, stream)
        samples = 0
        for pictures, heard in itertools.chain([first], rest):
            _encode_pictures(container, video, pictures)
            if sound is not None and heard is not None:
                _encode_sound(container, sound, heard, samples)
                samples += len(heard)
        container.mux(video.encode(None))
        if sound is not None:
            container.mux(sound.encode(None))
    return path


def _check(path: Path, frames: np.ndarray, audio: np.ndarray | None, codec: Codec) -> None:
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(
            f"{path}: frames must be (time, height, width, 3) uint8, not {frames.shape} "
            f"{frames.dtype}"
        )
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(
            f"{path}: {frames.shape[2]}x{frames.shape[1]} frames; video needs even width and height"
        )
    if audio is not None and (audio.ndim != 1 or audio.dtype != np.float32):
        raise ValueError(
            f"{path}: audio must be (samples,) float32, not {audio.shape} {audio.dtype}"
        )
    if codec not in AUDIO_CODEC:
        raise ValueError(f"unknown video codec {codec!r}, expected one of {list(AUDIO_CODEC)}")
    if path.suffix not in CONTAINER or (path.suffix == ".webm" and codec == "libx264"):
        raise ValueError(
            f"{path}: {codec} goes into .mp4{'' if codec == 'libx264' else ' or .webm'} files"
        )


def _add_video(
    container: OutputContainer, frames: np.ndarray, fps: float, codec: Codec, crf: int
) -> VideoStream:
    video = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
    video.height, video.width = frames.shape[1:3]
    video.pix_fmt = "yuv420p"
    video.options = {"crf": str(crf), **CODEC_OPTIONS[codec]}
    video.codec_context.thread_count = 1  # a render worker owns one core
    return video


def _encode_pictures(container: OutputContainer, video: VideoStream, frames: np.ndarray) -> None:
    for image in frames:
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        container.mux(video.encode(picture))


def _encode_sound(
    container: OutputContainer, sound: AudioStream, audio: np.ndarray, first: int
) -> None:
    samples = np.ascontiguousarray(audio)[None]
    block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    block.sample_rate = sound.rate
    block.time_base = Fraction(1, sound.rate)
    block.pts = first
    container.mux(sound.encode(block))
