"""Corpora on disk: clips in Parquet shards, a manifest, and labels and hidden truth apart.

    corpus/
      corpus.json               what is here: layout, counts, digests; written last
      train-00000.parquet ...   clips (columns.clip_schema)
      validation-00000.parquet ...
      test-00000.parquet ...
      rests.parquet             for each clip its listener's face at rest
      appropriate.parquet       for each clip the clips whose listeners fit its speaker
      points.parquet            what the speaker means and when (may be absent)
      labels.parquet            the listener's expressed affect, as a labelled corpus gives it
                                (may be absent)
      captions.parquet          what both faces show, in words (may be absent)
      truth.parquet             hidden truth for judging; only `load_truth` reads it (may be absent)
      README.md                 the dataset card, by which `datasets.load_dataset(FOLDER)` reads it

A corpus is built beside its place and renamed into it, so that a half-written one is never taken
for whole.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rapport.files import atomic, file_digest, strict_json
from rapport.pipeline.data.card import CARD, card
from rapport.pipeline.data.columns import (
    APPROPRIATE_SCHEMA,
    CAPTION_SCHEMA,
    LABEL_SCHEMA,
    POINTS_SCHEMA,
    RESTS_SCHEMA,
    SCHEMA_VERSION,
    TRUTH_SCHEMA,
    Truth,
    array_of,
    clip_schema,
    clips_to_table,
    points_of,
    row_to_clip,
    sequences_to_arrow,
)
from rapport.pipeline.data.conversations import conversations
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.rewards.ratings.points import Point

MANIFEST = "corpus.json"
LABELS = "labels.parquet"
CAPTIONS = "captions.parquet"
TRUTH = "truth.parquet"
POINTS = "points.parquet"
APPROPRIATE = "appropriate.parquet"
RESTS = "rests.parquet"
ROW_GROUP = 4  # clips decoded at once, for one at random, too
SHARD = 512  # clips in a file
Sitter = tuple[str, str, str]  # who listens: dyad, who speaks to them, split
SPLITS = ("train", "validation", "test")
MODALITIES = ("speaker", "speaker_frames", "speaker_audio", "listener_audio", "words")
PAST = "past"  # read like a modality, with those modalities that are read
EVERYTHING = (*MODALITIES, PAST)


class CorpusError(ValueError):
    """A corpus is missing, incomplete, corrupt or mixed.

    The message names the file or clip and the way out.
    """


class CorpusWriter:
    """Writes a corpus; use as a context manager and `add` clips, it is there after a clean exit.

    Args:
        path: folder to create; it must not exist.
        source: what the clips are and how they were made, kept in the manifest.

    Raises:
        CorpusError: the folder exists, a clip id comes twice, layouts, splits or frame sizes are
            unlike, or no clip was added.
    """

    def __init__(self, path: str | Path, source: dict[str, Any]) -> None:
        self.path = Path(path)
        self.source = source
        self._refuse_existing()
        self._layout: Layout | None = None
        self._frame_size: tuple[int, ...] | None = None
        self._shards: dict[str, _Shards] = {}  # of clips, by split
        self._side_files: dict[str, _Shards] = {}
        self._ids: set[str] = set()
        self._moments: dict[tuple[str, float], list[str]] = {}
        self._appropriate: dict[str, Sequence[str]] = {}
        self._sitters: dict[str, Sitter] = {}  # by clip id
        self._mostly: dict[Sitter, list[np.ndarray]] = defaultdict(list)  # faces of clips
        self._present: dict[str, int] = {}

    def __enter__(self) -> CorpusWriter:
        self._writing = self._write_whole()
        return self._writing.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writing.__exit__(kind, error, trace)

    @contextmanager
    def _write_whole(self) -> Iterator[CorpusWriter]:
        with atomic(self.path) as self._folder:
            self._folder.mkdir()
            yield self
            self._finish()
            self._refuse_existing()  # somebody else may have written it meanwhile

    def _refuse_existing(self) -> None:
        if self.path.exists():
            raise CorpusError(
                f"{self.path} is already there: remove it or write the corpus elsewhere"
            )

    def add(
        self,
        clip: Clip,
        expressed_affect: np.ndarray | None = None,
        truth: Truth | None = None,
        points: Sequence[Point] | None = None,
        appropriate: Sequence[str] | None = None,
        captions: Mapping[str, str] | None = None,
    ) -> None:
        """Append one clip.

        Args:
            clip: of the same layout and frame size as those before.
            expressed_affect: (time, 2) affect label of the listener, where the source has one.
            truth: hidden truth, where the source has it.
            points: what the speaker means, where the source knows it.
            appropriate: ids of the clips whose listeners fit this clip's speaker, where the source
                knows them; None = all that listen to the same moment.
            captions: what a face shows, in words, of "listener" and "speaker".
        """
        layout = self._checked_layout(clip)
        for name in MODALITIES:
            self._present[name] = self._present.get(name, 0) + (name not in clip.absent)
        if clip.split not in self._shards:
            self._shards[clip.split] = _Shards(
                self._folder / f"{clip.split}-{{:05d}}.parquet",
                schema=clip_schema(layout),
                to_table=partial(clips_to_table, layout=layout),
            )
        self._shards[clip.split].add(clip)
        if expressed_affect is not None:
            self._side_file(LABELS, LABEL_SCHEMA, _label_table).add(
                (clip.clip_id, expressed_affect)
            )
        if captions:
            self._side_file(CAPTIONS, CAPTION_SCHEMA, _caption_table).add((clip.clip_id, captions))
        if truth is not None:
            self._side_file(TRUTH, TRUTH_SCHEMA, _truth_table).add((clip.clip_id, truth))
        if points is not None:
            self._side_file(POINTS, POINTS_SCHEMA, _points_table).add((clip.clip_id, points))
        together = self._moments.setdefault(clip.moment, [])
        together.append(clip.clip_id)
        self._appropriate[clip.clip_id] = together if appropriate is None else appropriate
        # Of a recording that is split by time, training does not know what comes later.
        sitter = (clip.dyad_id, clip.speaker_id, clip.split)
        self._sitters[clip.clip_id] = sitter
        past = [] if clip.past is None else [clip.past.listener.values]
        seen = np.concatenate([*past, clip.listener.values])
        self._mostly[sitter].append(np.median(seen, axis=0))

    def name_appropriate(self, appropriate: Mapping[str, Sequence[str]]) -> None:
        """Say whose listeners fit, where the source knows it only when all clips are there.

        Args:
            appropriate: clip id -> ids as of `add`.

        Raises:
            CorpusError: one of them was not added.
        """
        named = {*appropriate, *(other for others in appropriate.values() for other in others)}
        if unknown := sorted(named - self._ids):
            raise CorpusError(f"no clip {unknown[0]!r} was added, but it is said to be appropriate")
        self._appropriate |= appropriate

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have clips by now."""
        return list(self._shards)

    def _side_file(
        self, name: str, schema: pa.Schema, to_table: Callable[[list], pa.Table]
    ) -> _Shards:
        if name not in self._side_files:
            self._side_files[name] = _Shards(self._folder / name, schema, to_table)
        return self._side_files[name]

    def _checked_layout(self, clip: Clip) -> Layout:
        """The layout of the corpus, or an error that says why the clip does not belong in it."""
        if clip.clip_id in self._ids:
            raise CorpusError(
                f"clip {clip.clip_id!r} was added twice: clip ids must be unique in a corpus"
            )
        self._ids.add(clip.clip_id)
        if clip.split not in SPLITS:
            raise CorpusError(
                f"clip {clip.clip_id!r}: split {clip.split!r} is none of {', '.join(SPLITS)}"
            )
        self._layout = self._layout or clip.listener.layout
        motions = [clip.listener, clip.speaker]
        frames = [clip.speaker_frames]
        if clip.past is not None:
            motions += [clip.past.listener, clip.past.speaker]
            frames.append(clip.past.speaker_frames)
        for motion in motions:
            if motion is not None and motion.layout != self._layout:
                raise CorpusError(
                    f"clip {clip.clip_id!r} has motion in {motion.layout}, the corpus is in "
                    f"{self._layout}: convert it with Motion.subset, or write two corpora"
                )
        for images in frames:
            if images is None:
                continue
            size = images.shape[1:3]
            self._frame_size = self._frame_size or size
            if size != self._frame_size:
                raise CorpusError(
                    f"clip {clip.clip_id!r} has frames of {size}, the corpus of {self._frame_size}"
                )
        return self._layout

    def _finish(self) -> None:
        if self._layout is None:
            raise CorpusError(f"no clip was added to {self.path}: an empty corpus is not written")
        for entry in self._appropriate.items():
            self._side_file(APPROPRIATE, APPROPRIATE_SCHEMA, _appropriate_table).add(entry)
        # A clip with NaN is named when it is read; others of its person are as without it.
        rests = {sitter: np.nanmedian(faces, axis=0) for sitter, faces in self._mostly.items()}
        for clip_id, sitter in self._sitters.items():
            self._side_file(RESTS, RESTS_SCHEMA, _rests_table).add((clip_id, rests[sitter]))
        rows_by_file: dict[str, int] = {}
        for shards in (*self._shards.values(), *self._side_files.values()):
            shards.close()
            rows_by_file |= shards.rows
        clips = {split: sum(shards.rows.values()) for split, shards in sorted(self._shards.items())}
        files = {}
        for name, rows in sorted(rows_by_file.items()):
            file = self._folder / name
            files[name] = {"rows": rows, "bytes": file.stat().st_size, "sha256": file_digest(file)}
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "layout": json.loads(self._layout.to_json()),
            "fps": self._layout.fps,
            "audio_rate": AUDIO_RATE,
            "frame_size": self._frame_size,
            "clips": clips,
            "present": self._present,
            "files": files,
            "source": self.source,
        }
        (self._folder / CARD).write_text(card(manifest))
        (self._folder / MANIFEST).write_text(strict_json(manifest, indent=2) + "\n")


