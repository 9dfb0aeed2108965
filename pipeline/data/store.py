"""Corpora on disk: clips in Parquet shards, a manifest, and labels and hidden truth in files of
their own.

    corpus/ corpus.json               what is here: layout, counts, digests; written last
      train-00000.parquet ...   clips (columns.clip_schema) test-00000.parquet ... labels.parquet
      the listener's expressed affect, as a labelled corpus gives it (may be absent) truth.parquet
      hidden truth for judging; only `load_truth` reads it (may be absent)

A corpus is built in a hidden sibling folder and renamed into place, so a half-written one is never
taken for whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rapport.pipeline.data.columns import (
    LABEL_SCHEMA,
    SCHEMA_VERSION,
    TRUTH_SCHEMA,
    Truth,
    array_of,
    clip_schema,
    clips_to_table,
    row_to_clip,
    sequences_to_arrow,
)
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.motion import Layout, LayoutError, Motion

MANIFEST = "corpus.json"
LABELS = "labels.parquet"
TRUTH = "truth.parquet"
ROW_GROUP = 4  # clips decoded at once, for one at random, too
SHARD = 512  # clips in a file


class CorpusError(ValueError):
    """A corpus is missing, incomplete, corrupt or mixed. The message names the file or clip and the
    way out.
    """


class CorpusWriter:
    """Writes a corpus; use as a context manager, `add` clips, done on a clean exit.

    Args:
        path: folder to create; it must not exist.
        source: what the clips are and how they were made, kept in the manifest.

    Raises:
        CorpusError: the folder exists, a clip id comes twice, layouts, splits or frame sizes are
            unlike, or no clip was added.
    """

    def __init__(self, path: str | Path, source: dict[str, object]) -> None:
        self.path = Path(path)
        self.source = source
        if self.path.exists():
            raise CorpusError(
                f"{self.path} is already there: remove it or write the corpus elsewhere"
            )
        self._building = self.path.with_name(f".{self.path.name}.building-{os.getpid()}")
        self._layout: Layout | None = None
        self._frame_size: tuple[int, int] | None = None
        self._shards: dict[str, _Shards] = {}
        self._labels: _Shards | None = None
        self._truth: _Shards | None = None
        self._ids: set[str] = set()
        self._present: dict[str, int] = {}

    def __enter__(self) -> CorpusWriter:
        shutil.rmtree(self._building, ignore_errors=True)
        self._building.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._building, ignore_errors=True)

    def add(
        self, clip: Clip, expressed_affect: np.ndarray | None = None, truth: Truth | None = None
    ) -> None:
        """Append one clip, with its affect label (time, 2) and hidden truth where the source has
        them.
        """
        self._check(clip)
        for name in ("speaker", "speaker_frames", "speaker_audio", "listener_audio", "words"):
            self._present[name] = self._present.get(name, 0) + (name not in clip.absent)
        layout = self._layout
        if clip.split not in self._shards:
            self._shards[clip.split] = _Shards(
                self._building,
                f"{clip.split}-{{:05d}}.parquet",
                clip_schema(layout),
                lambda clips: clips_to_table(clips, layout),
            )
        self._shards[clip.split].add(clip)
        if expressed_affect is not None:
            self._labels = self._labels or _Shards(
                self._building, LABELS, LABEL_SCHEMA, _label_table
            )
            self._labels.add((clip.clip_id, expressed_affect))
        if truth is not None:
            self._truth = self._truth or _Shards(self._building, TRUTH, TRUTH_SCHEMA, _truth_table)
            self._truth.add((clip.clip_id, truth))

    def _check(self, clip: Clip) -> None:
        if clip.clip_id in self._ids:
            raise CorpusError(
                f"clip {clip.clip_id!r} was added twice: clip ids must be unique in a corpus"
            )
        self._ids.add(clip.clip_id)
        if clip.split not in ("train", "test"):
            raise CorpusError(
                f"clip {clip.clip_id!r}: split {clip.split!r} is neither 'train' nor 'test'"
            )
        self._layout = self._layout or clip.listener.layout
        for motion in (clip.listener, clip.speaker):
            if motion is not None and motion.layout != self._layout:
                raise CorpusError(
                    f"clip {clip.clip_id!r} has motion in {motion.layout}, the corpus is in "
                    f"{self._layout}: "
                    "convert it with Motion.subset, or write two corpora"
                )
        if clip.speaker_frames is not None:
            size = clip.speaker_frames.shape[1:3]
            self._frame_size = self._frame_size or size
            if size != self._frame_size:
                raise CorpusError(
                    f"clip {clip.clip_id!r} has frames of {size}, the corpus of {self._frame_size}"
                )

    def _finish(self) -> None:
        if self._layout is None:
            raise CorpusError(f"no clip was added to {self.path}: an empty corpus is not written")
        files = {}
        for shards in [*self._shards.values(), self._labels, self._truth]:
            if shards is not None:
                shards.close()
                files.update(shards.rows)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "layout": json.loads(self._layout.to_json()),
            "fps": self._layout.fps,
            "audio_rate": AUDIO_RATE,
            "frame_size": self._frame_size,
            "clips": {
                split: sum(shards.rows.values()) for split, shards in sorted(self._shards.items())
            },
            "present": self._present,
            "files": {
                name: {
                    "rows": rows,
                    "bytes": (self._building / name).stat().st_size,
                    "sha256": _sha256(self._building / name),
                }
                for name, rows in sorted(files.items())
            },
            "source": self.source,
        }
        (self._building / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        os.replace(self._building, self.path)


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
        return list(self.manifest["clips"])

    @property
    def fps(self) -> float:
        return self.layout.fps

    @property
    def digest(self) -> str:
        """Digest of all clips, the same for equal corpora wherever they lie."""
        shards = {
            n: f["sha256"] for n, f in self.manifest["files"].items() if n not in (LABELS, TRUTH)
        }
        return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()

    def count(self, split: str) -> int:
        """Clips in a split."""
        return sum(rows for _, _, rows in self._split(split))

    def clips(self, split: str) -> Iterator[Clip]:
        """Clips of a split in the order they were written; one row group in memory at a time."""
        for name, group, rows in self._split(split):
            table = self._read_group(name, group)
            yield from (self._clip(table, row, name) for row in range(rows))

    def listeners(self, split: str) -> Iterator[tuple[str, Motion]]:
        """Clip id and the listener's motion of every clip of a split, in order; nothing else is
        read.
        """
        for name, group, rows in self._split(split):
            table = self._read_group(name, group, ["clip_id", "listener"])
            for row in range(rows):
                with self._naming(table, row, name):
                    yield (
                        table["clip_id"][row].as_py(),
                        Motion(array_of(table["listener"][row]), self.layout),
                    )

    def clip_ids(self, split: str) -> list[str]:
        """Ids of a split, in order."""
        self._split(split)
        return [clip_id for clip_id, (where, *_) in self._places.items() if where == split]

    def at(self, split: str, index: int) -> Clip:
        """Clip number `index` of a split."""
        ids = self.clip_ids(split)
        if not 0 <= index < len(ids):
            raise IndexError(f"clip {index} of split {split!r}: {self.path} has {len(ids)}")
        return self.clip(ids[index])

    def clip(self, clip_id: str) -> Clip:
        """The clip of this id. Raises `CorpusError` when there is none."""
        if clip_id not in self._places:
            raise CorpusError(
                f"{self.path} has no clip {clip_id!r}; Corpus.clip_ids(split) lists them"
            )
        _, name, group, row = self._places[clip_id]
        return self._clip(self._read_group(name, group), row, name)

    def verify(self) -> None:
        """Compare every file with its digest in the manifest. Raises `CorpusError` on the first
        that differs.
        """
        for name, entry in self.manifest["files"].items():
            if _sha256(self.path / name) != entry["sha256"]:
                raise CorpusError(
                    f"{self.path / name} is not the file that was written: restore or rebuild "
                    "the corpus"
                )

    @cached_property
    def _places(self) -> dict[str, tuple[str, str, int, int]]:
        """Clip id -> (split, file, row group, row), in order."""
        return {
            clip_id: (split, name, group, row)
            for split in self.splits
            for name, group, _ in self._split(split)
            for row, clip_id in enumerate(
                self._read_group(name, group, ["clip_id"])["clip_id"].to_pylist()
            )
        }

    def _split(self, split: str) -> list[tuple[str, int, int]]:
        if split not in self._groups:
            raise CorpusError(f"{self.path} has no split {split!r}, only {self.splits}")
        return self._groups[split]

    def _row_groups(self, split: str) -> list[tuple[str, int, int]]:
        """(file, row group, rows) of a split, from the file footers."""
        groups = []
        for name in self.manifest["files"]:
            if name.startswith(f"{split}-"):
                footer = self._file(name).metadata
                groups += [
                    (name, i, footer.row_group(i).num_rows) for i in range(footer.num_row_groups)
                ]
        return groups

    def _read_group(
        self, name: str, group: int, columns: list[str] | None = None
    ) -> pa.RecordBatch:
        with _naming_file(self.path / name):
            table = self._file(name).read_row_group(group, columns)
        return table.combine_chunks().to_batches()[0]

    def _file(self, name: str) -> pq.ParquetFile:
        """A shard, opened once: that takes as long as reading a row group."""
        if name not in self._files:
            self._files[name] = _open(self.path / name, clip_schema(self.layout))
        return self._files[name]

    def _clip(self, table: pa.RecordBatch, row: int, name: str) -> Clip:
        with self._naming(table, row, name):
            return row_to_clip(table, row, self.layout, self.manifest["frame_size"])

    @contextmanager
    def _naming(self, table: pa.RecordBatch, row: int, name: str) -> Iterator[None]:
        """Say which clip it is whose motion cannot be taken."""
        try:
            yield
        except LayoutError as error:
            where = f"{self.path / name}, clip {table['clip_id'][row].as_py()!r}"
            raise CorpusError(f"{where}: {error}. Rebuild the corpus without it") from error


def load_labels(path: str | Path) -> dict[str, np.ndarray]:
    """The listener's expressed affect by clip id: (time, 2) valence and arousal in [-1, 1]."""
    table = _read_side_file(Path(path), LABELS, LABEL_SCHEMA, "affect labels")
    return {
        row.as_py(): array_of(cell)
        for row, cell in zip(table["clip_id"], table["expressed_affect"], strict=True)
    }


