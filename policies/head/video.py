"""Frames to watchable files: a motion drawn, panels side by side, MP4 or WebM with sound."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import BACKGROUND, Rasterizer
from rapport.policies.motion import Motion

Codec = Literal["libx264", "libvpx-vp9"]
# libx264 is bundled with PyAV but GPL; VP9 and Opus are free of that, so images can be passed on.
AUDIO_CODEC = {"libx264": "aac", "libvpx-vp9": "libopus"}
CODEC_OPTIONS = {
    "libx264": {"preset": "veryfast"},
    "libvpx-vp9": {"b": "0", "deadline": "realtime", "cpu-used": "8"},
}
CONTAINER = {".mp4": "mp4", ".webm": "webm"}
CHUNK = 50  # frames whose vertices are computed at once: enough to be fast, 3 MB of vertices


def render_motion(
    head: FlameHead, rasterizer: Rasterizer, motion: Motion, shape: np.ndarray | None = None
) -> np.ndarray:
    """Draw a motion: (time, size, size, 3) uint8. Identity `shape` (n,) or None for the neutral
    head.

    Raises:
        TopologyError: the motion belongs to another head.
    """
    frames = np.empty((len(motion), rasterizer.size, rasterizer.size, 3), np.uint8)
    for start in range(0, len(motion), CHUNK):
        part = motion.window(start, min(CHUNK, len(motion) - start))
        frames[start : start + len(part)] = rasterizer.render(head.vertices_of(part, shape))
    return frames


def panels(frames: Sequence[np.ndarray | None], captions: Sequence[str]) -> np.ndarray:
    """Clips of one size in a row: n of (time, height, width, 3) -> (time, height, n width, 3). None
    = "no video".
    """
    given = [clip for clip in frames if clip is not None]
    if not given:
        raise ValueError(f"panels {list(captions)}: none has frames, there is nothing to show")
    if any(clip.shape != given[0].shape for clip in given):
        raise ValueError(f"panels {list(captions)}: unlike shapes {[clip.shape for clip in given]}")
    blank = np.broadcast_to(np.uint8(BACKGROUND), given[0].shape)
    captioned = [
        _caption(blank, f"{caption}: no video") if clip is None else _caption(clip, caption)
        for clip, caption in zip(frames, captions, strict=True)
    ]
    return np.concatenate(captioned, axis=2)


def _caption(frames: np.ndarray, text: str) -> np.ndarray:
    """A copy of the frames with white text in the upper left corner."""
    height, width = frames.shape[1:3]
    mask = Image.new("L", (width, height))
    size = max(10, height // 18)
    ImageDraw.Draw(mask).text(
        (size // 2, size // 3), text, fill=230, font=ImageFont.load_default(size)
    )
    alpha = np.asarray(mask)[..., None]
    band = slice(0, 2 * size)
    result = frames.copy()
    result[:, band] = np.where(
        alpha[band] > 0, np.maximum(alpha[band], result[:, band]), result[:, band]
    )
    return result


def write_mp4(
    path: str | Path,
    frames: np.ndarray,
    fps: float,
    audio: np.ndarray | None = None,
    sample_rate: int = 16_000,
    codec: Codec = "libx264",
    crf: int = 20,
) -> Path:
    """Encode frames, with sound if there is any; the file appears whole or not at all.

    Args:
        path: `.mp4` or `.webm` (VP9 only).
        frames: (time, height, width, 3) uint8 RGB, even height and width (4:2:0 colour).
        audio: (samples,) float32 in [-1, 1], mono, or None for a silent file.
        codec: "libx264" with AAC, or "libvpx-vp9" with Opus.
        crf: quality, lower is better.
    """
    path = Path(path)
    _check(path, frames, audio, codec)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with av.open(str(partial), "w", format=CONTAINER[path.suffix]) as container:
            _encode(container, frames, fps, audio, sample_rate, codec, crf)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
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


def _encode(
    container: av.container.OutputContainer,
    frames: np.ndarray,
    fps: float,
    audio: np.ndarray | None,
    sample_rate: int,
    codec: Codec,
    crf: int,
) -> None:
    video = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
    video.height, video.width = frames.shape[1:3]
    video.pix_fmt = "yuv420p"
    video.options = {"crf": str(crf), **CODEC_OPTIONS[codec]}
    video.codec_context.thread_count = 1  # a render worker owns one core
    sound = (
        None
        if audio is None
        else container.add_stream(AUDIO_CODEC[codec], rate=sample_rate, layout="mono")
    )
    for image in frames:
        container.mux(
            video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
        )
    container.mux(video.encode(None))
    if sound is not None:
        block = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(audio)[None], format="fltp", layout="mono"
        )
        block.sample_rate = sample_rate
        container.mux(sound.encode(block))
        container.mux(sound.encode(None))