class Corpus:
    """A corpus on disk. Opening reads the manifest only; clips stream by row group.

    Args:
        path: folder that holds `corpus.json`.

    Raises:
        CorpusError: no corpus there, another schema version, or a shard is missing or truncated.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        try:
            self.layout = Layout(**self.manifest["layout"])
        except (LayoutError, TypeError) as error:
            raise CorpusError(f"{self.path / MANIFEST}: {error}. Rebuild the corpus") from error
        self._files: dict[str, pq.ParquetFile] = {}
        self._groups = {split: self._row_groups(split) for split in self.manifest["clips"]}

    def __len__(self) -> int:
        return sum(self.manifest["clips"].values())

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have clips."""
        return list(self.manifest["clips"])

    @property
    def fps(self) -> float:
        """Frames of motion per second."""
        return self.layout.fps

    @property
    def digest(self) -> str:
        """Digest of all clips, the same for equal corpora wherever they lie."""
        shards = {
            name: entry["sha256"]
            for name, entry in self.manifest["files"].items()
            if name not in (LABELS, CAPTIONS, TRUTH, POINTS, APPROPRIATE, RESTS)
        }
        return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()

    @cached_property
    def points(self) -> dict[str, tuple[Point, ...]] | None:
        """What the speakers mean, by clip id; None where the corpus does not say."""
        return load_points(self.path) if (self.path / POINTS).is_file() else None

    @cached_property
    def rests(self) -> dict[str, np.ndarray]:
        """By clip id its listener's face at rest, (dim,): what it mostly is in the dyad's clips."""
        table = _read_side_file(self.path, RESTS, RESTS_SCHEMA, what="faces at rest")
        cells = zip(table["clip_id"].to_pylist(), table["rest"], strict=True)
        return {clip_id: np.array(cell.values) for clip_id, cell in cells}

    def rest_of(self, clip_id: str) -> Motion:
        """`Clip.rest` of a clip."""
        return Motion(self.rests[clip_id][None], self.layout)

    def count(self, split: str) -> int:
        """Clips in a split."""
        return sum(group.rows for group in self._split(split))

    def clips(
        self,
        split: str,
        modalities: Collection[str] = EVERYTHING,
        only: Collection[str] | None = None,
    ) -> Iterator[Clip]:
        """Clips of a split in the order they were written; one row group in memory at a time.

        Args:
            split: of the corpus.
            modalities: what is read beside the listener's motion; the others are None. With `PAST`
                among them, the past is read in the same modalities.
            only: ids of those that are wanted; None = all.
        """
        columns = self._columns(modalities)
        for group in self._split(split):
            table = self._read(group, columns)
            for row in range(group.rows):
                if only is None or table["clip_id"][row].as_py() in only:
                    yield self._clip(table, row, group.file)

    def listeners(self, split: str) -> Iterator[tuple[str, Motion]]:
        """Clip id and the listener's motion of every clip of a split, in order.

        Nothing else is read from the files.
        """
        for group in self._split(split):
            table = self._read(group, ["clip_id", "listener"])
            for row in range(group.rows):
                with self._naming_clip(table, row, group.file):
                    motion = Motion(array_of(table["listener"][row]), self.layout)
                    yield table["clip_id"][row].as_py(), motion

    def clip_ids(self, split: str) -> list[str]:
        """Ids of a split, in order."""
        self._split(split)
        return [clip_id for clip_id, place in self._places.items() if place.split == split]

    def moments(self, split: str) -> dict[str, tuple[str, float]]:
        """`Clip.moment` of each clip of a split by clip id, in order: who speaks, and when."""
        columns = ["clip_id", "dyad_id", "speaker_id", "start"]
        moments = {}
        for group in self._split(split):
            for row in self._read(group, columns).to_pylist():
                moments[row["clip_id"]] = (row["speaker_id"] or row["dyad_id"], row["start"])
        return moments

    def conversations(self, split: str) -> dict[str, str]:
        """Of each clip of a split by clip id, in order, the name of its conversation.

        A recording is one, whoever of it listens. What is of unlike ones is independent.
        """
        columns = ["clip_id", "dyad_id", "speaker_id"]
        people = {}
        for group in self._split(split):
            for row in self._read(group, columns).to_pylist():
                people[row["clip_id"]] = (row["dyad_id"], row["speaker_id"] or row["dyad_id"])
        return conversations(people)

    def first_listeners(self, split: str) -> dict[str, tuple[str, float]]:
        """`moments`, with the first of the clips that show listeners to the same one."""
        first: dict[tuple[str, float], str] = {}
        for clip_id, moment in self.moments(split).items():
            first.setdefault(moment, clip_id)
        return {clip_id: moment for moment, clip_id in first.items()}

    def at(self, split: str, index: int, modalities: Collection[str] = EVERYTHING) -> Clip:
        """Clip number `index` of a split; `modalities` as of `clips`."""
        if 0 <= index < self.count(split):
            left = index
            for group in self._split(split):
                if left < group.rows:
                    table = self._read(group, self._columns(modalities))
                    return self._clip(table, left, group.file)
                left -= group.rows
        raise IndexError(f"clip {index} of split {split!r}: {self.path} has {self.count(split)}")

    def clip(self, clip_id: str, modalities: Collection[str] = EVERYTHING) -> Clip:
        """The clip of this id; `modalities` as of `clips`.

        Raises:
            CorpusError: there is none.
        """
        if clip_id not in self._places:
            raise CorpusError(
                f"{self.path} has no clip {clip_id!r}; Corpus.clip_ids(split) lists them"
            )
        place = self._places[clip_id]
        table = self._read(place.group, self._columns(modalities))
        return self._clip(table, place.row, place.group.file)

    def _columns(self, modalities: Collection[str]) -> list[str]:
        wanted = {*modalities, "listener"}
        columns = []
        for name in clip_schema(self.layout).names:
            of_past = name.startswith("past_")
            modality = name.removeprefix("past_")
            if (modality not in MODALITIES or modality in wanted) and (
                not of_past or PAST in wanted
            ):
                columns.append(name)
        return columns

    @cached_property
    def _places(self) -> dict[str, _Place]:
        """Where each clip lies, in order."""
        places: dict[str, _Place] = {}
        for split in self.splits:
            for group in self._split(split):
                ids = self._read(group, ["clip_id"])["clip_id"].to_pylist()
                places |= {clip_id: _Place(split, group, row) for row, clip_id in enumerate(ids)}
        return places

    def _split(self, split: str) -> list[_RowGroup]:
        if split not in self._groups:
            raise CorpusError(f"{self.path} has no split {split!r}, only {self.splits}")
        return self._groups[split]

    def _row_groups(self, split: str) -> list[_RowGroup]:
        """Row groups of a split, from the footers of its files."""
        groups = []
        for name in self.manifest["files"]:
            if name.startswith(f"{split}-"):
                footer = self._file(name).metadata
                for number in range(footer.num_row_groups):
                    rows = footer.row_group(number).num_rows
                    groups.append(_RowGroup(name, number, rows))
        return groups

    def _read(self, group: _RowGroup, columns: list[str] | None = None) -> pa.RecordBatch:
        with _naming_file(self.path / group.file):
            table = self._file(group.file).read_row_group(group.number, columns)
        return table.combine_chunks().to_batches()[0]

    def _file(self, name: str) -> pq.ParquetFile:
        """A shard, opened once: opening takes as long as reading a row group."""
        if name not in self._files:
            self._files[name] = _open(self.path / name, clip_schema(self.layout))
        return self._files[name]

    def _clip(self, table: pa.RecordBatch, row: int, file: str) -> Clip:
        with self._naming_clip(table, row, file):
            clip = row_to_clip(table, row, self.layout, frame_size=self.manifest["frame_size"])
            return replace(clip, rest=self.rest_of(clip.clip_id))

    @contextmanager
    def _naming_clip(self, table: pa.RecordBatch, row: int, file: str) -> Iterator[None]:
        """Say which clip it is whose motion cannot be taken."""
        try:
            yield
        except LayoutError as error:
            where = f"{self.path / file}, clip {table['clip_id'][row].as_py()!r}"
            raise CorpusError(f"{where}: {error}. Rebuild the corpus without it") from error


