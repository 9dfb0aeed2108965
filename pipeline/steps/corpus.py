"""The corpus of a run, and which of its clips are taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from rapport.actors import timeline
from rapport.pipeline.data.corpora import open_corpus
from rapport.pipeline.data.prompts import NAMES, require_unlike_prompts
from rapport.pipeline.data.store import PAST, SPLITS, Corpus, CorpusError
from rapport.pipeline.report.tracked import write_tracked
from rapport.pipeline.rundir import Phase, PhaseResult, RunError, Workspace, phase
from rapport.pipeline.settings import Judged, Learning, OfReactFace, PrepareConfig
from rapport.policies.reactface.config import streams_of


def prepare(run: Workspace, config: PrepareConfig) -> Corpus:
    """The corpus that `config` names, as a Parquet folder."""
    return Corpus(_prepared(run, config).artifacts["corpus"])


def perceived(config: PrepareConfig) -> tuple[str, ...]:
    """Modalities of a speaker that the policy of a recipe reads; all, where there is none yet."""
    if not isinstance(config, Learning):
        return tuple(NAMES)
    if isinstance(config, OfReactFace):
        return streams_of(config.reactface.sees)
    from rapport.policies.policy import policy_class

    return policy_class(config.policy).reads


def prepared(run: Workspace, config: Learning) -> Corpus:
    """The corpus that a policy learns from; it has the splits on which the policy is judged.

    Raises:
        RunError: a split is missing.
    """
    corpus = prepare(run, config)
    if isinstance(config, Judged):
        require_splits(corpus, config.judged_splits)
    return corpus


@phase("prepare")
def _prepared(step: Phase, config: PrepareConfig) -> PhaseResult:
    with timeline.noted("corpus"):
        try:
            corpus = open_corpus(config.corpus, step.directory / "corpus", config.head)
            reads = perceived(config)
            require_unlike_prompts(corpus.clips("train", {*reads, PAST}), reads, config.corpus)
        except CorpusError as error:
            raise RunError(str(error)) from error
    counts = {split: corpus.count(split) for split in SPLITS if split in corpus.splits}
    absent = corpus.at("train", 0).absent
    sizes = ", ".join(f"{count} {split}" for split, count in counts.items())
    step.say(
        f"{sizes} clips, {corpus.layout}" + (f"; absent: {', '.join(absent)}" if absent else "")
    )
    read = counts_of_reader(corpus)
    if read:
        listed = (f"{name.replace('_', ' ')} {count:g}" for name, count in read.items() if count)
        step.say(f"read: {', '.join(listed)}")
    artifacts = {"corpus": corpus.path}
    if config.corpus.kind == "video":
        artifacts["tracking"] = write_tracked(corpus)
        step.say(f"how well faces were tracked: {artifacts['tracking']}")
    return PhaseResult(
        artifacts=artifacts,
        counts={f"{split}_clips": count for split, count in counts.items()} | read,
    )


def require_splits(corpus: Corpus, splits: Iterable[str]) -> None:
    """Raise `RunError` where a split is missing that something is judged on."""
    missing = sorted(set(splits) - set(corpus.splits))
    if missing:
        raise RunError(
            f"{corpus.path} has no {missing[0]} split, only {', '.join(corpus.splits)}. What is "
            "chosen is judged on people of its own, neither trained on nor reported. Write one "
            f"(`CorpusWriter.add` of clips with split={missing[0]!r}; the synthetic corpus has "
            "it), or leave it out of this run: evaluation.split=test, and curve.points=0 for `dpo`"
        )


def counts_of_reader(corpus: Corpus) -> dict[str, float]:
    """What a reader of published files counted: what it read, left out and cut; {} elsewhere."""
    counts = dict(corpus.manifest.get("source", {}).get("counts", {}))
    counts |= counts.pop("lengths", {})
    return {
        name: len(value) if isinstance(value, list) else value for name, value in counts.items()
    }


def choose(corpus: Corpus, split: str, count: int, seed: int, skip: int = 0) -> list[str]:
    """`count` clip ids of a split (all, if it has fewer), in an order that the seed decides.

    Moments come evenly from all conversations, each with one of its listeners; further listeners
    to the same moments only when all moments are taken. The first `skip` are left for later: past
    the end of the order it starts again.
    """
    order = np.random.default_rng([seed, corpus.count(split)])
    spread = _spread(corpus.moments(split), corpus.conversations(split), order)
    return _rolled(spread, count, skip)


def _spread(
    moments: Mapping[str, tuple[str, float]],
    names: Mapping[str, str],
    order: np.random.Generator,
) -> list[str]:
    """Clip ids, one of each moment before a second one of any, conversation by conversation.

    Args:
        moments: by clip id, who speaks and when.
        names: by clip id, of the conversations.
        order: decides it.
    """
    listeners: dict[tuple[str, float], list[str]] = {}
    for clip_id, moment in moments.items():
        listeners.setdefault(moment, []).append(clip_id)
    conversations: dict[str, list[tuple[str, float]]] = {}
    for moment, clip_ids in listeners.items():
        conversations.setdefault(names[clip_ids[0]], []).append(moment)
    # One moment of every conversation, in an order of its own, then the next one of every one.
    shuffled = [[of[i] for i in order.permutation(len(of))] for of in conversations.values()]
    turns = [
        [of[turn] for of in shuffled if turn < len(of)] for turn in range(max(map(len, shuffled)))
    ]
    spread = [turn[i] for turn in turns for i in order.permutation(len(turn))]
    # Who listens changes from moment to moment.
    return [
        listeners[moment][(place + again) % len(listeners[moment])]
        for again in range(max(map(len, listeners.values())))
        for place, moment in enumerate(spread)
        if again < len(listeners[moment])
    ]


def chosen(ids: list[str], count: int, *, seed: int, skip: int = 0) -> list[str]:
    """`count` of any ids, in an order that the seed decides; `skip` as of `choose`."""
    order = np.random.default_rng([seed, len(ids)]).permutation(len(ids))
    return _rolled([ids[index] for index in order], count, skip)


def _rolled(ids: list[str], count: int, skip: int) -> list[str]:
    """The first `count` when the order starts after the first `skip`."""
    start = skip % len(ids)
    return (ids[start:] + ids[:start])[:count]
