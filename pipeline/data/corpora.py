"""Opening a corpus, whichever kind it is."""

from __future__ import annotations

from pathlib import Path

from rapport.pipeline.data.readers.dualtalk import import_dualtalk
from rapport.pipeline.data.readers.lm_listener import import_lm_listener
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import Corpus, CorpusError
from rapport.pipeline.data.synthetic.generate import generate


def open_corpus(config: CorpusConfig, folder: Path) -> Corpus:
    """The corpus that `config` names; one that has to be made or read is written to `folder`."""
    if config.kind == "synthetic":
        return generate(
            folder,
            config.train_clips,
            config.test_clips,
            config.seconds,
            config.seed,
            config.image_size,
            config.frames,
        )
    if config.root is None:
        raise CorpusError(f"corpus.kind={config.kind} needs corpus.root=FOLDER")
    if config.kind == "dualtalk":
        return import_dualtalk(config.root, folder, config.seconds, config.stride)
    if config.kind == "lm_listener":
        return import_lm_listener(config.root, folder, config.seconds, config.stride)
    return Corpus(config.root)
