"""Imitation by ReactFace (section 4.4): what fits a clip, listening, reacting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rapport.pipeline.data.neighbours import appropriate_to, named
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.objectives.reactface import EXAMPLE_COLUMNS, Expecting, Reacting
from rapport.pipeline.objectives.settings import ReactFaceTraining
from rapport.pipeline.rundir import Phase, PhaseResult, RunError, Workspace, phase
from rapport.pipeline.settings import OfReactFace
from rapport.pipeline.steps.learning import learn
from rapport.policies.flow.encoders import LogMel
from rapport.policies.flow.training import to_bytes
from rapport.policies.motion import Layout
from rapport.policies.reactface.config import ReactFaceSizes, reactface_config, streams_of
from rapport.policies.reactface.loss import UNSEEN, slow
from rapport.policies.reactface.policy import ReactFacePolicy, scene_of
from rapport.policies.tables import write_table


def imitate_reactface(run: Workspace, config: OfReactFace, corpus: Corpus) -> Path:
    """Train a ReactFace; returns its folder.

    It learns to listen before it learns to react: what a speaker explains of a face is little, and
    learnt by heart in as many steps as faces take.
    """
    begun = _examples(run, config, corpus).artifacts
    initial, examples = begun["reactface_initial"], begun["reactface_examples"]
    if config.reactface.listening:
        initial = _expect(run, config, corpus, initial, examples).artifacts["expect_policy"]
    return _imitate(run, config, initial, examples).artifacts["imitate_policy"]


def sizes_of(config: ReactFaceTraining, layout: Layout) -> ReactFaceSizes:
    """What a ReactFace is made of."""
    return replace(
        reactface_config(config.size, layout, LogMel().dim),
        span=config.span,
        momentum=config.momentum,
        mood=config.mood,
        delay=config.delay,
        synchronise=config.synchronise,
        expects=config.listening > 0,
        heed=config.heed,
        sees=config.sees,
    )


@phase("examples")
def _examples(step: Phase, config: OfReactFace, corpus: Corpus) -> PhaseResult:
    """Random weights, and the clips with the reactions that fit them."""
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
    step.say(f"{parameters:.2f} M parameters, {rows} clips; {_labels(own, fitting)}")
    return PhaseResult(artifacts={"reactface_initial": initial, "reactface_examples": table})


@phase("expect")
def _expect(
    step: Phase, config: OfReactFace, corpus: Corpus, initial: Path, examples: Path
) -> PhaseResult:
    """How a speaker is encoded, and what is expected of who listens to them."""
    own = config.reactface
    step.say(f"{own.listening} steps of {own.heard} clips")
    task = Expecting(initial, examples, own, seed=config.seed, part="listening")
    result = learn(task, config.learner, step)
    split = "validation"
    if split not in corpus.splits:
        return result
    policy = ReactFacePolicy.load(result.artifacts["expect_policy"])
    found = explained(policy, corpus, split, fitting_clips(corpus, own, split))
    shares = ", ".join(f"{name} {share:.2f}" for name, share in found.items())
    step.say(f"of the slow motion of unseen listeners it explains: {shares}")
    step.logger.log({f"explained/{name}": share for name, share in found.items()}, own.listening)
    return replace(result, metrics={**result.metrics, "explained": found})


@phase("imitate")
def _imitate(step: Phase, config: OfReactFace, initial: Path, examples: Path) -> PhaseResult:
    """How listeners react, whatever is heard and expected."""
    own = config.reactface
    part = "reacting" if own.listening else "all"
    step.say(f"{own.steps} steps of {own.batch_size} clips")
    return learn(
        Reacting(initial, examples, own, seed=config.seed, part=part), config.learner, step
    )


@torch.no_grad()
def explained(
    policy: ReactFacePolicy, corpus: Corpus, split: str, fitting: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """What part of how listeners move slowly is expected, of each group that moves.

    Of variance over clips and time: 1 = all, 0 = no more than a constant says, below 0 less.

    Args:
        policy: that expects.
        corpus: of the clips.
        split: of it, which the policy was not trained on.
        fitting: clip -> the clips whose listeners fit its speaker; what is expected is their mean.
    """
    model, layout = policy.model.eval(), policy.layout
    shown = model.sizes.ahead * model.sizes.window  # frames before anything is expected
    motions = {name: motion.subset(layout).values for name, motion in corpus.listeners(split)}
    expected, moved = [], []
    for clip in corpus.clips(split, {*policy.reads, "speaker"}):
        names = fitting[clip.clip_id]
        mean = np.mean([motions[name] for name in names], axis=0, dtype=np.float32)
        read = model.read(scene_of(policy.collate([policy.prompt_row(policy.encode(clip))])))
        path = slow(model.listener(torch.from_numpy(mean)[None, shown:]))
        expected.append(read.expected[0, : path.shape[1]])
        moved.append(path[0])
    errors = _centred(torch.cat(moved) - torch.cat(expected)).square().mean(0)
    variance = _centred(torch.cat(moved)).square().mean(0)
    shares = {}
    for name in layout.names:
        columns = layout.columns(name)
        if (there := variance[columns].mean()) > UNSEEN**2:
            shares[name] = 1 - (errors[columns].mean() / there).item()
    return shares


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(0)


def fitting_clips(
    corpus: Corpus, config: ReactFaceTraining, split: str = "train"
) -> dict[str, list[str]]:
    """For each clip of a split, in order, those whose listeners fit its speaker.

    With `assign=recorded` that is its own one; so it is where the corpus names nobody.
    """
    if config.assign == "recorded":
        return appropriate_to(corpus, split, "recorded")
    return {clip_id: names or [clip_id] for clip_id, names in named(corpus, split).items()}


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
        why = "" if asked else ", as the corpus names nobody else"
        return f"each clip's own listener{why}"
    mean = sum(map(len, fitting.values())) / len(fitting)
    return f"{mean:.1f} appropriate reactions to each, assign={config.assign}"


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
