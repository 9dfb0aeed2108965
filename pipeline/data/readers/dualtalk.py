"""Reader of DualTalk's published files (Peng et al., CVPR 2025): FLAME tracks and sound of real
dyads.

    root/{train,test,ood}/<recording>_speaker{1,2}.{wav,npz}     as published
    root/<recording>_speaker{1,2}.{wav,npz}                      or flat, as its demo

An npz holds `exp` (time, 50), `pose` (time, 6) with the head's rotation in 0:3 and the jaw in 3:6,
and `shape` (time, 100), at 25 fps; a wav is 16 kHz mono float32. Predictions of DualTalk's own code
have jaw before neck: do not mix the two. There is no transcript and no video, and in the demo only
one side has motion: all that is absent.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from rapport.pipeline.data.audio import read_wav
from rapport.pipeline.data.store import Corpus, CorpusError, CorpusWriter
from rapport.pipeline.data.windows import cut, window_starts
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.motion import Layout, LayoutError, Motion

FPS = 25.0
LAYOUT = Layout(groups=(("expr", 50), ("neck", 3), ("jaw", 3)), fps=FPS, topology="flame2020")
_FILE = re.compile(r"(?P<recording>.+)_speaker(?P<side>[12])\.(?P<kind>wav|npz)")


@dataclass
class ReadCounts:
    """What became of the files; kept in the corpus manifest."""

    recordings: int = 0
    roles: int = 0  # listeners: both sides of a recording count when both have motion
    clips: int = 0
    without_motion: list[str] = field(
        default_factory=list
    )  # recordings in which no side has an npz
    too_short: list[str] = field(default_factory=list)  # roles shorter than a clip
    truncated_frames: int = 0  # lost where motion and sound were not equally long
    across_split: int = 0  # windows of a single recording that lay on both sides of its split
    resampled: int = 0  # wav files that were not 16 kHz


@dataclass(frozen=True, eq=False)
class _Side:
    motion: Motion | None
    shape: np.ndarray | None
    audio: np.ndarray | None


def import_dualtalk(
    root: str | Path,
    path: str | Path,
    seconds: float = 4.0,
    stride: float = 2.0,
    held_out: Literal["test", "ood"] = "test",
    test_share: float = 0.3,
) -> Corpus:
    """Read DualTalk's files and write them as a corpus.

    Args:
        root: folder as published, or a flat one.
        path: folder of the corpus to create.
        seconds: length of a clip.
        stride: seconds from one clip to the next.
        held_out: the published folder that becomes the split "test".
        test_share: of a flat folder: the last recordings, or the last part of a single one.

    Raises:
        CorpusError: no such files, damaged ones, or nothing to learn from; names the file.
    """
    counts = ReadCounts()
    source = {"kind": "dualtalk", "seconds": seconds, "stride": stride, "held_out": held_out}
    with CorpusWriter(path, source) as writer:
        for clip in read_dualtalk(root, seconds, stride, held_out, test_share, counts):
            writer.add(clip)
        if not counts.clips:
            raise CorpusError(
                f"{root} gave no clip of {seconds} s ({counts}): shorten the clips or add "
                "recordings"
            )
        writer.source["counts"] = asdict(counts)
    return Corpus(path)


def read_dualtalk(
    root: str | Path,
    seconds: float,
    stride: float,
    held_out: Literal["test", "ood"] = "test",
    test_share: float = 0.3,
    counts: ReadCounts | None = None,
) -> Iterator[Clip]:
    """Clips of all recordings, one recording in memory at a time; `counts` is filled in as they
    come.
    """
    counts = ReadCounts() if counts is None else counts
    length, step = round(seconds * FPS), round(stride * FPS)
    if length < 1 or step < 1 or not 0 < test_share < 1:
        raise ValueError(
            f"seconds={seconds}, stride={stride}: a frame or more; test_share={test_share}: "
            "within (0, 1)"
        )
    for files, split, border in _recordings(Path(root), held_out, test_share):
        counts.recordings += 1
        sides = {side: _read_side(paths, counts) for side, paths in files.items()}
        name = _name(files)
        if all(side.motion is None for side in sides.values()):
            counts.without_motion.append(name)
        for number, side in sides.items():
            if side.motion is not None:
                recording = _role(name, number, side, sides.get(3 - number), split, counts)
                yield from _cut(recording, length, step, border, counts)


def _recordings(
    root: Path, held_out: str, test_share: float
) -> Iterator[tuple[dict[int, dict[str, Path]], str, float | None]]:
    """(files by side and kind, split, None), or for a single flat recording the share of time where
    "test" begins.
    """
    if not root.is_dir():
        raise CorpusError(f"no folder {root}: corpus.root must hold DualTalk's files")
    folders = {"train": "train", held_out: "test"}
    missing = [folder for folder in folders if not (root / folder).is_dir()]
    if len(missing) == 1:
        raise CorpusError(
            f"{root} has no folder {missing[0]!r}: both splits are needed, or a flat folder"
        )
    if not missing:
        for folder, split in folders.items():
            for files in _scan(root / folder):
                yield files, split, None
        return
    flat = _scan(root)
    if len(flat) == 1:
        yield flat[0], "train", 1 - test_share
        return
    tests = max(1, round(test_share * len(flat)))
    for i, files in enumerate(flat):
        yield files, "test" if i >= len(flat) - tests else "train", None


def _scan(folder: Path) -> list[dict[int, dict[str, Path]]]:
    """Recordings of a folder, sorted by name: side -> kind -> file."""
    found: dict[str, dict[int, dict[str, Path]]] = {}
    for path in sorted(folder.iterdir()):
        match = _FILE.fullmatch(path.name)
        if match:
            sides = found.setdefault(match["recording"], {})
            sides.setdefault(int(match["side"]), {})[match["kind"]] = path
    if not found:
        raise CorpusError(
            f"{folder} has no file <recording>_speaker1|2.wav|npz: is it DualTalk's folder?"
        )
    return list(found.values())


def _name(files: dict[int, dict[str, Path]]) -> str:
    some = next(iter(next(iter(files.values())).values()))
    return _FILE.fullmatch(some.name)["recording"]


def _read_side(paths: dict[str, Path], counts: ReadCounts) -> _Side:
    motion = shape = audio = None
    if "npz" in paths:
        motion, shape = read_track(paths["npz"])
    if "wav" in paths:
        audio, rate = read_wav(paths["wav"])
        counts.resampled += rate != AUDIO_RATE
    return _Side(motion, shape, audio)


def read_track(path: Path) -> tuple[Motion, np.ndarray]:
    """Motion in `LAYOUT` and the mean identity (100,) of one npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("exp", "pose", "shape")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CorpusError(
            f"{path} is no DualTalk track with exp, pose and shape: {error}"
        ) from error
    expr, pose, shape = arrays["exp"], arrays["pose"], arrays["shape"]
    time = len(expr)
    if (
        expr.shape != (time, 50)
        or pose.shape != (time, 6)
        or shape.shape != (time, 100)
        or not time
    ):
        shapes = {key: array.shape for key, array in arrays.items()}
        raise CorpusError(
            f"{path}: expected exp (T, 50), pose (T, 6), shape (T, 100), got {shapes}"
        )
    try:
        motion = Motion(
            np.concatenate([expr, pose], axis=1), LAYOUT
        )  # pose is neck, then jaw: already our order
    except LayoutError as error:
        raise CorpusError(f"{path}: {error}. Repair the track or take the recording out") from error
    return motion, shape.mean(axis=0)


