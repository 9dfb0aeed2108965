"""Chunks of training conversations, and what the speaker's face did in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rapport.policies.clip import Clip
from rapport.policies.head.asset import HeadAsset
from rapport.policies.motion import Layout, Motion
from rapport.policies.pictures import SAME_S, resized
from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.prompt import Heard, heard_of, pictures_taken, voice_of
from rapport.policies.vla.sound import LEFT_S

PERCEPTION_SCHEMA = pa.schema(
    {
        "frames": pa.binary(),
        "voice": pa.binary(),
        "face": pa.list_(pa.float32()),  # (frames, channels)
        "manner": pa.list_(pa.float32()),  # (voice tokens, 2 * channels)
    }
)
# What of a face pictures show, beside its expression.
SHOWN = ("jaw", "rot", "neck", "eyelid", "eyepose")
RIDGE = 0.02  # of the mean square of a shape


@dataclass(frozen=True, eq=False)
class Channels:
    """What is to be told from pictures and voice: how far a face does each of some things.

    All channels of a group have one unit, so that what a face does much counts more than the
    tremble of what it hardly does.

    Args:
        from_expression: (expression coefficients, n): ARKit weights by ridge regression where the
            head has a table of them, else the coefficients themselves.
    """

    from_expression: np.ndarray

    @classmethod
    def of(cls, head: HeadAsset | None, width: int) -> Channels:
        """Those of a head.

        Args:
            head: of the corpus' topology; None where there is none at hand.
            width: expression coefficients of its motions.
        """
        if head is None or not head.arkit:
            return cls(np.eye(width))
        shapes = np.stack([head.arkit[name][:width] for name in sorted(head.arkit)])
        shapes = shapes.astype(np.float64)
        overlap = shapes @ shapes.T
        ridge = RIDGE * np.trace(overlap) / len(overlap)
        return cls(shapes.T @ np.linalg.inv(overlap + ridge * np.eye(len(overlap))))

    def __call__(self, motion: Motion) -> np.ndarray:
        """(time, channels)."""
        parts = [motion.group(name) for name in SHOWN if name in motion.layout.names]
        if "expr" in motion.layout.names:
            parts.append(motion.group("expr") @ self.from_expression)
        return np.concatenate(parts, axis=1)

    def groups(self, layout: Layout) -> list[int]:
        """How many channels each group of a motion has, in order."""
        widths = [layout.width(name) for name in SHOWN if name in layout.names]
        if "expr" in layout.names:
            widths.append(self.from_expression.shape[1])
        return widths


def perceived_chunks(
    clips: Iterable[Clip], config: FaceVLAConfig, channels: Channels, limit: int
) -> Iterator[dict[str, Any]]:
    """Rows of `PERCEPTION_SCHEMA`, at most `limit`; each moment once, however many listen to it.

    Args:
        clips: of training.
        config: of the policy.
        channels: of the speaker's face.
        limit: rows.
    """
    moments = set()
    count = 0
    for clip in clips:
        motion = clip.speaker_with_past
        if clip.moment in moments or motion is None:
            continue
        moments.add(clip.moment)
        streams = heard_of(clip)
        fps = motion.layout.fps
        start = (len(clip.listener) - len(motion)) / fps
        values = channels(motion)
        chunk = config.chunk_seconds
        before = int(-streams[0].start / chunk + SAME_S)
        for number in range(-before, config.chunks):
            row = _row(streams, (number + 1) * chunk, config, values=values, start=start, fps=fps)
            if row is None:
                continue
            yield row
            count += 1
            if count == limit:
                return


def _row(
    streams: list[Heard],
    end: float,
    config: FaceVLAConfig,
    *,
    values: np.ndarray,
    start: float,
    fps: float,
) -> dict[str, Any] | None:
    """The chunk that ends at `end`; None where it has neither pictures nor voice."""

    def at(moment: float) -> int:
        return int(np.clip((moment - start) * fps, 0, len(values) - 1))

    taken = pictures_taken(streams, end, config)
    voice = voice_of(streams, end, config)
    if taken is None and voice is None:
        return None
    frames = None
    face = np.zeros((config.frames, values.shape[1]))
    if taken is not None:
        frames = resized(np.stack([frame for frame, _ in taken]), config.image_size).tobytes()
        face = values[[at(moment) for _, moment in taken]]
    parts = []
    edges = np.linspace(end - config.chunk_seconds - LEFT_S, end, config.voice_tokens + 1)
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        part = values[at(first) : at(last) + 1]
        parts.append(np.concatenate([part.mean(axis=0), part.std(axis=0)]))
    return {
        "frames": frames,
        "voice": None if voice is None else voice.tobytes(),
        "face": face.flatten().tolist(),
        "manner": np.array(parts).flatten().tolist(),
    }
