"""Clips in files, as `evaluate` takes them: npy, npz, Parquet, and published layouts.

    clip.npy             an array: (time, dim), (clips, time, dim), (N, M, time, dim) or video
                         (time, H, W, 3)
    clips.npz            one array; or several, a clip each, in the order of the file
    track.npz            exp, pose and shape: a DualTalk track
    face.npz             vertices, rot, jaw, lip, upper: a
                         `rapport.rewards.metrics.measures.mesh.Face`
    clips.parquet        columns clip_id, listener, speaker, or clip_id, motion; layout in the
                         metadata (may be absent)
    segments_val.pth     lm-listener's segments; a clip is named <video>_<first frame>
    corpus/              a corpus that `prepare` wrote: its split "test"
    folder/              any of the first five, a clip each, named by its file without `_pred`

Named clips are brought together by name, the others by their order.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rapport.pipeline.data.columns import array_of
from rapport.pipeline.data.readers import dualtalk, lm_listener
from rapport.pipeline.data.store import MANIFEST, Corpus, CorpusError
from rapport.policies.motion import Layout, Motion
from rapport.rewards.metrics.measures.mesh import Face, Regions

Side = Literal["listener", "speaker"]
SUFFIXES = (".npy", ".npz", ".parquet")
_DUALTALK = re.compile(r"(.+_speaker)([12])")


def read_clips(path: Path, side: Side = "listener", fps: float | None = None) -> Any:
    """Read what a file or folder holds.

    Args:
        path: the file or folder.
        side: whose motion, where a file has that of both.
        fps: of files that do not say it (segments).

    Returns:
        name -> clip where there are names, else an array, a clip or a list of them.

    Raises:
        CorpusError: no such file, a damaged one or one of another kind; names it.
    """
    if path.is_dir():
        return _corpus(path, side) if (path / MANIFEST).is_file() else _folder(path, side)
    if not path.is_file():
        raise CorpusError(f"no file or folder {path}")
    if path.suffix == ".pth":
        return _segments(path, side, fps)
    if path.suffix not in SUFFIXES:
        raise CorpusError(
            f"{path}: expected a folder or a file ending in {', '.join(SUFFIXES)} or .pth"
        )
    if path.suffix == ".parquet":
        return _parquet(path, side)
    return _npy(path) if path.suffix == ".npy" else _npz(path)


def together(pred: Any, other: Any, what: str, partner: bool = False) -> Any:
    """Bring `other` into the order of `pred`, by name where both have names.

    Args:
        pred: what `read_clips` gave for the predictions.
        other: what it gave for the recordings or the partners.
        what: `other` in words, for the error.
        partner: take the other person, which of DualTalk's `x_speaker1` is `x_speaker2`, and the
            other way round.

    Raises:
        CorpusError: `other` lacks a name of `pred`.
    """
    if not isinstance(other, Mapping):
        return other
    if not isinstance(pred, Mapping):
        return list(other.values())
    names = {name: _other_person(name) if partner else name for name in pred}
    missing = [name for name in names.values() if name not in other]
    if missing:
        raise CorpusError(
            f"{what} lacks {len(missing)} of {len(pred)} predicted clips, first {missing[0]!r}; "
            f"it has {', '.join(map(repr, list(other)[:3]))}, ..."
        )
    return [other[name] for name in names.values()]


def _other_person(name: str) -> str:
    match = _DUALTALK.fullmatch(name)
    return match[1] + {"1": "2", "2": "1"}[match[2]] if match else name


def _folder(path: Path, side: Side) -> dict[str, Any]:
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise CorpusError(
            f"{path} has no {' or '.join(SUFFIXES)} file, and no {MANIFEST} of a corpus"
        )
    clips: dict[str, Any] = {}
    for file in files:
        content = read_clips(file, side)
        if isinstance(content, list):
            raise CorpusError(f"{file} holds {len(content)} clips: in a folder a file is a clip")
        if not isinstance(content, dict):
            content = {file.stem.removesuffix("_pred"): content}
        for name, clip in content.items():
            if name in clips:
                raise CorpusError(f"{path} has two clips {name!r}, the second in {file.name}")
            clips[name] = clip
    return clips


def _corpus(path: Path, side: Side) -> dict[str, Motion]:
    clips = {clip.clip_id: getattr(clip, side) for clip in Corpus(path).clips("test")}
    if side == "speaker" and all(clip is None for clip in clips.values()):
        raise CorpusError(f"{path} has no motion of the speaker")
    return clips


def _segments(path: Path, side: Side, fps: float | None) -> dict[str, Motion]:
    layout = replace(lm_listener.LAYOUT, fps=fps or lm_listener.FPS)
    person = "p0" if side == "listener" else "p1"
    clips = {}
    for index, segment in enumerate(lm_listener.read_segments(path)):
        where = f"{path}, segment {index}"
        try:
            name = f"{Path(str(segment['fname'])).stem}_{int(segment['split_start_frame'])}"
        except (KeyError, TypeError, ValueError) as error:
            raise CorpusError(
                f"{where}: fname and split_start_frame are needed: {error!r}"
            ) from error
        clips[name] = lm_listener.segment_motion(segment, person, layout, where=where)
    return clips


def _parquet(path: Path, side: Side) -> dict[str, Any]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path} cannot be read as Parquet: {error}") from error
    columns = [name for name in (side, "motion") if name in table.schema.names]
    if "clip_id" not in table.schema.names or not columns:
        raise CorpusError(
            f"{path} has columns {table.schema.names}, expected clip_id and {side} or motion"
        )
    text = (table.schema.metadata or {}).get(b"layout")
    layout = None if text is None else Layout.from_json(text.decode())
    clips = {}
    names = table["clip_id"].to_pylist()
    for name, cell in zip(names, table[columns[0]], strict=True):
        clips[name] = _cell(cell, layout, f"{path}, clip {name!r}")
    return clips


def _cell(cell: pa.Scalar, layout: Layout | None, where: str) -> np.ndarray | Motion | None:
    """One clip of a Parquet file: motion where the file has a layout, else an array."""
    if not cell.is_valid:
        return None
    try:
        fixed = pa.types.is_list(cell.type) and pa.types.is_fixed_size_list(cell.type.value_type)
        values = array_of(cell) if fixed else np.array(cell.as_py(), np.float64)
    except (TypeError, ValueError) as error:
        raise CorpusError(f"{where} is no array (time, dim): {error}") from error
    return values if layout is None else Motion(values, layout)


def _npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorpusError(f"{path} is no array: {error}") from error


def _npz(path: Path) -> Any:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CorpusError(f"{path} holds no arrays: {error}") from error
    if {"exp", "pose"} <= arrays.keys():
        return dualtalk.read_track(path)[0]
    if {"vertices", "rot", "jaw", "lip", "upper"} <= arrays.keys():
        try:
            regions = Regions(arrays["lip"], arrays["upper"])
            return Face(arrays["vertices"], arrays["rot"], arrays["jaw"], regions=regions)
        except ValueError as error:
            raise CorpusError(f"{path}: {error}") from error
    if not arrays:
        raise CorpusError(f"{path} is empty")
    clips = list(arrays.values())
    return clips[0] if len(clips) == 1 else clips