class Listeners(Sequence[Motion]):
    """The listeners of a split, each read when it is asked for.

    Args:
        corpus: whose they are.
        split: of the corpus.
        layout: in which they are wanted.
    """

    def __init__(self, corpus: Corpus, split: str, layout: Layout) -> None:
        self.corpus = corpus
        self.split = split
        self.layout = layout
        self.lengths = [len(motion) for _, motion in corpus.listeners(split)]  # frames of each

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Motion: ...

    @overload
    def __getitem__(self, index: slice) -> list[Motion]: ...

    def __getitem__(self, index: int | slice) -> Motion | list[Motion]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self.corpus.at(self.split, index, modalities=()).listener.subset(self.layout)


class _RowGroup(NamedTuple):
    """Rows of a shard that are read together."""

    file: str
    number: int  # within the file
    rows: int


class _Place(NamedTuple):
    """Where a clip lies."""

    split: str
    group: _RowGroup
    row: int  # within the group


def load_labels(path: str | Path) -> dict[str, np.ndarray]:
    """The listener's expressed affect by clip id: (time, 2) valence and arousal in [-1, 1]."""
    table = _read_side_file(Path(path), LABELS, LABEL_SCHEMA, what="affect labels")
    return {
        row.as_py(): array_of(cell)
        for row, cell in zip(table["clip_id"], table["expressed_affect"], strict=True)
    }


