"""Which corpus a recipe works on, and how it is opened."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from rapport.log import logger, quiet
from rapport.pipeline.data.prompts import require_unlike_prompts
from rapport.pipeline.data.readers.dualtalk import import_dualtalk, read_dualtalk
from rapport.pipeline.data.readers.dyads import Cutting
from rapport.pipeline.data.readers.livelink import (
    FPS,
    import_livelink,
    read_livelink_dyads,
)
from rapport.pipeline.data.readers.lm_listener import import_lm_listener, read_lm_listener
from rapport.pipeline.data.readers.pictures import Drawing, Filming
from rapport.pipeline.data.readers.react import ReactReader, import_react
from rapport.pipeline.data.readers.splits import require_splits
from rapport.pipeline.data.readers.transcripts import load_transcriber
from rapport.pipeline.data.readers.video import import_video, look_at_video
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import SPLITS, Corpus, CorpusError
from rapport.pipeline.data.synthetic.generate import (
    Design,
    generate_corpus,
    require_sizes,
)
from rapport.policies.clip import Clip
from rapport.policies.head.settings import HeadConfig

BUILT_IN = HeadConfig()
_ONLY_ONE = 1e6  # seconds from one clip to the next: a recording gives one of each split


def open_corpus(config: CorpusConfig, folder: Path, head: HeadConfig = BUILT_IN) -> Corpus:
    """Open the corpus that `config` names; it has clips to train on and held-out ones.

    Args:
        config: which corpus.
        folder: where one that is generated or imported is written; it must not exist. Not used by
            `parquet`, which is opened where it lies.
        head: on which speakers are drawn whose motion is known (dualtalk), or whose motion faces
            are tracked as (video).

    Raises:
        CorpusError: there are no such files, they are damaged, or they give no clip to train on or
            to report on; names the file and the way out.
    """
    try:
        corpus = _open(config, folder, head)
    except PermissionError as error:
        raise CorpusError(f"{error.filename or folder} may not be read or written") from error
    wanted = ("train", "test") if config.kind == "parquet" else SPLITS
    require_splits(corpus.splits, config.root or corpus.path, config.seconds, wanted)
    return corpus


def look_at_corpus(config: CorpusConfig) -> None:
    """Raise `CorpusError` unless what `config` names is there, or can be made."""
    if config.kind == "synthetic":
        require_sizes(moments_of(config), design_of(config))
        return
    root = _root(config)
    if config.kind == "parquet":
        Corpus(root)
    elif config.kind == "video":
        look_at_video(config)
    elif not root.is_dir():
        raise CorpusError(
            f"corpus.root={root}: no such folder; it must hold the files of {config.kind}"
        )
    if config.videos is not None:
        filming = _filming(config)
        if filming is None:
            raise CorpusError("corpus.videos is for frames, and corpus.frames=0: leave one out")
        filming.files()
    if config.transcriber is not None:
        load_transcriber(config.transcriber)


def look_at_prompts(config: CorpusConfig, head: HeadConfig, reads: Collection[str]) -> None:
    """Raise `CorpusError` where all that a policy would perceive is alike, before clips are cut.

    Args:
        config: which corpus.
        head: on which speakers are drawn.
        reads: modalities that the policy reads.
    """
    later = config.kind in ("synthetic", "video")
    if later or (config.transcriber is not None and "words" in reads):
        return  # what is shown or said is not known yet: the corpus is looked at when it is there
    with quiet():
        require_unlike_prompts(_first_clips(config, head, reads), reads, config)


def _first_clips(config: CorpusConfig, head: HeadConfig, reads: Collection[str]) -> Iterator[Clip]:
    """A clip of each recording, as far as they are asked for."""
    root = _root(config)
    frames = "speaker_frames" in reads
    if config.kind == "parquet":
        yield from Corpus(root).clips("train", reads)
    elif config.kind == "dualtalk":
        drawing = _drawing(config, head) if frames else None
        yield from read_dualtalk(root, config.seconds, _ONLY_ONE, past=0, drawing=drawing)
    elif config.kind == "livelink":
        drawing = _drawing(config, BUILT_IN) if frames else None
        cutting = Cutting(config.seconds, stride=_ONLY_ONE, past=0)
        yield from read_livelink_dyads(root, cutting, fps=config.fps or FPS, drawing=drawing)
    elif config.kind in ("react", "mars"):
        cutting = Cutting(config.seconds, stride=_ONLY_ONE, past=0)
        shown = config.frames if frames else 0
        for clip, _ in ReactReader(root, config.kind, cutting, shown, config.image_size):
            yield clip
    else:
        filming = _filming(config) if frames else None
        yield from read_lm_listener(
            root, config.seconds, _ONLY_ONE, past=0, fps=config.fps, filming=filming
        )


def _drawing(config: CorpusConfig, head: HeadConfig) -> Drawing | None:
    if not config.frames:
        return None
    return Drawing(rate=config.frames, size=config.image_size, head=head)


def _filming(config: CorpusConfig) -> Filming | None:
    if config.videos is None or not config.frames:
        return None
    return Filming(
        config.videos, rate=config.frames, size=config.image_size, side=config.speaker_side
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


def _open(config: CorpusConfig, folder: Path, head: HeadConfig) -> Corpus:
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
        return import_dualtalk(
            root,
            folder,
            seconds=config.seconds,
            stride=config.stride,
            past=config.past,
            drawing=_drawing(config, head),
            transcriber=config.transcriber,
        )
    if config.kind == "livelink":
        return import_livelink(
            root,
            folder,
            Cutting(config.seconds, stride=config.stride, past=config.past),
            fps=config.fps or FPS,
            drawing=_drawing(config, BUILT_IN),
            transcriber=config.transcriber,
        )
    if config.kind == "video":
        return import_video(config, folder, head)
    if config.kind in ("react", "mars"):
        return import_react(
            root,
            folder,
            config.kind,
            Cutting(config.seconds, stride=config.stride, past=config.past),
            frames=config.frames,
            image_size=config.image_size,
            transcriber=config.transcriber,
        )
    return import_lm_listener(
        root,
        folder,
        seconds=config.seconds,
        stride=config.stride,
        past=config.past,
        fps=config.fps,
        filming=_filming(config),
    )
