"""Reader of DualTalk's published files: FLAME tracks and sound of real dyads.

Peng et al., CVPR 2025.

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
from dataclasses import asdict, dataclass, field, replace
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
    # Recordings in which no side has an npz.
    without_motion: list[str] = field(default_factory=list)
    # Roles shorter than a clip.
    too_short: list[str] = field(default_factory=list)
    truncated_frames: int = 0  # lost where motion and sound were not equally long
    across_split: int = 0  # windows of a single recording that lay on both sides of its split
    resampled: int = 0  # wav files that were not 16 kHz


@dataclass(frozen=True)
class _Recording:
    """Files of one recording.

    Args:
        name: what its files have in common.
        split: "train" or "test".
        files: side, 1 or 2 -> kind, "npz" or "wav" -> file.
    """

    name: str
    split: str
    files: dict[int, dict[str, Path]]


@dataclass(frozen=True, eq=False)
class _Side:
    """What one person of a recording shows and says."""

    motion: Motion | None
    shape: np.ndarray | None
    audio: np.ndarray | None


def import_dualtalk(
    root: str | Path,
    path: str | Path,
    seconds: float = 4.0,
    stride: float = 1.0,
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
        clips = read_dualtalk(
            root,
            seconds=seconds,
            stride=stride,
            held_out=held_out,
            test_share=test_share,
            counts=counts,
        )
        for clip in clips:
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
    """Clips of all recordings, one recording in memory at a time.

    Args:
        root: folder as published, or a flat one.
        seconds: length of a clip.
        stride: seconds from one clip to the next.
        held_out: the published folder that becomes the split "test".
        test_share: of a flat folder: the last recordings, or the last part of a single one.
        counts: filled in as the clips come.

    Raises:
        CorpusError: no such files, or damaged ones; names the file.
        ValueError: a length or share is out of range.
    """
    counts = ReadCounts() if counts is None else counts
    length = round(seconds * FPS)
    step = round(stride * FPS)
    if length < 1 or step < 1 or not 0 < test_share < 1:
        raise ValueError(
            f"seconds={seconds}, stride={stride}: a frame or more; test_share={test_share}: "
            "within (0, 1)"
        )
    for recording, border in _recordings(Path(root), held_out, test_share):
        counts.recordings += 1
        sides = {number: _read_side(paths, counts) for number, paths in recording.files.items()}
        if all(side.motion is None for side in sides.values()):
            counts.without_motion.append(recording.name)
        for number in sides:
            role = _role(recording, number, sides=sides, counts=counts)
            if role is not None:
                yield from _cut(role, length, step, border=border, counts=counts)


def _recordings(
    root: Path, held_out: str, test_share: float
) -> Iterator[tuple[_Recording, float | None]]:
    """Recordings, and for a single flat one the share of its time at which "test" begins."""
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
            for recording in _scan(root / folder):
                yield replace(recording, split=split), None
        return
    flat = _scan(root)
    if len(flat) == 1:
        yield flat[0], 1 - test_share
        return
    tests = max(1, round(test_share * len(flat)))
    for index, recording in enumerate(flat):
        yield replace(recording, split="test" if index >= len(flat) - tests else "train"), None


def _scan(folder: Path) -> list[_Recording]:
    """Recordings of a folder, sorted by the names of their files; all in "train"."""
    files: dict[str, dict[int, dict[str, Path]]] = {}
    for path in sorted(folder.iterdir()):
        match = _FILE.fullmatch(path.name)
        if match:
            sides = files.setdefault(match["recording"], {})
            sides.setdefault(int(match["side"]), {})[match["kind"]] = path
    if not files:
        raise CorpusError(
            f"{folder} has no file <recording>_speaker1|2.wav|npz: is it DualTalk's folder?"
        )
    return [_Recording(name, "train", sides) for name, sides in files.items()]


def _read_side(paths: dict[str, Path], counts: ReadCounts) -> _Side:
    motion = shape = audio = None
    if "npz" in paths:
        motion, shape = read_track(paths["npz"])
    if "wav" in paths:
        audio, rate = read_wav(paths["wav"])
        counts.resampled += rate != AUDIO_RATE
    return _Side(motion, shape, audio)


def read_track(path: Path) -> tuple[Motion, np.ndarray]:
    """Motion in `LAYOUT` and the mean identity (100,) of one npz file.

    Raises:
        CorpusError: the file is not a DualTalk track, or its motion is not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("exp", "pose", "shape")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CorpusError(
            f"{path} is no DualTalk track with exp, pose and shape: {error}"
        ) from error
    time = len(arrays["exp"])
    shapes = {key: array.shape for key, array in arrays.items()}
    if not time or shapes != {"exp": (time, 50), "pose": (time, 6), "shape": (time, 100)}:
        raise CorpusError(
            f"{path}: expected exp (T, 50), pose (T, 6), shape (T, 100), got {shapes}"
        )
    # `pose` is neck, then jaw, which is the order of our layout.
    values = np.concatenate([arrays["exp"], arrays["pose"]], axis=1)
    try:
        motion = Motion(values, LAYOUT)
    except LayoutError as error:
        raise CorpusError(f"{path}: {error}. Repair the track or take the recording out") from error
    return motion, arrays["shape"].mean(axis=0)


def _role(
    recording: _Recording, number: int, sides: dict[int, _Side], counts: ReadCounts
) -> Clip | None:
    """The whole recording with side `number` as the listener, cut to its shortest modality.

    None where that side has no motion.
    """
    listener = sides[number]
    if listener.motion is None:
        return None
    partner = sides.get(3 - number, _Side(motion=None, shape=None, audio=None))
    lengths = [len(listener.motion)]
    if partner.motion is not None:
        lengths.append(len(partner.motion))
    for audio in (listener.audio, partner.audio):
        if audio is not None:
            lengths.append(int(len(audio) / AUDIO_RATE * FPS))
    frames = min(lengths)
    counts.roles += 1
    counts.truncated_frames += max(lengths) - frames
    samples = round(frames / FPS * AUDIO_RATE)
    return Clip(
        clip_id=f"{recording.name}-listener{number}",
        dyad_id=recording.name,
        split=recording.split,
        listener=listener.motion.window(0, frames),
        speaker=None if partner.motion is None else partner.motion.window(0, frames),
        speaker_audio=None if partner.audio is None else partner.audio[:samples],
        listener_audio=None if listener.audio is None else listener.audio[:samples],
        speaker_shape=partner.shape,
    )


def _cut(
    role: Clip, length: int, step: int, border: float | None, counts: ReadCounts
) -> Iterator[Clip]:
    """Windows of a role.

    With a `border`, windows before it are "train" and those after it "test"; windows that lie
    across it are left out and counted.
    """
    frames = len(role.listener)
    starts = window_starts(frames, length, step)
    first_test = frames if border is None else round(border * frames)
    spans = [(start, role.split) for start in starts if start + length <= first_test]
    if border is not None:
        held_out = window_starts(frames - first_test, length, step)
        spans += [(first_test + start, "test") for start in held_out]
        counts.across_split += max(0, len(starts) - len(spans))
    if not spans:
        counts.too_short.append(role.clip_id)
    for start, split in spans:
        counts.clips += 1
        clip = cut(role, start, length, clip_id=f"{role.clip_id}-{start:06d}")
        yield replace(clip, split=split)
