"""A listener's motion as files. A format is a function and its row in `FORMATS`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rapport.files import atomic
from rapport.log import logger
from rapport.pipeline.data.columns import sequences_to_arrow
from rapport.pipeline.data.recording import Recording
from rapport.pipeline.settings import ListenConfig, MotionFormat
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.head import gltf
from rapport.policies.head.arkit import ArkitRig
from rapport.policies.head.asset import HeadAsset, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.livelink import write_livelink
from rapport.policies.head.raster import Rasterizer
from rapport.policies.head.settings import HeadConfig
from rapport.policies.head.video import (
    CHUNK,
    Part,
    on_this_head,
    render_motion,
    with_caption,
    write_movie,
)
from rapport.policies.motion import Motion


@dataclass(frozen=True, eq=False)
class Listened:
    """A listener's motion, and what is shown with it.

    Args:
        motion: as long as the recording.
        recording: of the speaker.
        head: that is drawn, and animated.
        size: height of a film, pixels.
    """

    motion: Motion
    recording: Recording
    head: HeadConfig
    size: int

    @cached_property
    def shown(self) -> Shown:
        """The head, and the motion as far as it can show it; a loss is said aloud."""
        asset = load_head(self.head.path, self.head.topology)
        motion, whole = on_this_head(self.motion, asset)
        if not whole:
            logger.warning(
                f"motion of {self.motion.layout.topology} on a {asset.topology} head: pose only, "
                "no expression; head.path names a head of its own"
            )
        return Shown(motion, asset, whole)


class Shown(NamedTuple):
    """A motion on a head.

    Args:
        motion: what of it the head can show.
        head: whose it is now.
        whole: whether that is all.
    """

    motion: Motion
    head: HeadAsset
    whole: bool


def write_npz(listened: Listened, path: Path) -> None:
    """What `Motion.load` reads."""
    listened.motion.save(path)


def write_parquet(listened: Listened, path: Path) -> None:
    """One row of clip_id and motion, the layout in the metadata: what `evaluate --pred` reads."""
    motion = listened.motion
    columns = {
        "clip_id": pa.array([listened.recording.path.stem]),
        "motion": sequences_to_arrow([motion.values], motion.layout.dim),
    }
    table = pa.table(columns).replace_schema_metadata({"layout": motion.layout.to_json()})
    with atomic(path) as partial:
        pq.write_table(table, partial)


def write_csv(listened: Listened, path: Path) -> None:
    """ARKit's 52 weights, as Live Link Face writes them."""
    shown = listened.shown
    write_livelink(path, ArkitRig(shown.head).weights(shown.motion))


def write_glb(listened: Listened, path: Path) -> None:
    """The head and its animation, glTF 2.0."""
    gltf.write_glb(path, listened.shown.motion, listened.shown.head)


def write_mp4(listened: Listened, path: Path) -> None:
    """The listener beside the speaker, where there are pictures, with the speaker's sound."""
    write_movie(path, _parts(listened), listened.motion.layout.fps, sample_rate=AUDIO_RATE)


FORMATS: dict[MotionFormat, Callable[[Listened, Path], None]] = {
    "npz": write_npz,
    "parquet": write_parquet,
    "csv": write_csv,
    "glb": write_glb,
    "mp4": write_mp4,
}


def write_files(
    config: ListenConfig, recording: Recording, motions: Sequence[Motion], folder: Path
) -> Iterator[Path]:
    """Every sample in every format: `listener.npz`, or `listener_0.npz`, `listener_1.npz`, ...

    Args:
        config: which formats, head and size.
        recording: of the speaker.
        motions: of the samples.
        folder: of the files.

    Yields:
        each file, once it is whole.
    """
    for sample, motion in enumerate(motions):
        name = "listener" if len(motions) == 1 else f"listener_{sample}"
        listened = Listened(motion, recording, config.head, config.size)
        for form in config.formats:
            path = folder / f"{name}.{form}"
            FORMATS[form](listened, path)
            yield path


def _parts(listened: Listened) -> Iterator[Part]:
    """A film, a few seconds at a time."""
    motion, asset, whole = listened.shown
    head, rasterizer = FlameHead(asset), Rasterizer(asset, size=listened.size)
    caption = "listener" if whole else "listener, pose only"
    fps = motion.layout.fps
    film = listened.recording.film(listened.size, square=False)
    sound = listened.recording.sound()
    seen = None if film is None else film.newest(fps)
    for first in range(0, len(motion), CHUNK):
        part = motion.window(first, min(CHUNK, len(motion) - first))
        panels = [with_caption(render_motion(head, rasterizer, part), caption)]
        if seen is not None:
            speaker = np.stack(list(itertools.islice(seen, len(part))))
            panels.insert(0, with_caption(speaker, "speaker"))
        heard = None
        if sound is not None:
            end = round((first + len(part)) / fps * AUDIO_RATE)
            heard = sound.until(end)
        yield np.concatenate(panels, axis=2), heard
