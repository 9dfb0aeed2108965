"""`prepare`: read or generate a corpus, store it as Parquet clips, say how its people move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rapport.pipeline.data.collapse import regression_collapse
from rapport.pipeline.data.regression import RegressionError
from rapport.pipeline.data.statistics import (
    amplitude_shares,
    event_statistics,
    head_rotation,
    motion_statistics,
)
from rapport.pipeline.data.store import Corpus, CorpusError
from rapport.pipeline.rundir import Phase, PhaseResult, Run, phase
from rapport.pipeline.settings import PrepareConfig
from rapport.pipeline.steps.corpus import prepare
from rapport.policies.clip import Clip
from rapport.policies.head.asset import load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_landmarks
from rapport.policies.motion import LayoutError, Motion, require_radians
from rapport.rewards.ratings.visible import VisibleMotion, watch

_FEWEST = 2  # frames of a recording that moves
_SAME_FRAME = 0.5  # frames by which clips that follow each other may be apart


def run(config: PrepareConfig, run: Run) -> None:
    """Prepare the corpus and describe it."""
    corpus = prepare(run, config)
    run.summary["metrics"] = describe_corpus(run, corpus).value


@phase("describe")
def describe_corpus(step: Phase, corpus: Corpus) -> PhaseResult:
    """How the people of a corpus move, and how far a regression that imitates them collapses."""
    listened: dict[tuple[str, str], list[Clip]] = {}  # by who talks to whom
    spoken: dict[str, dict[float, Clip]] = {}  # by who speaks, then by when
    for clip in corpus.clips("train", ("speaker",)):
        _require_radians(clip)
        listened.setdefault((clip.dyad_id, clip.speaker_id), []).append(clip)
        if clip.speaker is not None:
            who, when = clip.moment
            spoken.setdefault(who, {})[when] = clip
    listeners = [
        motion
        for clips in listened.values()
        for motion in stretches(clips, [clip.listener for clip in clips])
    ]
    speakers = [
        motion
        for moments in spoken.values()
        for motion in stretches(
            list(moments.values()),
            [clip.speaker for clip in moments.values() if clip.speaker is not None],
        )
    ]
    metrics: dict[str, Any] = {"listener": mean_statistics(listeners)}
    if speakers:
        metrics["speaker"] = mean_statistics(speakers)
    metrics["listener"] |= amplitude_shares(listeners)
    events = mean_events(listeners)
    if events:
        metrics["listener_events"] = events
        listed = (f"{name.replace('_', ' ')} {value:.2f}" for name, value in events.items())
        step.say(f"how listeners move, in windows of 8 s: {', '.join(listed)}")
    try:
        collapse = regression_collapse(corpus)
    except RegressionError as error:
        step.say(f"how far a regression collapses is not known: {error}")
        metrics["regression_collapse"] = {"missing": str(error)}
        return PhaseResult(value=metrics)
    metrics["regression_collapse"] = collapse
    step.say(
        f"a regression keeps {collapse['variance_ratio']:.3f} of the listeners' variance, "
        f"{collapse['variation_ratio']:.3f} within a clip (r2 {collapse['r2']:.2f})"
    )
    return PhaseResult(value=metrics)


def _require_radians(clip: Clip) -> None:
    """A corpus that somebody else wrote is looked at here; readers look at their files."""
    for motion in (clip.listener, clip.speaker):
        try:
            if motion is not None:
                require_radians(motion)
        except LayoutError as error:
            raise CorpusError(f"clip {clip.clip_id!r}: {error}") from error


def stretches(clips: Sequence[Clip], motions: Sequence[Motion]) -> list[Motion]:
    """The motions of a recording's clips, put together again where one follows the other.

    A clip that overlaps with one before it is left out.

    Args:
        clips: of one recording.
        motions: of one person in each of them.
    """
    order = sorted(range(len(clips)), key=lambda index: clips[index].start)
    parts: list[list[Motion]] = []
    end = -np.inf
    for index in order:
        motion = motions[index]
        gap = (clips[index].start - end) * motion.layout.fps  # in frames
        if gap < -_SAME_FRAME:
            continue
        if gap > _SAME_FRAME:
            parts.append([])
        parts[-1].append(motion)
        end = clips[index].start + motion.seconds
    return [
        Motion(np.concatenate([motion.values for motion in part]), part[0].layout) for part in parts
    ]


def mean_statistics(motions: Iterable[Motion]) -> dict[str, float]:
    """`motion_statistics`, averaged over the motions that have them."""
    return _means([motion_statistics(motion) for motion in motions if len(motion) >= _FEWEST])


def mean_events(motions: Sequence[Motion]) -> dict[str, float]:
    """`event_statistics`, averaged over the motions of 8 s or more; {} where there is none.

    The face is seen where its head is built in; elsewhere there is the head's rotation only.
    """
    rows = []
    if motions and motions[0].layout.topology == "builtin":
        asset = load_head()
        head = FlameHead(asset)
        landmarks = face_landmarks(asset)
        rows = [event_statistics(watch(head, landmarks, motion)) for motion in motions]
    else:
        for motion in motions:
            rotation = head_rotation(motion)
            if rotation is not None:
                rows.append(event_statistics(VisibleMotion(motion.layout.fps, rotation, None)))
    return _means([row for row in rows if row])


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means of what all rows have, by name; {} of no row."""
    names = rows[0] if rows else ()
    return {name: _mean([row[name] for row in rows]) for name in names}


def _mean(values: list[float]) -> float:
    """Of those that are numbers; NaN where none is."""
    numbers = [value for value in values if not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else float("nan")
