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
expression 50, rotation 3, jaw 3, raw; at the rate that frames and seconds of the segments say, or
else at 30 fps. `mean.npy` and `std.npy` beside the files are for lm-listener's own z-scores and not
needed. There is no sound. Frames are taken from videos of the speakers, if you have them. Words
from before a segment belong to the past of its clips.

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
from rapport.pipeline.data.readers.pictures import Filming, with_frames
from rapport.pipeline.data.readers.splits import (
    VALIDATION_SHARE,
    Stretch,
    hold_out,
    require_splits,
)
from rapport.pipeline.data.store import SPLITS, Corpus, CorpusError, CorpusWriter
from rapport.pipeline.data.windows import HEARD_S, cut, window_starts
from rapport.policies.clip import Clip, Word
from rapport.policies.motion import Layout, LayoutError, Motion, require_radians

FPS = 30.0  # of a file that does not say its rate
LAYOUT = Layout(groups=(("expr", 50), ("rot", 3), ("jaw", 3)), fps=FPS, topology="flame2020")
_RATES = (24.0, 25.0, 30.0, 50.0, 60.0)
_JAW_LIMIT = 0.5  # radians; no jaw has this deviation about all three axes, z-scores have 1


@dataclass
class ReadCounts:
    """What became of the segments; kept in the corpus manifest."""

    segments: int = 0
    clips: int = 0
    too_short: int = 0  # segments shorter than a clip
    repeated: int = 0  # windows that another segment had already given
    # Windows left out, because segments that are held out more strictly have some of their frames,
    # or of their past's.
    held_out_overlap: int = 0
    shared_recordings: int = 0  # recordings in training and in a held-out split, as published
    # Seconds of segments, and of what is lost where listener, speaker and frame numbers are not
    # equally long.
    lengths: Lengths = field(default_factory=Lengths)
    without_speaker: int = 0  # segments without p1
    without_frames: int = 0  # segments whose recording has no video
    words: int = 0
    words_outside: int = 0  # `during_words` that are not within their segment


@dataclass(frozen=True)
class _Span:
    """Frames [begin, end) of a recording that a held-out split has."""

    split: str
    begin: int
    end: int


@dataclass(frozen=True, eq=False)
class _Piece:
    """A segment as one long clip, or the part of it that is of one split.

    Args:
        clip: cut from it.
        first: its first frame in the recording.
        recording: as the file calls it.
    """

    clip: Clip
    first: int
    recording: str


def import_lm_listener(
    root: str | Path,
    path: str | Path,
    seconds: float = 4.0,
    stride: float = 1.0,
    past: float = 4.0,
    fps: float | None = None,
    filming: Filming | None = None,
) -> Corpus:
    """Read one listener's segments and write them as a corpus.

    Splits are the files: `segments_train.pth`, `segments_val.pth`, `segments_test.pth`. Without a
    test file, val is the test split, on which the published evaluation judges. Where no file is
    left for validation, a tenth of training becomes it. Clips of one recording share a `dyad_id`,
    in several splits where the publishers cut through it.

    Args:
        root: folder of the files.
        path: folder of the corpus to create.
        seconds: length of a clip.
        stride: seconds from one clip to the next.
        past: seconds before a clip that are kept as its past, where the segment has so many.
        fps: rate of the tracks; None = as the files say, else 30.
        filming: videos of the speakers; None = no frames.

    Raises:
        CorpusError: no such files, damaged ones, ones that hold more than data, z-scores, another
            frame rate, or nothing to learn from; names the file and the segment.
    """
    counts = ReadCounts()
    source: dict[str, Any] = {"kind": "lm_listener", "seconds": seconds, "stride": stride}
    with CorpusWriter(path, source | {"past": past}) as writer:
        clips = read_lm_listener(
            root, seconds, stride, past=past, fps=fps, filming=filming, counts=counts
        )
        for clip in clips:
            writer.add(clip)
        if counts.words_outside > counts.words:
            raise CorpusError(
                f"{root}: {counts.words_outside} of {counts.words + counts.words_outside} words "
                "lie outside their segments; their times must be seconds from the start of the "
                "recording"
            )
        require_splits(writer.splits, root, seconds)
        files = {split: file.name for split, file in _files(Path(root)).items()}
        writer.source |= {"files": files, "counts": asdict(counts)}
    return Corpus(path)


