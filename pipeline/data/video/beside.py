"""The film of a recording and the faces that were read off it, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from rapport.pipeline.data.video.sides import Side
from rapport.pipeline.data.video.tracking import Track, face_of, film_of
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.head.asset import HeadAsset
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import BACKGROUND, Rasterizer
from rapport.policies.head.video import Part as MoviePart
from rapport.policies.head.video import on_this_head, with_caption, write_movie
from rapport.policies.motion import Motion

SHOWN_S = 60.0  # of each recording, from its beginning
PIXELS = 256
_AT_ONCE_S = 2.0


def write_beside(path: Path, sides: Mapping[str, Side], asset: HeadAsset, fps: float) -> None:
    """Write an mp4 of the first `SHOWN_S`: for each filmed person the film, then the face.

    Frames that were not tracked show no face.
    """
    filmed = {side: known for side, known in sides.items() if known.track is not None}
    write_movie(path, _parts(filmed, asset, fps), fps)


def _parts(sides: Mapping[str, Side], asset: HeadAsset, fps: float) -> Iterator[MoviePart]:
    head = FlameHead(asset)
    rasterizer = Rasterizer(asset, PIXELS, supersample=1)
    films = {side: _film(known, fps) for side, known in sides.items()}
    frames = min(len(known.track) for known in sides.values() if known.track is not None)
    frames = min(frames, round(SHOWN_S * fps))
    step = round(_AT_ONCE_S * fps)
    sounds = [known.sound for known in sides.values() if known.sound is not None]
    for start in range(0, frames, step):
        count = min(step, frames - start)
        panels = []
        for side, known in sides.items():
            assert known.track is not None
            pictures = np.stack([next(films[side]) for _ in range(count)])
            panels.append(with_caption(pictures, f"{side}: film"))
            panels.append(_drawn(known.track, start, count, head, rasterizer, asset))
        begin = round(start / fps * AUDIO_RATE)
        end = round((start + count) / fps * AUDIO_RATE)
        sound = np.mean([heard[begin:end] for heard in sounds], axis=0) if sounds else None
        yield np.concatenate(panels, axis=2), None if sound is None else sound.astype(np.float32)


def _film(known: Side, fps: float) -> Iterator[np.ndarray]:
    """The person's crop at every frame."""
    assert known.track is not None and known.media is not None
    seen = islice(film_of(known.media).newest(fps), round(known.skipped * fps), None)
    for box, picture in zip(known.track.boxes, seen, strict=False):
        yield face_of(picture, known.person.part, box, PIXELS)


def _drawn(
    track: Track, start: int, count: int, head: FlameHead, rasterizer: Rasterizer, asset: HeadAsset
) -> np.ndarray:
    motion, whole = on_this_head(track.motion.window(start, count), asset)
    frames = rasterizer.render(head.vertices_of(Motion(motion.values, motion.layout)))
    frames[~track.there[start : start + count]] = np.array(BACKGROUND, np.uint8)
    return with_caption(frames, "read off it" if whole else "read off it (pose only)")
