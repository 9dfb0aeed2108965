"""Reader of DualTalk's published files: FLAME tracks and sound of real dyads.

Peng et al., CVPR 2025.

    root/{train,test,ood}/<recording>_speaker{1,2}.{wav,npz}     as published
    root/<recording>_speaker{1,2}.{wav,npz}                      or flat, as its demo
    <recording>_speaker{1,2}.{json,vtt,srt,txt}                  what that side says, if you have it

An npz holds `exp` (time, 50), `pose` (time, 6) with the head's rotation in 0:3 and the jaw in 3:6,
and `shape` (time, 100), at 25 fps; a wav is 16 kHz mono float32. Predictions of DualTalk's own code
have jaw before neck: do not mix the two. There is no video: frames are drawn from the partner's
motion. There is no transcript: bring one, or a `Transcriber`. In the demo only one side has motion.
What is not there is absent. Rotations must be radians, motion must last as long as its sound, and
what is left out is counted and said, see `lengths`.

Recordings are pieces of conversations, `<conversation>_sub_video_<number>`. All pieces of one have
the same two people, so they share a `dyad_id` and a split; their times go on from piece to piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from rapport.arrays import ArrayFileError, described, load_named
from rapport.files import visible
from rapport.log import logger
from rapport.pipeline.data.audio import read_wav
from rapport.pipeline.data.lengths import Lengths, rate_of
from rapport.pipeline.data.readers.pictures import Drawing, Painter, with_frames
from rapport.pipeline.data.readers.splits import (
    VALIDATION_SHARE,
    Stretch,
    hold_out,
    require_splits,
)
from rapport.pipeline.data.readers.transcripts import KINDS, Transcripts, read_transcript
from rapport.pipeline.data.store import Corpus, CorpusError, CorpusWriter
from rapport.pipeline.data.windows import cut, window_starts
from rapport.policies.clip import AUDIO_RATE, Clip, Word
from rapport.policies.motion import Layout, LayoutError, Motion, require_radians
from rapport.wording import first_few

FPS = 25.0
LAYOUT = Layout(groups=(("expr", 50), ("neck", 3), ("jaw", 3)), fps=FPS, topology="flame2020")
_FILE = re.compile(
    rf"(?P<recording>.+)_speaker(?P<side>[12])\.(?P<kind>wav|npz|{'|'.join(KINDS)})",
    flags=re.IGNORECASE,
)
_PIECE = re.compile(r"_sub_video_\d+$")
# Folders that are splits. `ood` has people of other films and is not read.
PUBLISHED = ("train", "test")
# Of a flat folder, for each of validation and test.
HELD_OUT_SHARE = 0.25


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
    resampled: int = 0  # wav files that were not 16 kHz
    # Of the roles, those whose partner has no motion to draw, no voice, no words.
    without_frames: int = 0
    without_voice: int = 0
    without_words: int = 0
    pose_only: int = 0  # roles whose partner is drawn on another head: no expressions


@dataclass(frozen=True)
class _Recording:
    """Files of one recording.

    Args:
        name: what its files have in common.
        files: side, 1 or 2 -> kind, "npz", "wav" or one of `KINDS` -> file.
    """

    name: str
    files: dict[int, dict[str, Path]]

    @property
    def conversation(self) -> str:
        """What it is a piece of."""
        return _PIECE.sub("", self.name)


@dataclass(frozen=True, eq=False)
class _Side:
    """What one person of a recording shows and says."""

    motion: Motion | None = None
    shape: np.ndarray | None = None
    audio: np.ndarray | None = None
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True)
class _Lengths:
    """How clips are cut, in frames."""

    length: int
    stride: int
    past: int


def import_dualtalk(
    root: str | Path,
    path: str | Path,
    seconds: float = 4.0,
    stride: float = 1.0,
    past: float = 4.0,
    drawing: Drawing | None = None,
    transcriber: str | None = None,
) -> Corpus:
    """Read DualTalk's files and write them as a corpus.

    Args:
        root: folder as published, or a flat one.
        path: folder of the corpus to create; answers of a transcriber are kept beside it.
        seconds: length of a clip.
        stride: seconds from one clip to the next.
        past: seconds before a clip that are kept as its past, where there are so many.
        drawing: how the partner is drawn; None = no frames.
        transcriber: "module:Class" of a `Transcriber`, for sides without a transcript.

    Raises:
        CorpusError: no such files, damaged ones, or nothing to learn from; names the file.
    """
    counts = ReadCounts()
    source = {"kind": "dualtalk", "seconds": seconds, "stride": stride, "past": past}
    source |= {"transcriber": transcriber}
    with CorpusWriter(path, source) as writer:
        clips = read_dualtalk(
            root,
            seconds=seconds,
            stride=stride,
            past=past,
            drawing=drawing,
            transcripts=transcripts_beside(path, transcriber),
            counts=counts,
        )
        for clip in clips:
            writer.add(clip)
        require_splits(writer.splits, root, seconds)
        writer.source["counts"] = asdict(counts)
    if counts.pose_only:
        logger.warning(
            f"  frames show how {counts.pose_only} of {counts.roles} partners turn head and jaw, "
            "and no expression: their motion is of FLAME 2020, the head is another. Give "
            "head.path=FLAME2020.pkl"
        )
    return Corpus(path)


def transcripts_beside(path: str | Path, transcriber: str | None) -> Transcripts | None:
    """The transcriber of that name, with a folder for its answers beside the corpus."""
    if transcriber is None:
        return None
    return Transcripts(transcriber, Path(path).with_name("transcripts"))


def read_dualtalk(
    root: str | Path,
    seconds: float,
    stride: float,
    past: float = 4.0,
    drawing: Drawing | None = None,
    transcripts: Transcripts | None = None,
    counts: ReadCounts | None = None,
) -> Iterator[Clip]:
    """Clips of all recordings, one recording in memory at a time.

    Args:
        root: folder as published, or a flat one.
        seconds: length of a clip.
        stride: seconds from one clip to the next.
        past: seconds before a clip that are kept as its past.
        drawing: how the partner is drawn; None = no frames.
        transcripts: for sides without a transcript.
        counts: filled in as the clips come.

    Raises:
        CorpusError: no such files, or damaged ones; names the file.
        ValueError: a clip or a stride is shorter than a frame.
    """
    counts = ReadCounts() if counts is None else counts
    cutting = _Lengths(round(seconds * FPS), round(stride * FPS), round(past * FPS))
    if cutting.length < 1 or cutting.stride < 1 or cutting.past < 0:
        raise ValueError(f"seconds={seconds}, stride={stride}, past={past}: a frame or more")
    painter = None if drawing is None else Painter(drawing)
    recordings, stretches = _recordings(Path(root), counts)
    told: dict[str, float] = {}  # conversation -> seconds of the pieces before
    for key, recording in recordings.items():
        counts.recordings += 1
        sides = {side: _read_side(paths, counts) for side, paths in recording.files.items()}
        _require_rate(recording, sides)
        lasting = _seconds(recording, sides)
        longest = max(lasting.values(), default=0.0)
        before = told.get(recording.conversation, 0.0)
        told[recording.conversation] = before + longest
        if all(side.motion is None for side in sides.values()):
            logger.warning(f"  {recording.name} has no motion: it is left out")
            counts.without_motion.append(recording.name)
            counts.lengths.lose(longest)
            continue
        counts.lengths.add(lasting)
        for number, side in sides.items():
            heard = _words(side, recording, number, seconds=longest, ask=transcripts)
            sides[number] = replace(side, words=heard)
        for number in sides:
            role = _role(recording, number, sides=sides, start=before)
            if role is not None:
                _count(role, counts, painter)
                yield from _cut(role, stretches[key], cutting, painter=painter, counts=counts)
    counts.lengths.require_small(Path(root))


def _recordings(
    root: Path, counts: ReadCounts
) -> tuple[dict[str, _Recording], dict[str, list[Stretch]]]:
    """Recordings by a key of their own, and which parts of them belong to which split."""
    if not root.is_dir():
        raise CorpusError(f"no folder {root}: corpus.root must hold DualTalk's files")
    missing = [folder for folder in PUBLISHED if not (root / folder).is_dir()]
    if len(missing) == 1:
        raise CorpusError(
            f"{root} has no folder {missing[0]!r}: both splits are needed, or a flat folder"
        )
    if missing:
        scanned = {recording.name: recording for recording in _scan(root, counts)}
        stretches = [Stretch(key, scanned[key].conversation, "train") for key in scanned]
        # The second share is of what the first has left.
        stretches = hold_out(stretches, "test", HELD_OUT_SHARE)
        stretches = hold_out(stretches, "validation", HELD_OUT_SHARE / (1 - HELD_OUT_SHARE))
    else:
        scanned = {}
        stretches = []
        for folder in PUBLISHED:
            for recording in _scan(root / folder, counts):
                key = f"{folder}/{recording.name}"
                scanned[key] = recording
                stretches.append(Stretch(key, recording.conversation, split=folder))
        stretches = hold_out(stretches, "validation", VALIDATION_SHARE)
    by_key: dict[str, list[Stretch]] = {}
    for stretch in stretches:
        by_key.setdefault(str(stretch.recording), []).append(stretch)
    return scanned, by_key


def _scan(folder: Path, counts: ReadCounts) -> list[_Recording]:
    """Recordings of a folder, sorted by the names of their files."""
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
    return [_Recording(name, sides) for name, sides in files.items()]


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


def _words(
    side: _Side, recording: _Recording, number: int, seconds: float, ask: Transcripts | None
) -> tuple[Word, ...] | None:
    """What a side says, where somebody has written it down or can; else None.

    Args:
        side: without words.
        recording: whose side it is.
        number: of the side.
        seconds: length of the recording.
        ask: writes it down.
    """
    paths = recording.files[number]
    file = next((paths[kind] for kind in KINDS if kind in paths), None)
    if file is not None:
        heard = seconds if side.audio is None else len(side.audio) / AUDIO_RATE
        return read_transcript(file, heard)
    if ask is None or side.audio is None:
        return None
    return ask(side.audio, f"{recording.name}_speaker{number}")


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


def _role(recording: _Recording, number: int, sides: dict[int, _Side], start: float) -> Clip | None:
    """The whole recording with side `number` as the listener, cut to its shortest modality.

    None where that side has no motion.
    """
    listener = sides[number]
    if listener.motion is None:
        return None
    partner = sides.get(3 - number, _Side())
    lengths = [len(side.motion) for side in sides.values() if side.motion is not None]
    sounds = [side.audio for side in sides.values() if side.audio is not None]
    frames = min(lengths + [int(len(audio) / AUDIO_RATE * FPS) for audio in sounds])
    samples = round(frames / FPS * AUDIO_RATE)
    return Clip(
        clip_id=f"{recording.name}-listener{number}",
        dyad_id=recording.conversation,
        split="train",
        listener=listener.motion.window(0, frames),
        speaker=None if partner.motion is None else partner.motion.window(0, frames),
        speaker_audio=None if partner.audio is None else partner.audio[:samples],
        listener_audio=None if listener.audio is None else listener.audio[:samples],
        words=partner.words,
        speaker_shape=partner.shape,
        speaker_id=f"{recording.conversation}-speaker{3 - number}",
        start=start,
    )


def _count(role: Clip, counts: ReadCounts, painter: Painter | None) -> None:
    drawn = painter is not None and role.speaker is not None
    counts.roles += 1
    counts.without_frames += not drawn
    counts.without_voice += role.speaker_audio is None
    counts.without_words += role.words is None
    if drawn:
        assert painter is not None
        counts.pose_only += not painter.shows_faces_of(LAYOUT.topology)


def _cut(
    role: Clip,
    stretches: list[Stretch],
    cutting: _Lengths,
    painter: Painter | None,
    counts: ReadCounts,
) -> Iterator[Clip]:
    """Windows of a role, none across the border of its stretches: nor is the past of any."""
    clips = []
    for stretch in stretches:
        first, frames = stretch.frames(len(role.listener))
        part = replace(cut(role, first, frames, clip_id=role.clip_id), split=stretch.split)
        for start in window_starts(frames, cutting.length, cutting.stride):
            clip_id = f"{role.clip_id}-{first + start:06d}"
            clips.append(cut(part, start, cutting.length, clip_id=clip_id, past=cutting.past))
    if not clips:
        counts.too_short.append(role.clip_id)
    counts.clips += len(clips)
    if painter is not None and role.speaker is not None:
        look = painter.of(role.speaker, role.speaker_shape)
        clips = with_frames(clips, role, painter.drawing.rate, look)
    yield from clips