def load_captions(path: str | Path) -> dict[tuple[str, str], str]:
    """What faces show, in words, by clip id and "listener" or "speaker"."""
    table = _read_side_file(Path(path), CAPTIONS, CAPTION_SCHEMA, what="captions")
    return {
        (row["clip_id"], role): row[role]
        for row in table.to_pylist()
        for role in ("listener", "speaker")
        if row[role] is not None
    }


def load_truth(path: str | Path) -> dict[str, Truth]:
    """Hidden truth by clip id, for judging only: training on it is cheating."""
    table = _read_side_file(Path(path), TRUTH, TRUTH_SCHEMA, what="hidden truth")
    truths = {}
    columns = [table[name] for name in TRUTH_SCHEMA.names]
    for clip_id, affect, manner, style in zip(*columns, strict=True):
        traits = {entry["trait"]: entry["value"] for entry in style.as_py()}
        truths[clip_id.as_py()] = Truth(array_of(affect), manner.as_py(), traits)
    return truths


def load_points(path: str | Path) -> dict[str, tuple[Point, ...]]:
    """What the speaker means, by clip id: for SIMULATED raters and for judging."""
    table = _read_side_file(Path(path), POINTS, POINTS_SCHEMA, what="points")
    cells = zip(table["clip_id"], table["points"], strict=True)
    return {clip_id.as_py(): points_of(cell) for clip_id, cell in cells}


