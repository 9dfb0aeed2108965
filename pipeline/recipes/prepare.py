"""`prepare`: read or generate a corpus and store it as Parquet clips."""

from __future__ import annotations

from typing import Any

from pipeline.config import CorpusConfig, PrepareConfig
from pipeline.data.dualtalk import import_dualtalk
from pipeline.data.store import Corpus
from pipeline.data.synthetic.generate import generate
from pipeline.rundir import Phase, Run, RunError


def run(config: PrepareConfig, run: Run) -> None:
    corpus = prepare(config.corpus, run)
    run.summary["metrics"] = {"clips": {split: corpus.count(split) for split in corpus.splits}}


def prepare(config: CorpusConfig, run: Run) -> Corpus:
    """The corpus that `config` names, as a Parquet folder."""

    def work(phase: Phase) -> dict[str, Any]:
        corpus = _open(config, phase)
        counts = {split: corpus.count(split) for split in ("train", "test")}
        absent = corpus.at("train", 0).absent
        phase.say(f"{counts['train']} training and {counts['test']} held-out clips, {corpus.layout}"
                  + (f"; absent: {', '.join(absent)}" if absent else ""))
        return {
            "path": str(corpus.path),
            "counts": {"train_clips": counts["train"], "test_clips": counts["test"]},
            "artifacts": {"corpus": str(corpus.path)},
        }

    return Corpus(run.once("prepare", work)["path"])


def _open(config: CorpusConfig, phase: Phase) -> Corpus:
    if config.kind == "synthetic":
        phase.say("generating the synthetic corpus")
        return generate(phase.directory / "corpus", config.train_clips, config.test_clips, config.seconds,
                        config.seed, config.image_size, config.frames)
    if config.root is None:
        raise RunError(f"corpus.kind={config.kind} needs corpus.root=FOLDER")
    if config.kind == "dualtalk":
        return import_dualtalk(config.root, phase.directory / "corpus", config.seconds, config.stride)
    return Corpus(config.root)
