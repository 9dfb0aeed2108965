"""Imitation by ReactFace (section 4.4): clips, the reactions that fit them, five losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from rapport.pipeline.data.neighbours import appropriate_to, named
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.objectives.reactface import EXAMPLE_COLUMNS, Reacting
from rapport.pipeline.objectives.settings import ReactFaceTraining
from rapport.pipeline.rundir import Phase, PhaseResult, RunError, Workspace, phase
from rapport.pipeline.settings import OfReactFace
from rapport.pipeline.steps.learning import learn
from rapport.policies.flow.encoders import LogMel
from rapport.policies.flow.training import to_bytes
from rapport.policies.motion import Layout
from rapport.policies.reactface.config import ReactFaceSizes, reactface_config, streams_of
from rapport.policies.reactface.policy import ReactFacePolicy
from rapport.policies.tables import write_table


def imitate_reactface(run: Workspace, config: OfReactFace, corpus: Corpus) -> Path:
    """Train a ReactFace; returns its folder."""
    return _imitate(run, config, corpus).artifacts["imitate_policy"]


def sizes_of(config: ReactFaceTraining, layout: Layout) -> ReactFaceSizes:
    """What a ReactFace is made of."""
    return replace(
        reactface_config(config.size, layout, LogMel().dim),
        span=config.span,
        momentum=config.momentum,
        mood=config.mood,
        delay=config.delay,
        synchronise=config.synchronise,
        expects=config.expect > 0,
        heed=config.heed,
        sees=config.sees,
    )


@phase("imitate")
def _imitate(step: Phase, config: OfReactFace, corpus: Corpus) -> PhaseResult:
    own = config.reactface
    initial = step.directory / "initial"
    table = step.directory / "examples.arrow"
    fitting = fitting_clips(corpus, own)
    sizes = sizes_of(own, corpus.layout)
    if own.sees == "frames":
        sizes = replace(sizes, rate=pictures_a_second(corpus))
        if not sizes.rate:
            raise RunError(
                f"reactface.sees=frames, and {corpus.path} has no pictures of its speakers: "
                "prepare it with corpus.frames=5, so many a second, or leave reactface.sees=motion"
            )
    clips = corpus.clips("train", {*streams_of(own.sees), "speaker"})
    policy = ReactFacePolicy.untrained(corpus.layout, clips, config.seed, sizes)
    policy.save(initial)
    schema = pa.schema(dict(policy.prompt_columns) | EXAMPLE_COLUMNS)
    rows = write_table(table, example_rows(policy, corpus, fitting), schema)
    parameters = sum(p.numel() for p in policy.model.parameters()) / 1e6
    step.say(
        f"{parameters:.2f} M parameters, {rows} clips, {own.steps} steps; {_labels(own, fitting)}"
    )
    return learn(Reacting(initial, table, own, seed=config.seed), config.learner, step)


def fitting_clips(corpus: Corpus, config: ReactFaceTraining) -> dict[str, list[str]]:
    """For each training clip, in order, those whose listeners fit its speaker.

    With `assign=recorded` that is its own one; so it is where the corpus names nobody.
    """
    if config.assign == "recorded":
        return appropriate_to(corpus, "train", "recorded")
    return {clip_id: names or [clip_id] for clip_id, names in named(corpus, "train").items()}


def pictures_a_second(corpus: Corpus, split: str = "train") -> float:
    """Of the speakers of a split, by the first clip that has any; 0 = none has."""
    for clip in corpus.clips(split, ("speaker_frames",)):
        if clip.speaker_frames is not None and len(clip.speaker_frames):
            return len(clip.speaker_frames) / clip.seconds
    return 0.0


def _labels(config: ReactFaceTraining, fitting: Mapping[str, Sequence[str]]) -> str:
    """Who is imitated, in words."""
    if all(list(names) == [clip_id] for clip_id, names in fitting.items()):
        asked = config.assign == "recorded"
        why = ", as the corpus names nobody else: reactface.steps=1200 learns more of them"
        return "each clip's own listener" + ("" if asked else why)
    mean = sum(map(len, fitting.values())) / len(fitting)
    return f"{mean:.1f} appropriate reactions to each, of which {config.assign}"


def example_rows(
    policy: ReactFacePolicy, corpus: Corpus, fitting: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, Any]]:
    """Rows of prompts and EXAMPLE_COLUMNS, one a training clip."""
    numbers = {clip_id: number for number, clip_id in enumerate(fitting)}
    pictured = policy.model.sizes.sees == "frames"
    for clip in corpus.clips("train", {*policy.reads, "speaker"}):
        face = policy.motion_of(clip.speaker, len(clip.listener)) if pictured else None
        yield policy.prompt_row(policy.encode(clip)) | {
            "listener": to_bytes(clip.listener.subset(policy.layout).values),
            "face": face,
            "fitting": [numbers[name] for name in fitting[clip.clip_id]],
        }
