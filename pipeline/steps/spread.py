"""Several reactions to a speaker: what part of their spread the speaker explains, and the best.

`share` of `rapport.rewards.metrics.protocols.react` tells a diverse method from an appropriate one,
and has no best value: people's own is the one to meet, so they stand in the table wherever a corpus
has several listeners to one speaker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rapport.pipeline.data.store import Corpus
from rapport.pipeline.steps.judging import Answers, Judge
from rapport.policies.motion import Layout, Motion
from rapport.rewards.affect import AffectEstimator
from rapport.rewards.metrics.protocols.react import share

PEOPLE = "people"
RANDOM = "Random"
MEAN_ERROR, BEST_ERROR = "truth_affect_error", "truth_affect_error_of_the_best"
ALL, AFFECT = "all channels", "affect"
Shares = dict[str, dict[str, float | None]]  # method -> group -> share


def shares(
    reactions: Mapping[str, Sequence[Sequence[Motion]]], affect: AffectEstimator | None
) -> Shares:
    """Method -> `share` of all channels, of each group and of the affect read off the face.

    None where nothing of it moves. Methods with one reaction to each speaker are left out, and so
    is everybody where there are less than two speakers.

    Args:
        reactions: method -> some to each speaker, as many to each.
        affect: reads valence and arousal off motion; None = no such column.
    """
    return {
        method: _shares(samples, affect)
        for method, samples in reactions.items()
        if len(samples) > 1 and len(samples[0]) > 1
    }


def people(corpus: Corpus, ids: Sequence[str], layout: Layout, frames: int) -> list[list[Motion]]:
    """All recorded listeners to the moments of some clips, as many to each: the fewest there are.

    Moments with a single listener are left out.

    Args:
        corpus: whose clips.
        ids: of the clips, of one split.
        layout: groups that are compared.
        frames: the first of each clip.
    """
    split = corpus.clip(ids[0], ()).split
    moments = corpus.moments(split)
    listeners: dict[tuple[str, float], list[str]] = {moments[clip_id]: [] for clip_id in ids}
    for clip_id, moment in moments.items():
        if moment in listeners:
            listeners[moment].append(clip_id)
    several = [clip_ids for clip_ids in listeners.values() if len(clip_ids) > 1]
    count = min(map(len, several), default=0)
    wanted = {clip_id for clip_ids in several for clip_id in clip_ids[:count]}
    motions = {
        clip.clip_id: clip.listener.subset(layout).window(0, frames)
        for clip in corpus.clips(split, (), only=wanted)
    }
    return [[motions[clip_id] for clip_id in clip_ids[:count]] for clip_ids in several]


def of_several(judge: Judge, answers: Mapping[str, Answers]) -> dict[str, dict[str, float]]:
    """Method -> `share/GROUP`, and truth errors: of all reactions, of the best to each speaker.

    Beside methods with several reactions to each speaker stand people, and as many training
    listeners whoever speaks: spread alone makes the best of many good. {} of no such method.

    Args:
        judge: of the clips that were answered.
        answers: method -> clip id -> reactions.
    """
    several = {
        name: by_clip
        for name, by_clip in answers.items()
        if min(map(len, by_clip.values()), default=0) > 1
    }
    if not several:
        return {}
    frames = min(len(clip.listener) for clip in judge.clips.values())
    groups = {
        name: [
            [motion.subset(judge.layout).window(0, frames) for motion in motions]
            for motions in by_clip.values()
        ]
        for name, by_clip in several.items()
    }
    groups[PEOPLE] = people(judge.corpus, list(judge.clips), judge.layout, frames)
    found = {
        method: {f"share/{name}": value for name, value in row.items() if value is not None}
        for method, row in shares(groups, judge.affect).items()
    }
    count = max(len(motions) for by_clip in several.values() for motions in by_clip.values())
    if judge.truth is None or judge.affect is None:
        return found
    for name, by_clip in (several | {RANDOM: judge.random(count)}).items():
        found[name] = found.get(name, {}) | _errors(judge, by_clip)
    return found


def _errors(judge: Judge, by_clip: Answers) -> dict[str, float]:
    """Of all reactions, and of the best to each clip: means over clips."""
    errors = [
        [error for _, error in judge.truth_errors((i, x.subset(judge.layout)) for x in motions)]
        for i, motions in by_clip.items()
    ]
    return {
        MEAN_ERROR: float(np.mean([np.mean(of_clip) for of_clip in errors])),
        BEST_ERROR: float(np.mean([min(of_clip) for of_clip in errors])),
    }


def _shares(
    reactions: Sequence[Sequence[Motion]], affect: AffectEstimator | None
) -> dict[str, float | None]:
    layout = reactions[0][0].layout
    values = np.array([[motion.values for motion in samples] for samples in reactions])
    found = {ALL: share(values)}
    found |= {name: share(values[..., layout.columns(name)]) for name in layout.names}
    if affect is not None:
        found[AFFECT] = share(np.array([[affect(x) for x in samples] for samples in reactions]))
    return {name: None if np.isnan(value) else value for name, value in found.items()}