def load_truth(path: str | Path) -> dict[str, Truth]:
    """Hidden truth by clip id, for judging only: training on it is cheating."""
    table = _read_side_file(Path(path), TRUTH, TRUTH_SCHEMA, "hidden truth")
    return {
        clip_id.as_py(): Truth(
            array_of(affect), manner.as_py(), {t["trait"]: t["value"] for t in style.as_py()}
        )
        for clip_id, affect, manner, style in zip(
            *(table[name] for name in TRUTH_SCHEMA.names), strict=True
        )
    }


class _Shards:
    """Rows buffered to row groups and written to one file, or to files of at most `SHARD` rows."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema, to_table) -> None:
        self._folder, self._name, self._schema, self._to_table = folder, name, schema, to_table
        self._buffer: list = []
        self._writer: pq.ParquetWriter | None = None
        self.rows: dict[str, int] = {}

    def add(self, item) -> None:
        self._buffer.append(item)
        if len(self._buffer) == ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if not self._buffer:
            return
        name = self._name.format(sum(self.rows.values()) // SHARD)
        if name not in self.rows:
            if self._writer is not None:
                self._writer.close()
            self._writer = pq.ParquetWriter(
                self._folder / name,
                self._schema,
                compression="zstd",
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,  # zstd has none: a flipped byte would come back as other motion
            )
            self.rows[name] = 0
        self._writer.write_table(self._to_table(self._buffer), row_group_size=ROW_GROUP)
        self.rows[name] += len(self._buffer)
        self._buffer = []


def _label_table(rows: list[tuple[str, np.ndarray]]) -> pa.Table:
    ids, affects = zip(*rows, strict=True)
    return pa.Table.from_arrays(
        [pa.array(ids), sequences_to_arrow(list(affects), 2)], schema=LABEL_SCHEMA
    )


def _truth_table(rows: list[tuple[str, Truth]]) -> pa.Table:
    styles = [
        [{"trait": t, "value": v} for t, v in sorted(truth.style.items())] for _, truth in rows
    ]
    arrays = [
        pa.array([clip_id for clip_id, _ in rows]),
        sequences_to_arrow([truth.appropriate_affect for _, truth in rows], 2),
        pa.array([truth.manner for _, truth in rows]),
        pa.array(styles, TRUTH_SCHEMA.field("style").type),
    ]
    return pa.Table.from_arrays(arrays, schema=TRUTH_SCHEMA)


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
        found = file.schema_arrow
    if not found.equals(schema) or found.metadata != schema.metadata:
        file.close()
        raise CorpusError(
            f"{path} has other columns or another layout than its corpus: restore it, or rebuild "
            "the "
            "corpus"
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
