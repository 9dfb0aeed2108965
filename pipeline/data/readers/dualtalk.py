"""Reader of DualTalk's published files: FLAME tracks and sound of real dyads.

Peng et al., CVPR 2025.

    root/{train,test,ood}/<recording>_speaker{1,2}.{wav,npz}     as published
    root/<recording>_speaker{1,2}.{wav,npz}                      or flat, as its demo

An npz holds `exp` (time, 50), `pose` (time, 6) with the head's rotation in 0:3 and the jaw in 3:6,
and `shape` (time, 100), at 25 fps; a wav is 16 kHz mono float32. Predictions of DualTalk's own code
have jaw before neck: do not mix the two. There is no transcript and no video, and in the demo only
one side has motion: all that is absent. Rotations must be radians, motion must last as long as its
sound, and what is left out is counted and said, see `lengths`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from rapport.arrays import ArrayFileError, described, load_named
from rapport.files import visible
from rapport.log import logger
from rapport.pipeline.data.audio import read_wav
from rapport.pipeline.data.lengths import Lengths, rate_of
from rapport.pipeline.data.store import Corpus, CorpusError, CorpusWriter
from rapport.pipeline.data.windows import cut, window_starts
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.motion import Layout, LayoutError, Motion, require_radians
from rapport.wording import first_few

FPS = 25.0
LAYOUT = Layout(groups=(("expr", 50), ("neck", 3), ("jaw", 3)), fps=FPS, topology="flame2020")
_FILE = re.compile(
    r"(?P<recording>.+)_speaker(?P<side>[12])\.(?P<kind>wav|npz)", flags=re.IGNORECASE
)


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
    # Seconds of recordings, and of what is lost where their files are not equally long.
    lengths: Lengths = field(default_factory=Lengths)
    # Files of other names, and folders, which are not read.
    not_read: list[str] = field(default_factory=list)
    # Sounds without any level, or with clipped samples.
    odd_sound: list[str] = field(default_factory=list)
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
    for recording, border in _recordings(Path(root), held_out, test_share, counts):
        counts.recordings += 1
        sides = {number: _read_side(paths, counts) for number, paths in recording.files.items()}
        _require_rate(recording, sides)
        lasting = _seconds(recording, sides)
        if all(side.motion is None for side in sides.values()):
            logger.warning(f"  {recording.name} has sound and no motion: it is left out")
            counts.without_motion.append(recording.name)
            counts.lengths.lose(max(lasting.values()))
            continue
        counts.lengths.add(lasting)
        for number in sides:
            role = _role(recording, number, sides=sides)
            if role is not None:
                counts.roles += 1
                yield from _cut(role, length, step, border=border, counts=counts)
    counts.lengths.require_small(Path(root))


def _recordings(
    root: Path, held_out: str, test_share: float, counts: ReadCounts
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
            for recording in _scan(root / folder, counts):
                yield replace(recording, split=split), None
        return
    flat = _scan(root, counts)
    if len(flat) == 1:
        yield flat[0], 1 - test_share
        return
    tests = max(1, round(test_share * len(flat)))
    for index, recording in enumerate(flat):
        yield replace(recording, split="test" if index >= len(flat) - tests else "train"), None


def _scan(folder: Path, counts: ReadCounts) -> list[_Recording]:
    """Recordings of a folder, sorted by the names of their files; all in "train"."""
    files: dict[str, dict[int, dict[str, Path]]] = {}
    others = []
    for path in visible(folder):
        match = _FILE.fullmatch(path.name)
        if match is None:
            others.append(path.name)
            continue
        side = files.setdefault(match["recording"], {}).setdefault(int(match["side"]), {})
        kind = match["kind"].lower()
        if kind in side:
            raise CorpusError(f"{path} and {side[kind].name} are one side's: take one of them out")
        side[kind] = path
    if others:
        shown = first_few(others)
        logger.warning(f"  {folder}: {len(others)} entries are no recordings, left out: {shown}")
        counts.not_read += others
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
        audio, rate, fault = read_wav(paths["wav"])
        counts.resampled += rate != AUDIO_RATE
        if fault is not None:
            logger.warning(f"  {paths['wav']} {fault}")
            counts.odd_sound.append(paths["wav"].name)
    return _Side(motion, shape, audio)


def read_track(path: Path) -> tuple[Motion, np.ndarray]:
    """Motion in `LAYOUT` and the mean identity (100,) of one npz file.

    Raises:
        CorpusError: the file is not a DualTalk track, or its motion is not finite.
    """
    try:
        arrays = load_named(path)
    except ArrayFileError as error:
        raise CorpusError(str(error)) from error
    return track_of(arrays, path)


def track_of(arrays: dict[str, np.ndarray], path: Path) -> tuple[Motion, np.ndarray]:
    """The same of arrays that were read from `path`."""
    missing = [key for key in ("exp", "pose", "shape") if key not in arrays]
    if missing:
        raise CorpusError(
            f"{path} is no DualTalk track with exp, pose and shape: it lacks {', '.join(missing)}, "
            f"it has {described(arrays)}"
        )
    time = arrays["exp"].shape[0] if arrays["exp"].ndim else 0
    shapes = {key: arrays[key].shape for key in ("exp", "pose", "shape")}
    if not time or shapes != {"exp": (time, 50), "pose": (time, 6), "shape": (time, 100)}:
        raise CorpusError(
            f"{path}: expected exp (T, 50), pose (T, 6), shape (T, 100), got {shapes}"
        )
    odd = [key for key in shapes if arrays[key].dtype.kind not in "iuf"]
    if odd or not np.isfinite(arrays["shape"]).all():
        raise CorpusError(f"{path}: {', '.join(odd) or 'shape'} must be finite numbers. Repair it")
    # `pose` is neck, then jaw, which is the order of our layout.
    values = np.concatenate([arrays["exp"], arrays["pose"]], axis=1)
    try:
        motion = Motion(values, LAYOUT)
        require_radians(motion)
    except LayoutError as error:
        raise CorpusError(f"{path}: {error}. Repair the track or take the recording out") from error
    return motion, arrays["shape"].mean(axis=0)


def _seconds(recording: _Recording, sides: dict[int, _Side]) -> dict[str, float]:
    """How long each file of a recording lasts."""
    seconds = {}
    for number, side in sides.items():
        files = recording.files[number]
        if side.motion is not None:
            seconds[str(files["npz"])] = side.motion.seconds
        if side.audio is not None:
            seconds[str(files["wav"])] = len(side.audio) / AUDIO_RATE
    return seconds


def _require_rate(recording: _Recording, sides: dict[int, _Side]) -> None:
    """Raise where motion would last as long as its sound at another usual rate than ours."""
    for number, side in sides.items():
        heard = side if side.audio is not None else sides.get(3 - number, side)
        if side.motion is None or heard.audio is None:
            continue
        seconds = len(heard.audio) / AUDIO_RATE
        rate = rate_of(len(side.motion), FPS, seconds)
        if rate is not None:
            raise CorpusError(
                f"{recording.files[number]['npz']}: motion is {len(side.motion)} frames = "
                f"{side.motion.seconds:.2f} s at {FPS:g} fps, its sound {seconds:.2f} s. Is the "
                f"motion at {rate:g} fps? Resample it to {FPS:g}, or mend the file that is too "
                "short"
            )


def _role(recording: _Recording, number: int, sides: dict[int, _Side]) -> Clip | None:
    """The whole recording with side `number` as the listener, cut to its shortest modality.

    None where that side has no motion.
    """
    listener = sides[number]
    if listener.motion is None:
        return None
    partner = sides.get(3 - number, _Side(motion=None, shape=None, audio=None))
    lengths = [len(side.motion) for side in sides.values() if side.motion is not None]
    sounds = [side.audio for side in sides.values() if side.audio is not None]
    frames = min(lengths + [int(len(audio) / AUDIO_RATE * FPS) for audio in sounds])
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
