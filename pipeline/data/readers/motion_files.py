"""Clips in files, as `evaluate` takes them: npy, npz, Parquet, and published layouts.

    clip.npy             an array: (time, dim), (clips, time, dim), (N, M, time, dim) or video
                         (time, H, W, 3)
    clips.npz            one array; or several (time, dim) of one dim, a clip each
    listener.npz         values and layout: what `Motion.save` writes
    track.npz            exp, pose and shape: a DualTalk track; or that of a tracker in `trackers`
    face.npz             vertices, rot, jaw, lip, upper: a
                         `rapport.rewards.metrics.measures.mesh.Face`
    clips.parquet        columns clip_id, listener, speaker, or clip_id, motion; layout in the
                         metadata (may be absent)
    segments_val.pth     lm-listener's segments; a clip is named <video>_<first frame>
    corpus/              a corpus that `prepare` wrote: its split "test"
    folder/              any of the first six, a clip each, named by its file without `_pred`

Named clips are brought together by name, the others by their order. Arrays in an npz are clips
only if they look like clips: alike in width and named neither by a part of a face nor by a role.
Whatever else is in a file is refused with the keys that it has. Hidden files are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rapport.arrays import ArrayFileError, described, load_arrays
from rapport.files import visible
from rapport.log import logger
from rapport.pipeline.data.columns import array_of
from rapport.pipeline.data.readers import dualtalk, lm_listener, trackers
from rapport.pipeline.data.store import MANIFEST, Corpus, CorpusError
from rapport.policies.motion import Layout, LayoutError, Motion, require_radians
from rapport.rewards.metrics.measures.mesh import Face, Regions
from rapport.wording import first_few

Side = Literal["listener", "speaker"]
SUFFIXES = (".npy", ".npz", ".parquet")
FRAME_RATE = "fps"  # a key of an npz that says frames per second and is no clip
_BINARY = (0, 1)
_DUALTALK = re.compile(r"(.+_speaker)([12])")
_UNNAMED = re.compile(r"arr_\d+")  # numpy's names of arrays that got none
# Words in the names of arrays that are parts of a track, and no clips.
_PARTS = re.compile(
    r"expr?|expression|pose|rot|rotation|orient|jaw|neck|eyes?|eyelids?|gaze|trans|translation|"
    r"shape|betas|tex|texture|light|cam|camera|detail|verts?|vertices|lmks?|landmarks|mask|audio|"
    r"(exp|pose|shape|tex|light|detail)code"
)
# Words of which no clip's name consists altogether.
_ROLES = re.compile(
    r"(listener|speaker|partner|actor|person|p)\d?|pred|prediction|target|gt|truth|source|motion|"
    r"coeffs?|params?|codes?|mean|std|valid|times?|timestamps?|frames?|head|global|blendshapes?"
)


def read_clips(path: Path, side: Side = "listener", fps: float | None = None) -> Any:
    """Read what a file or folder holds.

    Args:
        path: the file or folder.
        side: whose motion, where a file has that of both.
        fps: of files that do not say it (segments, trackers); one that does must agree.

    Returns:
        name -> clip where there are names, else an array, a clip or a list of them.

    Raises:
        CorpusError: no such file, a damaged one or one of another kind; names it.
    """
    try:
        return _read(path, side, fps)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error}") from error


def _read(path: Path, side: Side, fps: float | None) -> Any:
    if path.is_dir():
        return _corpus(path, side) if (path / MANIFEST).is_file() else _folder(path, side, fps)
    if not path.is_file():
        raise CorpusError(f"no file or folder {path}")
    if path.suffix == ".pth":
        return _segments(path, side, fps)
    if path.suffix not in SUFFIXES:
        raise CorpusError(
            f"{path}: expected a folder or a file ending in {', '.join(SUFFIXES)} or .pth"
        )
    return _parquet(path, side) if path.suffix == ".parquet" else _numpy(path, fps)


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


def _folder(path: Path, side: Side, fps: float | None) -> dict[str, Any]:
    entries = visible(path)
    files = [file for file in entries if file.suffix in SUFFIXES and file.is_file()]
    if not files:
        raise CorpusError(
            f"{path} has no {' or '.join(SUFFIXES)} file, and no {MANIFEST} of a corpus"
        )
    if others := [entry.name for entry in entries if entry not in files]:
        shown = first_few(others)
        logger.warning(f"{path}: {len(others)} entries are no clips and are left out: {shown}")
    clips: dict[str, Any] = {}
    for file in files:
        content = read_clips(file, side, fps)
        if isinstance(content, list):
            raise CorpusError(f"{file} holds {len(content)} clips: in a folder a file is a clip")
        if not isinstance(content, dict):
            content = {file.stem.removesuffix("_pred"): content}
        for name, clip in content.items():
            if name in clips:
                raise CorpusError(f"{path} has two clips {name!r}, the second in {file.name}")
            clips[name] = clip
    _require_alike(path, clips)
    return clips


def _require_alike(path: Path, clips: dict[str, Any]) -> None:
    """Raise unless all clips of a folder are of one kind: parts of a face are not clips of one."""
    kinds: dict[str, str] = {}
    for name, clip in clips.items():
        kinds.setdefault(kind_of(clip), name)
    kinds.pop("absent", None)
    if len(kinds) > 1:
        listed = ", ".join(f"{name!r} is {kind}" for kind, name in list(kinds.items())[:4])
        raise CorpusError(f"{path} holds clips of unlike kinds: {listed}. Take one kind at a time")


def kind_of(clip: Any) -> str:
    """What must be the same of all clips that are scored together."""
    if clip is None:
        return "absent"
    if isinstance(clip, Motion):
        return str(clip.layout)
    if isinstance(clip, Face):
        return "a mesh"
    if not clip.ndim:
        return "a single value"
    # Masks of two persons are (2, time).
    of_two = clip.ndim == 2 and len(clip) == len(_BINARY) and np.isin(clip, _BINARY).all()
    if clip.ndim == 1 or of_two:
        return "a mask"
    return f"an array (..., {', '.join(map(str, clip.shape[1:]))})"


def _corpus(path: Path, side: Side) -> dict[str, Motion]:
    clips = {clip.clip_id: getattr(clip, side) for clip in Corpus(path).clips("test")}
    if side == "speaker" and all(clip is None for clip in clips.values()):
        raise CorpusError(f"{path} has no motion of the speaker")
    return clips


def _segments(path: Path, side: Side, fps: float | None) -> dict[str, Motion]:
    segments = lm_listener.read_segments(path)
    rate = fps or lm_listener.rate_of_segments(segments)
    lm_listener.check_rate(path, segments, rate, setting="files.fps")
    layout = replace(lm_listener.LAYOUT, fps=rate)
    person = "p0" if side == "listener" else "p1"
    clips: dict[str, Motion] = {}
    for index, segment in enumerate(segments):
        where = f"{path}, segment {index}"
        try:
            name = f"{Path(str(segment['fname'])).stem}_{int(segment['split_start_frame'])}"
        except (KeyError, TypeError, ValueError) as error:
            raise CorpusError(
                f"{where}: fname and split_start_frame are needed: {error!r}"
            ) from error
        if name in clips:
            raise CorpusError(f"{where} is a second {name!r}: names and first frames must differ")
        clips[name] = lm_listener.segment_motion(segment, person, layout, where=where)
    return clips


def _parquet(path: Path, side: Side) -> dict[str, Any]:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} cannot be read as Parquet: {error}") from error
    columns = [name for name in (side, "motion") if name in table.schema.names]
    if "clip_id" not in table.schema.names or not columns:
        raise CorpusError(
            f"{path} has columns {table.schema.names}, expected clip_id and {side} or motion"
        )
    text = (table.schema.metadata or {}).get(b"layout")
    try:
        layout = None if text is None else Layout.from_json(text.decode(errors="replace"))
    except LayoutError as error:
        raise CorpusError(f"{path}, metadata 'layout': {error}") from error
    names = table["clip_id"].to_pylist()
    if not names:
        raise CorpusError(f"{path} has no clip")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CorpusError(f"{path} has clip {twice!r} twice: each clip needs an id of its own")
    clips = {}
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
        if layout is None:
            return _numbers(values, where)
        motion = Motion(values, layout)
        require_radians(motion)
    except (TypeError, ValueError) as error:
        raise CorpusError(f"{where} is no motion (time, dim): {error}") from error
    return motion


def _numpy(path: Path, fps: float | None) -> Any:
    try:
        content = load_arrays(path)
    except ArrayFileError as error:
        raise CorpusError(str(error)) from error
    if isinstance(content, np.ndarray):
        return _numbers(content, str(path))
    return _npz(path, content, fps)


def _npz(path: Path, arrays: dict[str, np.ndarray], fps: float | None) -> Any:
    """A track, a mesh, or clips, whichever the names and shapes of the arrays say."""
    clips = {name: array for name, array in arrays.items() if name != FRAME_RATE}
    rate = _rate(path, arrays, fps)
    if clips.keys() == {"values", "layout"}:
        return _motion(path, fps)
    if {"exp", "pose"} <= clips.keys():
        motion = dualtalk.track_of(clips, path)[0]
        if rate is not None and rate != motion.layout.fps:
            raise CorpusError(
                f"{path} says {rate:g} fps, DualTalk's tracks have {motion.layout.fps:g}: resample "
                "it"
            )
        return motion
    if tracker := trackers.tracker_of(clips):
        return trackers.read_track(tracker, clips, path, rate or fps)
    if {"vertices", "rot", "jaw", "lip", "upper"} <= clips.keys():
        try:
            regions = Regions(tuple(arrays["lip"].tolist()), tuple(arrays["upper"].tolist()))
            return Face(arrays["vertices"], arrays["rot"], arrays["jaw"], regions=regions)
        except (ValueError, TypeError, IndexError) as error:
            raise CorpusError(f"{path}: {error}") from error
    if rate is not None and fps is None:
        # Plain arrays carry no rate, and a protocol would take its own.
        raise CorpusError(f"{path} says {rate:g} fps: give --fps {rate:g} (files.fps), too")
    if len(clips) > 1:
        return _bundle(path, clips)
    [clip] = clips.values() or [np.zeros(0)]
    return _numbers(clip, str(path))


def _motion(path: Path, fps: float | None) -> Motion:
    """A motion that says its layout."""
    try:
        motion = Motion.load(path)
        require_radians(motion)
    except LayoutError as error:
        raise CorpusError(f"{path}: {error}") from error
    if fps is not None and fps != motion.layout.fps:
        raise CorpusError(
            f"{path} says {motion.layout.fps:g} fps, files.fps (--fps) {fps:g}: resample one"
        )
    return motion


def _rate(path: Path, arrays: dict[str, np.ndarray], fps: float | None) -> float | None:
    """Frames per second that the file itself says.

    Raises:
        CorpusError: it is no rate, or another than `fps`.
    """
    if FRAME_RATE not in arrays:
        return None
    values = arrays[FRAME_RATE]
    numbers = np.unique(values) if values.dtype.kind in "iuf" else np.zeros(0)
    if len(numbers) != 1 or not 0 < numbers[0] < np.inf:
        raise CorpusError(f"{path}: fps must be one number, it is {values.ravel()[:3].tolist()}")
    rate = float(numbers[0])
    if fps is not None and abs(rate / fps - 1) > 1e-3:
        raise CorpusError(f"{path} says {rate:g} fps, files.fps (--fps) {fps:g}: resample one")
    return rate


def _bundle(path: Path, clips: dict[str, np.ndarray]) -> Any:
    """Several arrays, a clip each; with names, unless numpy gave them."""
    kinds = {kind_of(array) for array in clips.values()}
    if len(kinds) > 1 or any(map(_names_a_part, clips)):
        known = "; ".join(f"{tracker.name}: {tracker}" for tracker in trackers.TRACKERS)
        raise CorpusError(
            f"{path} is of no known kind: it has {described(clips)}. Known are DualTalk: exp (T, "
            f"50), pose (T, 6), shape (T, 100); {known}; one array; or clips (T, D) of one width "
            "under names of their own"
        )
    numbers = {name: _numbers(array, f"{path}, {name}") for name, array in clips.items()}
    return list(numbers.values()) if all(map(_UNNAMED.fullmatch, clips)) else numbers


def _names_a_part(name: str) -> bool:
    """Whether a name is of a part of a track, or of one side of it, rather than of a clip."""
    words = re.findall(r"[^\W_]+", name.lower())
    return any(map(_PARTS.fullmatch, words)) or all(map(_ROLES.fullmatch, words))


def _numbers(array: np.ndarray, where: str) -> np.ndarray:
    """The array itself.

    Raises:
        CorpusError: it has no dimension, no value, or values that are no numbers.
    """
    if array.dtype.kind not in "biuf":
        raise CorpusError(f"{where} holds {array.dtype}, no real numbers")
    if not array.ndim or not array.size:
        raise CorpusError(f"{where} has shape {array.shape}: no motion is in it")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
        raise CorpusError(f"{where} has NaN or infinity, first at {place}: repair the track")
    return array
