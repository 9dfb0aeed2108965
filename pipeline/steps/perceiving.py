"""What a policy perceives, as a number in every summary: see `rapport.policies.perception`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rapport.log import logger
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.rundir import Phase, PhaseResult, Workspace, phase
from rapport.pipeline.settings import Learning, OfFlow
from rapport.pipeline.steps.learning import own_device
from rapport.policies.perception import Cost, drawn_others
from rapport.policies.policy import load_policy
from rapport.rewards.metrics.statistics import mean_interval

OTHERS = 1  # conversations whose streams each clip is shown in place of its own
SPLIT = "validation"
FEWEST = 2  # conversations that a swap needs


def perceive(
    run: Workspace, config: Learning, corpus: Corpus, policy: Path, *, aligned: bool = False
) -> None:
    """Measure what a policy perceives, where it can say.

    A stream that is there and tells nothing alone is said aloud.

    Args:
        run: takes `metrics.perception`, or `metrics.perception_after`.
        config: of the recipe.
        corpus: with a validation split.
        policy: its folder.
        aligned: whether alignment changed it.
    """
    if not config.perception_clips:
        return
    asked = asked_clips(corpus, config.perception_clips)
    if len(set(asked.values())) < FEWEST:
        logger.info(f"[perception] not asked: {SPLIT} has fewer than {FEWEST} conversations")
        return
    phase_of = _after if aligned else _before
    found = phase_of(run, config, corpus, asked, policy).metrics
    whom = "the aligned policy" if aligned else "the imitating policy"
    for name in found["streams"]:
        values = found[name]
        logger.info(
            f"[perception] {whom}, {name}: a foreign one costs {_shown(values)}, its own gains "
            f"{_shown(values['gain'])} over none ({found['unit']})"
        )
        if values["low"] <= 0:
            logger.warning(
                f"[perception] WARNING: {whom} makes nothing of {name}: its reactions would be as "
                "likely beside another speaker"
            )


@phase("perception")
def _before(
    step: Phase, config: Learning, corpus: Corpus, asked: Mapping[str, str], path: Path
) -> PhaseResult:
    return PhaseResult(metrics=_perceived(config, corpus, asked, path))


@phase("perception_after")
def _after(
    step: Phase, config: Learning, corpus: Corpus, asked: Mapping[str, str], path: Path
) -> PhaseResult:
    return PhaseResult(metrics=_perceived(config, corpus, asked, path))


def _perceived(
    config: Learning, corpus: Corpus, asked: Mapping[str, str], path: Path
) -> dict[str, Any]:
    policy = load_policy(path)
    if isinstance(config, OfFlow):  # engines of other policies may fill the GPU
        policy.to(own_device(config.learner))
    clips = list(corpus.clips(SPLIT, only=asked))
    names = [asked[clip.clip_id] for clip in clips]
    costs = policy.perception(
        [policy.encode(clip) for clip in clips],
        [policy.recorded(clip) for clip in clips],
        others=drawn_others(names, OTHERS, seed=config.seed),
    )
    streams = {name: summarised(cost, names) for name, cost in costs.items()}
    return {
        "unit": policy.perception_unit,
        "split": SPLIT,
        "clips": len(clips),
        "conversations": len(set(names)),
        "streams": list(streams),
    } | streams


def asked_clips(corpus: Corpus, limit: int) -> dict[str, str]:
    """Conversations of clips of the validation split by clip id, in order.

    The clips are evenly spread over it. All who listened to a moment are asked, as one of them may
    have thought of something else.
    """
    named = list(corpus.conversations(SPLIT).items())
    count = min(limit, len(named))
    places = np.unique(np.linspace(0, len(named) - 1, count).round().astype(int))
    return dict(named[place] for place in places)


def summarised(cost: Cost, conversations: Sequence[str]) -> dict[str, Any]:
    """What a swap costs, mean and interval by a bootstrap over conversations.

    Beside it, likewise: `own`, how unlikely the reaction is with the clip's own streams, and
    `gain`, how much less so than with no stream at all.
    """
    intervals = {}
    for name, values in cost._asdict().items():
        by_conversation = defaultdict(list)
        for place, value in zip(conversations, values, strict=True):
            by_conversation[place].append(float(value))
        means = {place: float(np.mean(found)) for place, found in by_conversation.items()}
        interval = mean_interval(means)
        intervals[name] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return intervals["swapped"] | {"own": intervals["own"], "gain": intervals["gain"]}


def _shown(values: dict[str, float]) -> str:
    return f"{values['mean']:.3g} [{values['low']:.3g}, {values['high']:.3g}]"
