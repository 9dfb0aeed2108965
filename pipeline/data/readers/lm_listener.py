"""Reader of lm-listener's segments: Learning2Listen's people, tracked by EMOCA.

Ng et al., ICCV 2023.

    root/segments_{train,val,test}.pth     one listener's folder as published, e.g. dataset/trevor

A file is a torch list of dicts, one for each stretch in which p1 speaks and p0 listens:

    fname                       recording, a path of the authors' machine
    split_start_frame,          its frames in the recording, end excluded;
    split_end_frame             also as ..._time in seconds
    p0_exp (T, 50), p0_pose (T, 6), p0_shape (T, 100), the same as p1_...
    before_words, during_words  [{text, end, maybe start}], seconds from the start of the recording

`pose` is head rotation, then jaw, in radians of EMOCA's face model, FLAME 2020: 56 dimensions as
expression 50, rotation 3, jaw 3, at 30 fps, raw. `mean.npy` and `std.npy` beside the files are for
lm-listener's own z-scores and not needed. There is no sound and no video; words from before a
segment lie outside its clips and are left out.

Segments are pickles. Only lists, dicts, text, numbers and tensors are read from them; nothing in
them is ever run.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapport.files import visible
from rapport.pipeline.data.lengths import Lengths
from rapport.pipeline.data.store import Corpus, CorpusError, CorpusWriter
from rapport.pipeline.data.windows import cut, window_starts
from rapport.policies.clip import Clip, Word
from rapport.policies.motion import Layout, LayoutError, Motion, require_radians

FPS = 30.0
LAYOUT = Layout(groups=(("expr", 50), ("rot", 3), ("jaw", 3)), fps=FPS, topology="flame2020")
_JAW_LIMIT = 0.5  # radians; no jaw has this deviation about all three axes, z-scores have 1


@dataclass
class ReadCounts:
    """What became of the segments; kept in the corpus manifest."""

    segments: int = 0
    clips: int = 0
    too_short: int = 0  # segments shorter than a clip
    repeated: int = 0  # windows that another segment had already given
    # Training windows left out, because the held-out segments have some of their frames.
    held_out_overlap: int = 0
    shared_recordings: int = 0  # recordings in both splits, as published
    # Seconds of segments, and of what is lost where listener, speaker and frame numbers are not
    # equally long.
    lengths: Lengths = field(default_factory=Lengths)
    without_speaker: int = 0  # segments without p1
    words: int = 0
    words_outside: int = 0  # `during_words` that are not within their segment


def import_lm_listener(
    root: str | Path, path: str | Path, seconds: float = 4.0, stride: float = 1.0, fps: float = FPS
) -> Corpus:
    """Read one listener's segments and write them as a corpus.

    The split "test" is `segments_val.pth`, on which the published evaluation judges, or
    `segments_test.pth` where there is no val. Clips of one recording share a `dyad_id`, in both
    splits where the publishers cut through it.

    Args:
        root: folder of the files.
        path: folder of the corpus to create.
        seconds: length of a clip.
        stride: seconds from one clip to the next.
        fps: rate of the tracks. RealTalk in this layout has 25.

    Raises:
        CorpusError: no such files, damaged ones, ones that hold more than data, z-scores, another
            frame rate, or nothing to learn from; names the file and the segment.
    """
    counts = ReadCounts()
    source = {"kind": "lm_listener", "seconds": seconds, "stride": stride}
    with CorpusWriter(path, source) as writer:
        for clip in read_lm_listener(root, seconds, stride, fps=fps, counts=counts):
            writer.add(clip)
        if not counts.clips:
            raise CorpusError(f"{root} gave no clip of {seconds} s ({counts}): shorten the clips")
        if counts.words_outside > counts.words:
            raise CorpusError(
                f"{root}: {counts.words_outside} of {counts.words + counts.words_outside} words "
                "lie outside their segments; their times must be seconds from the start of the "
                "recording"
            )
        writer.source |= {"held_out": _files(Path(root))["test"].name, "counts": asdict(counts)}
    return Corpus(path)


def read_lm_listener(
    root: str | Path,
    seconds: float,
    stride: float,
    fps: float = FPS,
    counts: ReadCounts | None = None,
) -> Iterator[Clip]:
    """Clips of both splits, the held-out ones first.

    Args:
        root: folder of the files.
        seconds: length of a clip.
        stride: seconds from one clip to the next.
        fps: rate of the tracks.
        counts: filled in as the clips come.

    Raises:
        CorpusError: as of `import_lm_listener`.
        ValueError: a clip or a stride is shorter than a frame.
    """
    counts = ReadCounts() if counts is None else counts
    length = round(seconds * fps)
    step = round(stride * fps)
    if length < 1 or step < 1:
        raise ValueError(f"clips of {seconds} s every {stride} s are under a frame at {fps:g} fps")
    files = _files(Path(root))
    written: set[str] = set()
    held_out_frames: dict[str, list[range]] = {}
    train_recordings: set[str] = set()
    for split in ("test", "train"):  # held-out frames must be known before any are trained on
        for segment, begin in _whole_segments(files[split], split, fps, counts=counts):
            frames = len(segment.listener)
            recording = segment.dyad_id
            if split == "test":
                spans = held_out_frames.setdefault(recording, [])
                spans.append(range(begin, begin + frames))
            else:
                train_recordings.add(recording)
            starts = window_starts(frames, length, step)
            counts.too_short += not starts
            for start in starts:
                first = begin + start
                clip_id = f"{recording}-{first:06d}"
                spans = held_out_frames.get(recording, [])
                if split == "train" and _overlaps(first, length, spans):
                    counts.held_out_overlap += 1
                elif clip_id in written:
                    counts.repeated += 1
                else:
                    written.add(clip_id)
                    counts.clips += 1
                    yield cut(segment, start, length, clip_id=clip_id)
    counts.shared_recordings = len(train_recordings & held_out_frames.keys())
    # A published file cannot be mended segment by segment: only the whole must be whole.
    counts.lengths.require_small_share(Path(root))


def read_segments(path: Path) -> list[dict[str, Any]]:
    """The dicts of one file.

    Nothing in it is run: torch's restricted unpickler takes only plain data and tensors.

    Raises:
        CorpusError: the file is damaged, holds anything else, or is no list of dicts.
    """
    try:
        segments = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # a damaged pickle raises nearly anything
        # Not chained: torch's own text recommends to switch the protection off.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise CorpusError(
                f"{path} is refused: it holds {refused[1]}, and loading that could run code. "
                "Segments are lists, dicts, text, numbers and torch tensors: get the published "
                "file, or save it again with these only"
            ) from None
        raise CorpusError(
            f"{path} cannot be read as torch segments ({type(error).__name__}): truncated? Get "
            "it again"
        ) from None
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise CorpusError(
            f"{path} holds no list of dicts: is it one of lm-listener's segments_*.pth?"
        )
    if not segments:
        raise CorpusError(
            f"{path} is an empty list: no segment to take clips from. Get the published file"
        )
    return segments


def _files(root: Path) -> dict[str, Path]:
    """Our split -> file."""
    if not root.is_dir():
        raise CorpusError(
            f"no folder {root}: corpus.root must hold lm-listener's segments_train.pth"
        )
    files = {split: root / f"segments_{split}.pth" for split in ("train", "val", "test")}
    files = {split: path for split, path in files.items() if path.is_file()}
    if not files:
        inner = [path.parent.name for path in visible(root, "*/segments_train.pth")]
        way_out = (
            f"corpus.root must be one of its folders {inner}"
            if inner
            else "is it one of lm-listener's folders?"
        )
        raise CorpusError(f"{root} has no segments_*.pth: {way_out}")
    if "train" not in files or len(files) == 1:
        names = [path.name for path in files.values()]
        raise CorpusError(
            f"{root} has only {names}: segments_train.pth and segments_val.pth (or _test) are "
            "needed"
        )
    return {"train": files["train"], "test": files["val"] if "val" in files else files["test"]}


def _whole_segments(
    path: Path, split: str, fps: float, counts: ReadCounts
) -> Iterator[tuple[Clip, int]]:
    """Each segment as one long clip, and its first frame in the recording."""
    segments = read_segments(path)
    _check_rate(path, segments, fps)
    _check_raw(path, segments)
    layout = replace(LAYOUT, fps=fps)
    for index, segment in enumerate(segments):
        counts.segments += 1
        where = _where(path, index, segment)
        yield _whole(segment, split, layout, where=where, counts=counts)


def _whole(
    segment: dict[str, Any], split: str, layout: Layout, where: str, counts: ReadCounts
) -> tuple[Clip, int]:
    """A segment as one long clip, and its first frame in the recording."""
    try:
        name = re.sub(r"[^\w.-]+", "_", str(segment["fname"]))  # ids become names of files
        start = int(segment["split_start_frame"])
        end = int(segment["split_end_frame"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorpusError(
            f"{where}: fname, split_start_frame and split_end_frame are needed: {error!r}"
        ) from error
    if not 0 <= start < end:
        raise CorpusError(f"{where}: frames [{start}, {end}) are none. Take the segment out")
    listener = segment_motion(segment, "p0", layout, where=where)
    lengths = {"split_end_frame": end - start, "p0": len(listener)}
    speaker = None
    if "p1_exp" in segment and "p1_pose" in segment:
        speaker = segment_motion(segment, "p1", layout, where=where)
        lengths["p1"] = len(speaker)
    counts.without_speaker += speaker is None
    frames = min(lengths.values())
    parts = {f"{where}: {name}": length / layout.fps for name, length in lengths.items()}
    counts.lengths.add(parts)
    shape = None
    if "p1_shape" in segment:
        shape = _array(segment, "p1_shape", 100, where=where).mean(axis=0)
    words = _words(
        segment, begin=start / layout.fps, seconds=frames / layout.fps, where=where, counts=counts
    )
    clip = Clip(
        clip_id=f"{name}-{start:06d}",
        dyad_id=name,
        split=split,
        listener=listener.window(0, frames),
        speaker=None if speaker is None else speaker.window(0, frames),
        words=words,
        speaker_shape=shape,
    )
    return clip, start


def segment_motion(segment: dict[str, Any], person: str, layout: Layout, where: str) -> Motion:
    """The motion of `person`, "p0" (listener) or "p1" (speaker).

    Raises:
        CorpusError: the person's arrays are not of the published shape, or not finite; names
            `where`.
    """
    expr = _array(segment, f"{person}_exp", 50, where=where)
    pose = _array(segment, f"{person}_pose", 6, where=where)
    if len(expr) != len(pose):
        raise CorpusError(
            f"{where}: {person}_exp has {len(expr)} frames, {person}_pose {len(pose)}. Take it out"
        )
    # `pose` is rotation, then jaw, which is the order of our layout.
    values = np.concatenate([expr, pose], axis=1)
    try:
        motion = Motion(values, layout)
        require_radians(motion)
    except LayoutError as error:
        raise CorpusError(
            f"{where}, {person}: {error}. Repair the track or take the segment out"
        ) from error
    return motion


def _array(segment: dict[str, Any], key: str, width: int, where: str) -> np.ndarray:
    """A dense (T, width) tensor of any real dtype, as float32."""
    value = segment.get(key)
    if not isinstance(value, torch.Tensor):
        raise _array_error(key, width, type(value).__name__, where=where)
    dense = value.layout == torch.strided and not value.is_complex()
    if not dense or value.ndim != 2 or value.shape[1] != width or not len(value):
        raise _array_error(key, width, f"a tensor of {tuple(value.shape)}", where=where)
    return value.detach().float().numpy()


def _array_error(key: str, width: int, kind: str, where: str) -> CorpusError:
    return CorpusError(
        f"{where}: {key} must be a dense tensor (T, {width}), not {kind}. Repair it or take it out"
    )


def _words(
    segment: dict[str, Any], begin: float, seconds: float, where: str, counts: ReadCounts
) -> tuple[Word, ...] | None:
    """Words whose middle lies in the segment, in seconds from its start.

    None where there is no transcript.
    """
    if segment.get("during_words") is None:
        return None
    words = []
    try:
        for word in segment["during_words"]:
            text = str(word["text"]).strip()
            end = float(word["end"])
            # A word without `start` counts where it ends, as in the reference code.
            start = float(word.get("start", end))
            words.append(Word(text, start - begin, end - begin))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorpusError(
            f"{where}: during_words must be a list of dicts with text and end: {error!r}"
        ) from error
    inside = tuple(word for word in words if 0 <= (word.start + word.end) / 2 < seconds)
    counts.words += len(inside)
    counts.words_outside += len(words) - len(inside)
    return inside


def _check_raw(path: Path, segments: list[dict[str, Any]]) -> None:
    """Raise when the file holds z-scores: a jaw in radians cannot deviate that much."""
    jaws = []
    for index, segment in enumerate(segments):
        jaws.append(_array(segment, "p0_pose", 6, where=_where(path, index, segment))[:, 3:])
    deviation = np.concatenate(jaws).std(axis=0)
    if deviation.min() > _JAW_LIMIT:
        raise CorpusError(
            f"{path} holds z-scores: the jaw deviates by {np.round(deviation, 2)} rad. Undo them "
            "with x * std + mean, from the mean.npy and std.npy they were made with, and save the "
            "segments again"
        )


def _check_rate(path: Path, segments: list[dict[str, Any]], fps: float) -> None:
    """Raise when the file's own times say another frame rate than `fps`.

    Files without times pass.
    """
    rates = [rate for rate in map(_own_rate, segments) if rate is not None]
    rate = float(np.median(rates)) if rates else fps
    # Beyond these rates the times are not in seconds and say nothing.
    if 10 < rate < 120 and abs(rate / fps - 1) > 0.05:
        raise CorpusError(
            f"{path} has {rate:.4g} fps by its own times, not {fps:g}: call "
            f"import_lm_listener(root, path, fps={rate:.4g}) and use the corpus it writes with "
            "corpus.kind=parquet. Rates do not mix in a corpus"
        )


def _own_rate(segment: dict[str, Any]) -> float | None:
    """Frames per second by the segment's own times; None where it has none."""
    keys = ("split_start_frame", "split_end_frame", "split_start_time", "split_end_time")
    values = [segment.get(key) for key in keys]
    numbers = [value for value in values if isinstance(value, (int, float))]
    if len(numbers) < len(keys):
        return None
    first, last, begin, end = numbers
    return (last - first) / (end - begin) if end > begin else None


def _overlaps(first: int, length: int, spans: list[range]) -> bool:
    return any(first < span.stop and span.start < first + length for span in spans)


def _where(path: Path, index: int, segment: dict[str, Any]) -> str:
    name = segment.get("fname")
    first = segment.get("split_start_frame")
    return f"{path}, segment {index} ({name!r} from frame {first})"