def read_lm_listener(
    root: str | Path,
    seconds: float,
    stride: float,
    past: float = 4.0,
    fps: float | None = None,
    filming: Filming | None = None,
    counts: ReadCounts | None = None,
) -> Iterator[Clip]:
    """Clips of all splits, the held-out ones first.

    Args:
        root: folder of the files.
        seconds: length of a clip.
        stride: seconds from one clip to the next.
        past: seconds before a clip that are kept as its past.
        fps: rate of the tracks; None = as the files say, else 30.
        filming: videos of the speakers; None = no frames.
        counts: filled in as the clips come.

    Raises:
        CorpusError: as of `import_lm_listener`.
        ValueError: a clip or a stride is shorter than a frame.
    """
    counts = ReadCounts() if counts is None else counts
    files = _files(Path(root))
    # Without a rate it is that of the training file.
    rate = fps or rate_of_segments(read_segments(files["train"]))
    length = round(seconds * rate)
    step = round(stride * rate)
    before = round(past * rate)
    if length < 1 or step < 1:
        raise ValueError(f"clips of {seconds} s every {stride} s are under a frame at {rate:g} fps")
    videos = [] if filming is None else filming.files()
    written: set[str] = set()
    taken: dict[str, list[_Span]] = {}  # by recording
    recordings: dict[str, set[str]] = {split: set() for split in SPLITS}
    # What is held out most strictly comes first: its frames must be known before others are taken.
    for split, piece in _pieces(files, rate, counts):
        whole = piece.clip
        recordings[split].add(whole.dyad_id)
        starts = window_starts(len(whole.listener), length, step)
        counts.too_short += not starts
        clips = []
        for start in starts:
            clip_id = f"{whole.dyad_id}-{piece.first + start:06d}"
            clip = cut(whole, start, length, clip_id=clip_id, past=before)
            seen = length if clip.past is None else length + before
            first = piece.first + start + length - seen
            if _overlaps(first, seen, taken.get(whole.dyad_id, []), split):
                counts.held_out_overlap += 1
            elif clip_id in written:
                counts.repeated += 1
            else:
                written.add(clip_id)
                clips.append(clip)
        counts.clips += len(clips)
        if split != "train":
            span = _Span(split, piece.first, piece.first + len(whole.listener))
            taken.setdefault(whole.dyad_id, []).append(span)
        yield from _filmed(clips, piece, filming, videos=videos, counts=counts)
    held_out = recordings["validation"] | recordings["test"]
    counts.shared_recordings = len(recordings["train"] & held_out)
    # A published file cannot be mended segment by segment: only the whole must be whole.
    counts.lengths.require_small_share(Path(root))


def _filmed(
    clips: list[Clip],
    piece: _Piece,
    filming: Filming | None,
    videos: list[Path],
    counts: ReadCounts,
) -> list[Clip]:
    """Clips of a segment with frames, where its recording has a video."""
    if filming is None:
        return clips
    file = filming.file_of(piece.recording, videos)
    if file is None:
        counts.without_frames += 1
        return clips
    begin = piece.first / piece.clip.listener.layout.fps
    return with_frames(clips, piece.clip, filming.rate, filming.of(file, begin))


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
    if "test" not in files:
        return {"train": files["train"], "test": files["val"]}
    ours = {"train": "train", "validation": "val", "test": "test"}
    return {split: files[name] for split, name in ours.items() if name in files}


def rate_of_segments(segments: list[dict[str, Any]]) -> float:
    """Frames per second of a file by its own times; `FPS` where it has none."""
    rate = _said_rate(segments)
    if rate is None:
        return FPS
    # Seconds are rounded: the usual rate that is meant.
    return min(_RATES, key=lambda usual: abs(usual - rate))


def _pieces(files: dict[str, Path], fps: float, counts: ReadCounts) -> Iterator[tuple[str, _Piece]]:
    """Split and piece of each segment, the test split first and training last."""
    layout = replace(LAYOUT, fps=fps)
    if "test" in files:
        yield from _whole_segments(files["test"], "test", layout, counts=counts)
    if "validation" in files:
        yield from _whole_segments(files["validation"], "validation", layout, counts=counts)
        yield from _whole_segments(files["train"], "train", layout, counts=counts)
        return
    names = [str(segment.get("fname")) for segment in read_segments(files["train"])]
    stretches = [Stretch(index, name, "train") for index, name in enumerate(names)]
    stretches = hold_out(stretches, "validation", VALIDATION_SHARE)
    pieces = [piece for _, piece in _whole_segments(files["train"], "train", layout, counts=counts)]
    for split in ("validation", "train"):
        for stretch in stretches:
            if stretch.split == split:
                assert isinstance(stretch.recording, int)
                yield split, _part(pieces[stretch.recording], stretch)


