"""Which corpus a recipe works on, and how it is opened."""

from __future__ import annotations

from pathlib import Path

from rapport.log import logger
from rapport.pipeline.data.readers.dualtalk import import_dualtalk
from rapport.pipeline.data.readers.lm_listener import import_lm_listener
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import SPLITS, Corpus, CorpusError
from rapport.pipeline.data.synthetic.generate import (
    Design,
    generate_corpus,
    require_sizes,
)


def open_corpus(config: CorpusConfig, folder: Path) -> Corpus:
    """Open the corpus that `config` names; it has clips to train on and held-out ones.

    Args:
        config: which corpus.
        folder: where one that is generated or imported is written; it must not exist. Not used by
            `parquet`, which is opened where it lies.

    Raises:
        CorpusError: there are no such files, they are damaged, or they give no clip to train on or
            to report on; names the file and the way out.
    """
    try:
        corpus = _open(config, folder)
    except PermissionError as error:
        raise CorpusError(f"{error.filename or folder} may not be read or written") from error
    required = SPLITS if config.kind == "synthetic" else ("train", "test")
    for split in required:
        if split not in corpus.splits:
            raise CorpusError(
                f"{config.root or corpus.path}: no {split} clip of {config.seconds:g} s. "
                "Recordings, or what of a single one is held out, are shorter: lower corpus.seconds"
            )
    return corpus


def look_at_corpus(config: CorpusConfig) -> None:
    """Raise `CorpusError` unless what `config` names is there, or can be made."""
    if config.kind == "synthetic":
        require_sizes(moments_of(config), design_of(config))
        return
    root = _root(config)
    if config.kind == "parquet":
        Corpus(root)
    elif not root.is_dir():
        raise CorpusError(
            f"corpus.root={root}: no such folder; it must hold the files of {config.kind}"
        )


def moments_of(config: CorpusConfig) -> dict[str, int]:
    """Moments of each split of a synthetic corpus; each has as many clips as it has listeners."""
    counts = (config.train_clips, config.validation_clips, config.test_clips)
    return dict(zip(SPLITS, counts, strict=True))


def design_of(config: CorpusConfig) -> Design:
    """What the conversations of a synthetic corpus are made of."""
    return Design(
        seconds=config.seconds,
        past=config.past,
        listeners=config.listeners,
        riddles=config.riddles,
        frames=config.frames,
        image_size=config.image_size,
    )


def _root(config: CorpusConfig) -> Path:
    if config.root is None:
        raise CorpusError(f"corpus.kind={config.kind} needs corpus.root=FOLDER")
    return config.root


def _open(config: CorpusConfig, folder: Path) -> Corpus:
    if config.kind == "synthetic":
        logger.info("generating the synthetic corpus")
        return generate_corpus(
            folder,
            *moments_of(config).values(),
            design=design_of(config),
            seed=config.seed,
        )
    root = _root(config)
    if config.kind == "parquet":
        return Corpus(root)
    look_at_corpus(config)
    if config.kind == "dualtalk":
        return import_dualtalk(root, folder, seconds=config.seconds, stride=config.stride)
    return import_lm_listener(root, folder, seconds=config.seconds, stride=config.stride)
