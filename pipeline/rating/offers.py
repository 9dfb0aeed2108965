"""What is offered to be rated: groups of videos, of one round."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import av

from rapport.files import write_atomic
from rapport.pipeline.data.rating_package import HAND_OUT, read_manifest, video_of_face
from rapport.pipeline.rundir import RunError
from rapport.rewards.ratings.scores import ScoreConfig

CONTROLS = ("video", "prompt_id", "source", "counterpart", "other_prompt", "candidate_id")


@dataclass(frozen=True)
class Control:
    """A listener beside a speaker to whom they were not listening.

    Args:
        video: its neutral name.
        prompt_id: whose speaker is seen.
        source: of the listener: recorded people, or a policy.
        counterpart: candidate of the prompt by the same source, who was listening.
        other_prompt: to whose speaker the listener was listening.
        candidate_id: of the listener, among the candidates of `other_prompt`.
    """

    video: str
    prompt_id: str
    source: str
    counterpart: str
    other_prompt: str
    candidate_id: str


@dataclass(frozen=True)
class Shown:
    """A video of a group.

    Args:
        name: neutral, with the group's number before the dash.
        file: MP4.
        seconds: it lasts.
        prompt_id: whose speaker is seen.
        candidate_id: who listens; None = a control.
    """

    name: str
    file: Path
    seconds: float
    prompt_id: str
    candidate_id: str | None


@dataclass(frozen=True)
class Offer:
    """A round.

    Args:
        number: of the round, from 1.
        groups: neutral name -> its videos, those of the candidates first.
        controls: by the name of their video.
        sources: prompt and candidate id -> who answered; empty where it is not known.
        weights: of the criteria, by which a rating is one number.
    """

    number: int
    groups: Mapping[str, Sequence[Shown]]
    controls: Mapping[str, Control]
    sources: Mapping[tuple[str, str], str]
    weights: Mapping[str, float] = field(default_factory=lambda: ScoreConfig().weights)

    @cached_property
    def videos(self) -> dict[str, Shown]:
        """By name."""
        return {shown.name: shown for group in self.groups.values() for shown in group}

    @property
    def members(self) -> dict[str, list[str]]:
        """Prompt id -> ids of the candidates that are offered."""
        members: dict[str, list[str]] = {}
        for shown in self.videos.values():
            if shown.candidate_id is not None:
                members.setdefault(shown.prompt_id, []).append(shown.candidate_id)
        return members


def read_offer(
    number: int,
    manifest: Path,
    controls: Path | None = None,
    sources: Mapping[tuple[str, str], str] | None = None,
) -> Offer:
    """The offer of a package, its videos opened.

    Args:
        number: of the round.
        manifest: of the package, beside the folder that is handed out.
        controls: folder of the controls' videos and their list; None = there are none.
        sources: see `Offer`.

    Raises:
        RunError: a video is missing or cannot be played; a group has one video.
        RatingError: no manifest.
    """
    folder = manifest.parent / HAND_OUT / "videos"
    groups: dict[str, list[Shown]] = {}
    for name, (prompt_id, candidate_id) in read_manifest(manifest).items():
        file = folder / f"{name}.mp4"
        shown = Shown(name, file, seconds_of(file), prompt_id, candidate_id)
        groups.setdefault(video_of_face(name), []).append(shown)
    alone = [name for name, group in groups.items() if len(group) < 2]
    if alone or not groups:
        raise RunError(f"{manifest}: groups {alone} have fewer than two videos to be compared")
    listed = [] if controls is None else read_controls(controls)
    for control in listed:
        assert controls is not None
        file = controls / f"{control.video}.mp4"
        shown = Shown(control.video, file, seconds_of(file), control.prompt_id, None)
        groups[video_of_face(control.video)].append(shown)
    return Offer(number, groups, {control.video: control for control in listed}, sources or {})


def seconds_of(file: Path) -> float:
    """How long a video lasts.

    Raises:
        RunError: it is missing or cannot be played.
    """
    if not file.is_file():
        raise RunError(f"{file} is missing: run `rollout` again, with render.videos as large")
    try:
        with av.open(str(file)) as container:
            microseconds = container.duration
    except (av.FFmpegError, OSError) as error:
        raise RunError(f"{file} cannot be played ({error}): run `rollout` again") from error
    if not microseconds:
        raise RunError(f"{file} does not say how long it lasts: run `rollout` again")
    return float(microseconds) / av.time_base


def write_controls(folder: Path, controls: Sequence[Control]) -> None:
    """Write the list of the controls beside their videos."""
    lines = [",".join(CONTROLS)]
    lines += [",".join(getattr(control, name) for name in CONTROLS) for control in controls]
    write_atomic(folder / "controls.csv", "\n".join(lines) + "\n")


def read_controls(folder: Path) -> list[Control]:
    """What `write_controls` wrote."""
    with (folder / "controls.csv").open(newline="") as file:
        return [Control(**row) for row in csv.DictReader(file)]