def load_appropriate(path: str | Path) -> dict[str, list[str]]:
    """By clip id, the clips whose listeners fit its speaker; [] where none does."""
    table = _read_side_file(Path(path), APPROPRIATE, APPROPRIATE_SCHEMA, what="fitting listeners")
    return dict(zip(table["clip_id"].to_pylist(), table["appropriate"].to_pylist(), strict=True))


class _Shards:
    """Rows gathered to row groups and written to files of at most `SHARD` rows.

    Args:
        path: of the files; its name may have a slot for the number of the file.
        schema: their columns.
        to_table: makes a table of a list of rows.
    """

    def __init__(self, path: Path, schema: pa.Schema, to_table: Callable[[list], pa.Table]) -> None:
        self._path = path
        self._schema = schema
        self._to_table = to_table
        self._buffer: list = []
        self._writer: pq.ParquetWriter | None = None
        self.rows: dict[str, int] = {}  # by file name

    def add(self, row: Any) -> None:
        self._buffer.append(row)
        if len(self._buffer) == ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if not self._buffer:
            return
        name = self._path.name.format(sum(self.rows.values()) // SHARD)
        if self._writer is None or name not in self.rows:
            self._writer = self._next_file(name)
        self._writer.write_table(self._to_table(self._buffer), row_group_size=ROW_GROUP)
        self.rows[name] += len(self._buffer)
        self._buffer = []

    def _next_file(self, name: str) -> pq.ParquetWriter:
        if self._writer is not None:
            self._writer.close()
        self.rows[name] = 0
        return pq.ParquetWriter(
            self._path.with_name(name),
            self._schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            # zstd has no checksum: a flipped byte would come back as another motion.
            write_page_checksum=True,
        )


def _label_table(rows: list[tuple[str, np.ndarray]]) -> pa.Table:
    ids = [clip_id for clip_id, _ in rows]
    affects: list[np.ndarray | None] = [affect for _, affect in rows]
    return pa.Table.from_arrays(
        [pa.array(ids), sequences_to_arrow(affects, 2)], schema=LABEL_SCHEMA
    )


def _caption_table(rows: list[tuple[str, Mapping[str, str]]]) -> pa.Table:
    columns = [{"clip_id": clip_id, **captions} for clip_id, captions in rows]
    return pa.Table.from_pylist(columns, schema=CAPTION_SCHEMA)


def _truth_table(rows: list[tuple[str, Truth]]) -> pa.Table:
    affects: list[np.ndarray | None] = [truth.appropriate_affect for _, truth in rows]
    styles = []
    for _, truth in rows:
        traits = sorted(truth.style.items())
        styles.append([{"trait": name, "value": value} for name, value in traits])
    arrays = [
        pa.array([clip_id for clip_id, _ in rows]),
        sequences_to_arrow(affects, 2),
        pa.array([truth.manner for _, truth in rows]),
        pa.array(styles, TRUTH_SCHEMA.field("style").type),
    ]
    return pa.Table.from_arrays(arrays, schema=TRUTH_SCHEMA)


def _points_table(rows: list[tuple[str, Sequence[Point]]]) -> pa.Table:
    points = [[asdict(point) for point in of_clip] for _, of_clip in rows]
    arrays = [
        pa.array([clip_id for clip_id, _ in rows]),
        pa.array(points, POINTS_SCHEMA.field("points").type),
    ]
    return pa.Table.from_arrays(arrays, schema=POINTS_SCHEMA)


def _rests_table(rows: list[tuple[str, np.ndarray]]) -> pa.Table:
    arrays = [
        pa.array([clip_id for clip_id, _ in rows]),
        pa.array([rest.astype(np.float32) for _, rest in rows], pa.list_(pa.float32())),
    ]
    return pa.Table.from_arrays(arrays, schema=RESTS_SCHEMA)


def _appropriate_table(rows: list[tuple[str, Sequence[str]]]) -> pa.Table:
    arrays = [
        pa.array([clip_id for clip_id, _ in rows]),
        pa.array([list(fitting) for _, fitting in rows], pa.list_(pa.string())),
    ]
    return pa.Table.from_arrays(arrays, schema=APPROPRIATE_SCHEMA)


def _read_manifest(path: Path) -> dict:
    file = path / MANIFEST
    if not path.is_dir():
        raise CorpusError(
            f"no corpus at {path}: the folder does not exist. The recipe 'prepare' builds one"
        )
    if not file.is_file():
        raise CorpusError(
            f"{path} has no {MANIFEST}: it is no corpus, or was left half-written. Remove and "
            "rebuild it"
        )
    try:
        manifest = json.loads(file.read_text())
    except ValueError as error:
        raise CorpusError(f"{file} is not JSON ({error}): rebuild the corpus") from error
    if not isinstance(manifest, dict):
        raise CorpusError(
            f"{file} holds no manifest but a {type(manifest).__name__}: rebuild the corpus"
        )
    if manifest.get("schema_version") != SCHEMA_VERSION:
        version = manifest.get("schema_version")
        raise CorpusError(
            f"{file} has schema version {version!r}, this code reads {SCHEMA_VERSION!r}: rebuild it"
        )
    missing = {"layout", "frame_size", "clips", "files"} - manifest.keys()
    if missing:
        raise CorpusError(f"{file} lacks {sorted(missing)}: rebuild the corpus")
    if not sum(manifest["clips"].values()):
        raise CorpusError(f"{path} is an empty corpus: rebuild it with at least one clip")
    for name, entry in manifest["files"].items():
        if not (path / name).is_file():
            raise CorpusError(f"{path / name} is missing: restore it or rebuild the corpus")
        if (path / name).stat().st_size != entry["bytes"]:
            raise CorpusError(
                f"{path / name} has not the {entry['bytes']} bytes written: restore or rebuild it"
            )
    return manifest


def _read_side_file(path: Path, name: str, schema: pa.Schema, what: str) -> pa.Table:
    if name not in _read_manifest(path)["files"]:
        raise CorpusError(
            f"the corpus at {path} has no {what} ({name}): it was made from a source without"
        )
    with _open(path / name, schema) as file, _naming_file(path / name):
        return file.read()


def _open(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    """A Parquet file of `schema`, or an error that says which file is not."""
    with _naming_file(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        columns = file.schema_arrow
    if not columns.equals(schema) or columns.metadata != schema.metadata:
        file.close()
        raise CorpusError(
            f"{path} has other columns or another layout than its corpus: restore it, or "
            "rebuild the corpus"
        )
    return file


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"{path} cannot be read as Parquet ({error}): restore it or rebuild the corpus"
        ) from error