def _part(piece: _Piece, stretch: Stretch) -> _Piece:
    first, frames = stretch.frames(len(piece.clip.listener))
    clip = cut(piece.clip, first, frames, clip_id=piece.clip.clip_id)
    return _Piece(replace(clip, split=stretch.split), piece.first + first, piece.recording)


def _whole_segments(
    path: Path, split: str, layout: Layout, counts: ReadCounts
) -> Iterator[tuple[str, _Piece]]:
    segments = read_segments(path)
    check_rate(path, segments, layout.fps, setting="corpus.fps")
    _check_raw(path, segments)
    for index, segment in enumerate(segments):
        counts.segments += 1
        where = _where(path, index, segment)
        yield split, _whole(segment, split, layout, where=where, counts=counts)


def _whole(
    segment: dict[str, Any], split: str, layout: Layout, where: str, counts: ReadCounts
) -> _Piece:
    """A segment as one long clip."""
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
        speaker_id=f"{name}-p1",
        start=start / layout.fps,
    )
    return _Piece(clip, start, recording=str(segment["fname"]))


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
    """Words whose middle lies in the segment, in seconds from its start, and those heard before.

    None where there is no transcript.
    """
    if segment.get("during_words") is None:
        return None
    before = _timed(segment, "before_words", begin, where=where)
    during = _timed(segment, "during_words", begin, where=where)
    inside = [word for word in during if 0 <= _middle(word) < seconds]
    counts.words += len(inside)
    counts.words_outside += len(during) - len(inside)
    return (*(word for word in before if -HEARD_S <= _middle(word) < 0), *inside)


def _timed(segment: dict[str, Any], key: str, begin: float, where: str) -> list[Word]:
    """Words of a list of the segment, in seconds from its start."""
    words = []
    try:
        for word in segment.get(key) or ():
            text = str(word["text"]).strip()
            end = float(word["end"])
            # A word without `start` counts where it ends, as in the reference code.
            start = float(word.get("start", end))
            words.append(Word(text, start - begin, end - begin))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorpusError(
            f"{where}: {key} must be a list of dicts with text and end: {error!r}"
        ) from error
    return words


def _middle(word: Word) -> float:
    return (word.start + word.end) / 2


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


def check_rate(path: Path, segments: list[dict[str, Any]], fps: float, *, setting: str) -> None:
    """Raise `CorpusError` when the file's own times say another rate than `fps` of `setting`."""
    rate = _said_rate(segments)
    if rate is not None and abs(rate / fps - 1) > 0.05:
        raise CorpusError(
            f"{path} has {rate:.4g} fps by its own times, not {fps:g}: give {setting}={rate:.4g}. "
            "Rates do not mix"
        )


def _said_rate(segments: list[dict[str, Any]]) -> float | None:
    """Frames per second by the times of a file; None where it has none."""
    rates = [rate for rate in map(_own_rate, segments) if rate is not None]
    rate = float(np.median(rates)) if rates else 0.0
    # Beyond these rates the times are not in seconds and say nothing.
    return rate if 10 < rate < 120 else None


def _own_rate(segment: dict[str, Any]) -> float | None:
    """Frames per second by the segment's own times; None where it has none."""
    keys = ("split_start_frame", "split_end_frame", "split_start_time", "split_end_time")
    values = [segment.get(key) for key in keys]
    numbers = [value for value in values if isinstance(value, (int, float))]
    if len(numbers) < len(keys):
        return None
    first, last, begin, end = numbers
    return (last - first) / (end - begin) if end > begin else None


def _overlaps(first: int, length: int, spans: list[_Span], split: str) -> bool:
    """Whether a span of another split has some of the frames [first, first + length)."""
    return any(
        span.split != split and first < span.end and span.begin < first + length for span in spans
    )


def _where(path: Path, index: int, segment: dict[str, Any]) -> str:
    name = segment.get("fname")
    first = segment.get("split_start_frame")
    return f"{path}, segment {index} ({name!r} from frame {first})"
