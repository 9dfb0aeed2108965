"""`prepare`: read or generate a corpus, store it as Parquet clips, say how its people move."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from rapport.pipeline.data.collapse import regression_collapse
from rapport.pipeline.data.regression import RegressionError
from rapport.pipeline.data.statistics import motion_statistics
from rapport.pipeline.data.store import Corpus, CorpusError
from rapport.pipeline.rundir import Phase, PhaseResult, Run, phase
from rapport.pipeline.settings import PrepareConfig
from rapport.pipeline.steps.corpus import prepare
from rapport.policies.clip import Clip
from rapport.policies.motion import LayoutError, Motion, require_radians

_FEWEST_FRAMES = 2  # of a recording that moves


def run(config: PrepareConfig, run: Run) -> None:
    """Prepare the corpus and describe it."""
    corpus = prepare(run, config)
    run.summary["metrics"] = describe_corpus(run, corpus).value


@phase("describe")
def describe_corpus(step: Phase, corpus: Corpus) -> PhaseResult:
    """How the people of a corpus move, and how far a regression that imitates them collapses."""
    recordings: dict[str, list[Clip]] = {}
    for clip in corpus.clips("train"):
        _require_radians(clip)
        recordings.setdefault(clip.dyad_id, []).append(clip)
    listeners = ([clip.listener for clip in clips] for clips in recordings.values())
    metrics: dict[str, Any] = {"listener": mean_statistics(listeners)}
    spoken = [
        [clip.speaker for clip in clips if clip.speaker is not None]
        for clips in recordings.values()
    ]
    # A recording in which one clip lacks the speaker cannot be put together again.
    whole = zip(spoken, recordings.values(), strict=True)
    speakers = [motions for motions, clips in whole if len(motions) == len(clips)]
    if speakers:
        metrics["speaker"] = mean_statistics(speakers)
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


def mean_statistics(recordings: Iterable[list[Motion]]) -> dict[str, float]:
    """`motion_statistics`, averaged over the recordings that have them.

    The clips of a recording are put together again.
    """
    rows = []
    for clips in recordings:
        values = np.concatenate([clip.values for clip in clips])
        if len(values) < _FEWEST_FRAMES:
            continue
        rows.append(motion_statistics(Motion(values, clips[0].layout)))
    names = rows[0] if rows else ()
    return {name: _mean([row[name] for row in rows]) for name in names}


def _mean(values: list[float]) -> float:
    """Of those that are numbers; NaN where none is."""
    numbers = [value for value in values if not np.isnan(value)]
    return float(np.mean(numbers)) if numbers else float("nan")
