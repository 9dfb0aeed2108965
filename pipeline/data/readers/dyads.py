"""Recordings of two people, a file of motion and one of sound for each: what readers of such share.

    root/{train,test}/<recording>_speaker{1,2}.{wav,MOTION}     splits as published
    root/<recording>_speaker{1,2}.{wav,MOTION}                  or a flat folder
    <recording>_speaker{1,2}.{json,vtt,srt,txt}                 what that side says, if you have it

Everybody who has motion is once the listener. What is not there is absent. Motion must last as long
as its sound, and what is left out is counted and said, see `lengths`.

Recordings are pieces of conversations, `<conversation>_sub_video_<number>`. All pieces of one have
the same two people, so they share a `dyad_id` and a split; their times go on from piece to piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from rapport.files import visible
from rapport.log import logger
from rapport.pipeline.data.audio import read_wav
from rapport.pipeline.data.lengths import Lengths
from rapport.pipeline.data.readers.pictures import Drawing, Painter, with_frames
from rapport.pipeline.data.readers.splits import (
    VALIDATION_SHARE,
    Stretch,
    by_recording,
    hold_out,
    hold_out_both,
)
from rapport.pipeline.data.readers.transcripts import KINDS, Transcripts, read_transcript
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.data.windows import cut, window_starts
from rapport.policies.clip import AUDIO_RATE, Clip, Word
from rapport.policies.motion import Motion
from rapport.wording import first_few

_PIECE = re.compile(r"_sub_video_\d+$")
# Folders that are splits. DualTalk's `ood` has people of other films and is not read.
PUBLISHED = ("train", "test")


@dataclass
class ReadCounts:
    """What became of the files; kept in the corpus manifest."""

    recordings: int = 0
    roles: int = 0  # listeners: both sides of a recording count when both have motion
    clips: int = 0
    # Recordings in which no side has motion.
    without_motion: list[str] = field(default_factory=list)
    # Roles without a clip, mostly as they are shorter than one.
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
    # Clips left out because a camera lost a face in them or in their past.
    lost_face: int = 0
    pose_only: int = 0  # roles whose partner is drawn on another head: no expressions


@dataclass(frozen=True)
class Recording:
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
class Side:
    """What one person of a recording shows and says."""

    motion: Motion | None = None
    shape: np.ndarray | None = None
    audio: np.ndarray | None = None
    words: tuple[Word, ...] | None = None
    # Seconds of the files that lie before the recording, and of the sound after it: cut off.
    skipped: float = 0.0
    beyond: float = 0.0
    # Begin and end, in seconds, of what the camera missed.
    gaps: tuple[tuple[float, float], ...] = ()


class Frames(NamedTuple):
    """How clips are cut, in frames."""

    length: int
    stride: int
    past: int


@dataclass(frozen=True)
class Cutting:
    """How clips are cut, in seconds.

    Args:
        seconds: length of a clip.
        stride: from one clip to the next.
        past: before a clip, kept as its past where there is so much.
    """

    seconds: float = 4.0
    stride: float = 1.0
    past: float = 4.0

    def frames(self, fps: float) -> Frames:
        """The same in frames.

        Raises:
            ValueError: a clip or a stride is shorter than a frame.
        """
        frames = Frames(*(round(time * fps) for time in (self.seconds, self.stride, self.past)))
        if frames.length < 1 or frames.stride < 1 or frames.past < 0:
            raise ValueError(f"{self}: a frame or more at {fps:g} fps")
        return frames


class Format(Protocol):
    """What a corpus of dyads has for files of motion."""

    owner: str
    """whose files they are, for messages"""
    suffix: str
    """of the files of motion, without the dot"""
    fps: float
    """of motion"""

    def sides(self, recording: Recording, counts: ReadCounts) -> dict[int, Side]:
        """Both sides of a recording without words, each as long as its files, from one moment on.

        Raises:
            CorpusError: a file is damaged; names it.
        """


def read_dyads(
    root: Path,
    form: Format,
    cutting: Cutting,
    drawing: Drawing | None,
    transcripts: Transcripts | None,
    counts: ReadCounts,
) -> Iterator[Clip]:
    """Clips of all recordings, one recording in memory at a time.

    Args:
        root: folder as published, or a flat one.
        form: of the files.
        cutting: how clips are cut.
        drawing: how the partner is drawn; None = no frames.
        transcripts: for sides without a transcript.
        counts: filled in as the clips come.

    Raises:
        CorpusError: no such files, or damaged ones; names the file.
        ValueError: a clip or a stride is shorter than a frame.
    """
    frames = cutting.frames(form.fps)
    painter = None if drawing is None else Painter(drawing)
    recordings, stretches = _recordings(root, form, counts)
    told: dict[str, float] = {}  # conversation -> seconds of the pieces before
    for key, recording in recordings.items():
        counts.recordings += 1
        sides = form.sides(recording, counts)
        lasting = _seconds(recording, sides, form.suffix)
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
                clips = cut_role(role, stretches[key], frames, lost=_lost(sides), counts=counts)
                yield from _drawn(clips, role, painter)
    counts.lengths.require_small(root)


def transcripts_beside(path: str | Path, transcriber: str | None) -> Transcripts | None:
    """The transcriber of that name, with a folder for its answers beside the corpus."""
    if transcriber is None:
        return None
    return Transcripts(transcriber, Path(path).with_name("transcripts"))


def _recordings(
    root: Path, form: Format, counts: ReadCounts
) -> tuple[dict[str, Recording], dict[str | int, list[Stretch]]]:
    """Recordings by a key of their own, and which parts of them belong to which split."""
    if not root.is_dir():
        raise CorpusError(f"no folder {root}: corpus.root must hold {form.owner}'s files")
    missing = [folder for folder in PUBLISHED if not (root / folder).is_dir()]
    if len(missing) == 1:
        raise CorpusError(
            f"{root} has no folder {missing[0]!r}: both splits are needed, or a flat folder"
        )
    if missing:
        scanned = {recording.name: recording for recording in _scan(root, form, counts)}
        stretches = [Stretch(key, scanned[key].conversation, "train") for key in scanned]
        stretches = hold_out_both(stretches)
    else:
        scanned = {}
        stretches = []
        for folder in PUBLISHED:
            for recording in _scan(root / folder, form, counts):
                key = f"{folder}/{recording.name}"
                scanned[key] = recording
                stretches.append(Stretch(key, recording.conversation, split=folder))
        stretches = hold_out(stretches, "validation", VALIDATION_SHARE)
    return scanned, by_recording(stretches)


def _scan(folder: Path, form: Format, counts: ReadCounts) -> list[Recording]:
    """Recordings of a folder, sorted by the names of their files."""
    kinds = "|".join(("wav", form.suffix, *KINDS))
    pattern = re.compile(rf"(?P<recording>.+)_speaker(?P<side>[12])\.(?P<kind>{kinds})", re.I)
    files: dict[str, dict[int, dict[str, Path]]] = {}
    others = []
    for path in visible(folder):
        match = pattern.fullmatch(path.name)
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
            f"{folder} has no file <recording>_speaker1|2.wav|{form.suffix}: is it "
            f"{form.owner}'s folder?"
        )
    return [Recording(name, sides) for name, sides in files.items()]


def read_sound(path: Path, counts: ReadCounts) -> np.ndarray:
    """The samples of a wav at `AUDIO_RATE`; what is wrong with its level is said.

    Raises:
        AudioError: it cannot be read; names the file.
    """
    audio, rate, fault = read_wav(path)
    counts.resampled += rate != AUDIO_RATE
    if fault is not None:
        logger.warning(f"  {path} {fault}")
        counts.odd_sound.append(path.name)
    return audio


def _words(
    side: Side, recording: Recording, number: int, seconds: float, ask: Transcripts | None
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
        words = read_transcript(file, side.skipped + heard + side.beyond)
        return tuple(_later(word, side.skipped) for word in words if word.end >= side.skipped)
    if ask is None or side.audio is None:
        return None
    return ask(side.audio, f"{recording.name}_speaker{number}")


def _later(word: Word, skipped: float) -> Word:
    """A word of a transcript that begins so many seconds before its recording."""
    return Word(word.text, max(word.start - skipped, 0.0), word.end - skipped)


def _seconds(recording: Recording, sides: dict[int, Side], suffix: str) -> dict[str, float]:
    """How long each file of a recording lasts."""
    seconds = {}
    for number, side in sides.items():
        files = recording.files[number]
        if side.motion is not None:
            seconds[str(files[suffix])] = side.motion.seconds
        if side.audio is not None:
            seconds[str(files["wav"])] = len(side.audio) / AUDIO_RATE
    return seconds


def _role(recording: Recording, number: int, sides: dict[int, Side], start: float) -> Clip | None:
    """The whole recording with side `number` as the listener, cut to its shortest modality.

    None where that side has no motion.
    """
    listener = sides[number]
    if listener.motion is None:
        return None
    partner = sides.get(3 - number, Side())
    fps = listener.motion.layout.fps
    lengths = [len(side.motion) for side in sides.values() if side.motion is not None]
    sounds = [side.audio for side in sides.values() if side.audio is not None]
    frames = min(lengths + [int(len(audio) / AUDIO_RATE * fps) for audio in sounds])
    samples = round(frames / fps * AUDIO_RATE)
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
        counts.pose_only += not painter.shows_faces_of(role.listener.layout.topology)


def _lost(sides: dict[int, Side]) -> list[tuple[float, float]]:
    """Begin and end, in seconds, of what the camera of either side missed."""
    return [gap for side in sides.values() for gap in side.gaps]


def cut_role(
    role: Clip,
    stretches: Sequence[Stretch],
    cutting: Frames,
    lost: Sequence[tuple[float, float]],
    counts: ReadCounts,
) -> list[Clip]:
    """Windows of a role, none across the border of its stretches: nor is the past of any.

    Args:
        role: a whole recording.
        stretches: of it, each of a split.
        cutting: how clips are cut.
        lost: begin and end, in seconds, of what no clip may show.
        counts: takes the clips in.
    """
    clips = []
    fps = role.listener.layout.fps
    for stretch in stretches:
        first, frames = stretch.frames(len(role.listener))
        part = replace(cut(role, first, frames, clip_id=role.clip_id), split=stretch.split)
        for start in window_starts(frames, cutting.length, cutting.stride):
            clip_id = f"{role.clip_id}-{first + start:06d}"
            clip = cut(part, start, cutting.length, clip_id=clip_id, past=cutting.past)
            past = 0 if clip.past is None else cutting.past
            begin = (first + start - past) / fps  # of its first frame and of its last
            end = (first + start + cutting.length - 1) / fps
            if any(gone < end and begin < found for gone, found in lost):
                counts.lost_face += 1
            else:
                clips.append(clip)
    if not clips:
        counts.too_short.append(role.clip_id)
    counts.clips += len(clips)
    return clips


def _drawn(clips: list[Clip], role: Clip, painter: Painter | None) -> list[Clip]:
    """Clips of a role with frames of its partner, where that has motion to draw."""
    if painter is None or role.speaker is None:
        return clips
    look = painter.of(role.speaker, role.speaker_shape)
    return with_frames(clips, role, painter.drawing.rate, look)