def _role(
    name: str, number: int, listener: _Side, speaker: _Side | None, split: str, counts: ReadCounts
) -> Clip:
    """The whole recording with side `number` as the listener, cut to its shortest modality."""
    partner = speaker or _Side(None, None, None)
    motions = [m for m in (listener.motion, partner.motion) if m is not None]
    audios = [a for a in (listener.audio, partner.audio) if a is not None]
    lengths = [len(m) for m in motions] + [int(len(a) / AUDIO_RATE * FPS) for a in audios]
    frames = min(lengths)
    counts.roles += 1
    counts.truncated_frames += max(lengths) - frames
    samples = round(frames / FPS * AUDIO_RATE)
    return Clip(
        clip_id=f"{name}-listener{number}",
        dyad_id=name,
        split=split,
        listener=listener.motion.window(0, frames),
        speaker=None if partner.motion is None else partner.motion.window(0, frames),
        speaker_audio=None if partner.audio is None else partner.audio[:samples],
        listener_audio=None if listener.audio is None else listener.audio[:samples],
        speaker_shape=partner.shape,
    )


def _cut(
    recording: Clip, length: int, step: int, border: float | None, counts: ReadCounts
) -> Iterator[Clip]:
    """Windows of a role. With a `border`, those before it are "train", those after it "test", those
    across it lost.
    """
    frames = len(recording.listener)
    first_test = frames if border is None else round(border * frames)
    spans = [
        (start, recording.split)
        for start in window_starts(frames, length, step)
        if start + length <= first_test
    ]
    if border is not None:
        spans += [
            (first_test + start, "test")
            for start in window_starts(frames - first_test, length, step)
        ]
        counts.across_split += max(0, len(window_starts(frames, length, step)) - len(spans))
    if not spans:
        counts.too_short.append(recording.clip_id)
    for start, split in spans:
        counts.clips += 1
        clip = cut(recording, start, length, f"{recording.clip_id}-{start:06d}")
        yield Clip(**{**vars(clip), "split": split})
