"""`prepare`: read or generate a corpus and store it as Parquet clips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from rapport.actors import timeline
from rapport.pipeline.config import CorpusConfig, PrepareConfig
from rapport.pipeline.data.collapse import regression_collapse
from rapport.pipeline.data.readers.dualtalk import import_dualtalk
from rapport.pipeline.data.readers.lm_listener import import_lm_listener
from rapport.pipeline.data.statistics import motion_statistics
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.data.synthetic.generate import generate
from rapport.pipeline.rundir import Phase, Run, RunError
from rapport.policies.clip import Clip
from rapport.policies.motion import Motion


def run(config: PrepareConfig, run: Run) -> None:
    corpus = prepare(config.corpus, run)
    run.summary["metrics"] = run.once(
        "describe", lambda phase: {"metrics": describe(corpus, phase)}
    )["metrics"]


def describe(corpus: Corpus, phase: Phase) -> dict[str, Any]:
    """How the people of a corpus move, and how far a regression that imitates them collapses."""
    recordings: dict[str, list[Clip]] = {}
    for clip in corpus.clips("train"):
        recordings.setdefault(clip.dyad_id, []).append(clip)
    metrics: dict[str, Any] = {
        "listener": mean_statistics([c.listener for c in d] for d in recordings.values())
    }
    speakers = [
        [c.speaker for c in d] for d in recordings.values() if all(c.speaker is not None for c in d)
    ]
    if speakers:
        metrics["speaker"] = mean_statistics(speakers)
    collapse = metrics["regression_collapse"] = regression_collapse(corpus)
    phase.say(
        f"a regression keeps {collapse['variance_ratio']:.3f} of the listeners' variance, "
        f"{collapse['variation_ratio']:.3f} within a clip (r2 {collapse['r2']:.2f})"
    )
    return metrics


def mean_statistics(recordings: Iterable[list[Motion]]) -> dict[str, float]:
    """`motion_statistics`, averaged over recordings; the clips of one are put together again."""
    rows = [
        motion_statistics(Motion(np.concatenate([m.values for m in clips]), clips[0].layout))
        for clips in recordings
    ]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def prepare(config: CorpusConfig, run: Run) -> Corpus:
    """The corpus that `config` names, as a Parquet folder."""

    def work(phase: Phase) -> dict[str, Any]:
        with timeline.noted("corpus"):
            corpus = _open(config, phase)
        for split in ("train", "test"):
            if split not in corpus.splits:
                raise RunError(
                    f"{config.root or corpus.path}: no {split} clip of {config.seconds:g} s. "
                    "Recordings, or "
                    "what of a single one is held out, are shorter: lower corpus.seconds"
                )
        counts = {split: corpus.count(split) for split in ("train", "test")}
        absent = corpus.at("train", 0).absent
        phase.say(
            f"{counts['train']} training and {counts['test']} held-out clips, {corpus.layout}"
            + (f"; absent: {', '.join(absent)}" if absent else "")
        )
        return {
            "path": str(corpus.path),
            "counts": {"train_clips": counts["train"], "test_clips": counts["test"]},
            "artifacts": {"corpus": str(corpus.path)},
        }

    return Corpus(run.once("prepare", work)["path"])


def _open(config: CorpusConfig, phase: Phase) -> Corpus:
    if config.kind == "synthetic":
        phase.say("generating the synthetic corpus")
        return generate(
            phase.directory / "corpus",
            config.train_clips,
            config.test_clips,
            config.seconds,
            config.seed,
            config.image_size,
            config.frames,
        )
    if config.root is None:
        raise RunError(f"corpus.kind={config.kind} needs corpus.root=FOLDER")
    if config.kind == "dualtalk":
        return import_dualtalk(
            config.root, phase.directory / "corpus", config.seconds, config.stride
        )
    if config.kind == "lm_listener":
        return import_lm_listener(
            config.root, phase.directory / "corpus", config.seconds, config.stride
        )
    return Corpus(config.root)
