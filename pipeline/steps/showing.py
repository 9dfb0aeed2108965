"""Videos: candidates for people, held-out clips side by side, pairs that were learnt from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rapport.actors.renderer import Panel, RenderPool, VideoJob
from rapport.actors.settings import RenderConfig
from rapport.pipeline.report.videos import Shown, write_shown
from rapport.pipeline.rundir import Phase, PhaseResult
from rapport.pipeline.settings import Judged, Rated
from rapport.policies.clip import Clip
from rapport.policies.motion import Motion


@dataclass(frozen=True, eq=False)
class ReportVideo:
    """A video of the report: what it shows, its panels, and the speaker's voice."""

    shown: Shown
    panels: tuple[Panel, ...]
    audio: np.ndarray | None


def render_pool(config: Judged | Rated) -> RenderPool:
    """Renderers of a recipe (`render`, `head`, `cluster`)."""
    return RenderPool(config.render, config.head, losses=config.cluster.lost_workers)


def render_videos(
    config: RenderConfig, jobs: Iterable[VideoJob], renderers: RenderPool, step: Phase
) -> PhaseResult:
    """Render jobs on the pool; returns the phase's result."""
    started = time.monotonic()
    frames = 0
    videos = 0
    for _, drawn in renderers.render(jobs):
        frames += drawn
        videos += 1
    seconds = time.monotonic() - started
    step.say(f"{videos} videos, {frames} panel frames, {frames / seconds:.0f} frames/s")
    engine = {"name": "numba z-buffer", "workers": config.workers, "codec": config.codec}
    return PhaseResult(
        counts={f"{step.name}_videos": videos},
        artifacts={f"{step.name}_videos": step.directory},
        engines={"render": engine},
    )


def render_shown(
    config: RenderConfig, videos: Sequence[ReportVideo], renderers: RenderPool, step: Phase
) -> PhaseResult:
    """Videos for the report, with the speaker's voice; returns the phase's result."""
    jobs = [
        VideoJob(step.directory / video.shown.file, video.panels, video.audio) for video in videos
    ]
    for job in jobs:
        job.path.parent.mkdir(exist_ok=True)
    result = render_videos(config, jobs, renderers, step=step)
    write_shown(step.directory, [video.shown for video in videos])
    return result


def speaker_panel(clip: Clip, frames: int) -> Panel:
    """The speaker of a clip, or that there is no video of them.

    Args:
        clip: the clip.
        frames: of the reaction beside it, which may be shorter than the clip.
    """
    speaker = None if clip.speaker is None else clip.speaker.window(0, frames)
    return Panel("speaker", speaker, clip.speaker_shape)


def compared(clip: Clip, file: str, kind: str, answers: Mapping[str, Motion]) -> ReportVideo:
    """A video of the speaker, the recorded listener, and what each method answers.

    Args:
        clip: whose speaker is answered.
        file: of the video, see `Shown`.
        kind: of video, see `Shown`.
        answers: of one layout, by method.
    """
    answer = next(iter(answers.values()))
    recorded = clip.listener.subset(answer.layout).window(0, len(answer))
    listeners = {"ground truth": recorded} | dict(answers)
    return report_video(clip, file, kind, listeners=listeners)


def report_video(
    clip: Clip,
    file: str,
    kind: str,
    *,
    listeners: Mapping[str, Motion],
    scores: Mapping[str, float] | None = None,
) -> ReportVideo:
    """A video of the speaker beside listeners.

    Args:
        clip: whose speaker is shown.
        file: of the video, see `Shown`.
        kind: of video, see `Shown`.
        listeners: by caption, all of one length.
        scores: by caption, where they were rated.
    """
    frames = len(next(iter(listeners.values())))
    panels = [speaker_panel(clip, frames)]
    panels += [Panel(caption, motion) for caption, motion in listeners.items()]
    shown = Shown(
        kind,
        file,
        clip.clip_id,
        words=clip.text,
        panels=[panel.caption for panel in panels],
        scores=dict(scores or {}),
    )
    return ReportVideo(shown, tuple(panels), clip.speaker_audio)
