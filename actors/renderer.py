"""The render pool: motion in, MP4 files and visible motion out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray

from rapport.actors.cluster import on_nodes, worker_environment
from rapport.actors.pool import Pool
from rapport.actors.settings import RenderConfig
from rapport.actors.timeline import Worker
from rapport.policies.head.asset import load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.head.settings import HeadConfig
from rapport.policies.head.video import on_this_head, panels, render_motion, write_mp4
from rapport.policies.motion import Motion


@dataclass(frozen=True, eq=False)
class Panel:
    """One face of a video: its motion (None = no video), identity, and caption."""

    caption: str
    motion: Motion | None
    shape: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class VideoJob:
    """A video of panels side by side with the speaker's voice.

    Args:
        path: absolute, `.mp4`.
        audio: (samples,) float32 at 16 kHz, or None.
    """

    path: Path
    panels: tuple[Panel, ...]
    audio: np.ndarray | None


class RenderWorker(Worker):
    """Draws and encodes on one core."""

    def __init__(self, config: RenderConfig, head: HeadConfig) -> None:
        self.config = config
        self.asset = load_head(head.path, head.topology)
        self.head = FlameHead(self.asset)
        self.rasterizer = Rasterizer(self.asset, config.size, config.supersample)

    def render(self, job: VideoJob) -> int:
        """Write the video; returns how many panel frames were drawn."""
        drawn = [self._draw(panel) for panel in job.panels]
        picture = panels([frames for _, frames in drawn], [caption for caption, _ in drawn])
        moving = [panel.motion for panel in job.panels if panel.motion is not None]
        write_mp4(
            job.path,
            picture,
            moving[0].layout.fps,
            audio=job.audio,
            codec=self.config.codec,
            crf=self.config.crf,
        )
        return sum(map(len, moving))

    def _draw(self, panel: Panel) -> tuple[str, np.ndarray | None]:
        if panel.motion is None:
            return panel.caption, None
        motion, whole = on_this_head(panel.motion, self.asset)
        caption = panel.caption if whole else f"{panel.caption} (pose only)"
        # Another head's coefficients of identity mean as little here as those of expression.
        shape = panel.shape if whole else None
        return caption, render_motion(self.head, self.rasterizer, motion, shape=shape)


class RenderPool(Pool):
    """Workers that draw and encode."""

    def __init__(self, config: RenderConfig, head: HeadConfig, *, losses: int) -> None:
        worker = ray.remote(RenderWorker).options(
            num_cpus=config.cpus,
            resources=on_nodes(config.nodes),
            runtime_env={"env_vars": worker_environment(1)},
        )
        super().__init__(
            "render pool",
            "render",
            lambda _: worker.remote(config, head),
            workers=config.workers,
            in_flight=2,
            timeout_s=config.timeout_s,
            losses=losses,
        )

    def render(self, jobs: Iterable[VideoJob]) -> Iterator[tuple[Path, int]]:
        """`(path, panel frames)` as the videos are finished."""
        for job, frames in self.stream("render", jobs):
            yield job.path, frames
