"""Reader of conversations that two phones recorded with Live Link Face.

    root/<recording>_speaker{1,2}.csv     the takes of the app, see `rapport.policies.head.livelink`
    root/<recording>_speaker{1,2}.wav     what that person says, if you have it
    root/{train,test}/...                 the same, where you hold out people of your own choice

ARKit's weights become motion of the built-in head. A phone does not tell where the head is, nor
neck from head: `trans` and `neck` are absent. Frames are drawn from the partner's motion.

Each sound begins with the first row of its take, as in the app's own videos. Phones are started one
after the other: by their timecodes the two sides are cut to the time that both have. What is taken
of their clocks is the difference, so they must be set by one clock. A side that has only sound
begins with the other's take.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rapport.pipeline.data.readers.dyads import (
    Cutting,
    ReadCounts,
    Recording,
    Side,
    read_dyads,
    read_sound,
    transcripts_beside,
)
from rapport.pipeline.data.readers.pictures import Drawing
from rapport.pipeline.data.readers.splits import require_splits
from rapport.pipeline.data.readers.transcripts import Transcripts
from rapport.pipeline.data.store import Corpus, CorpusError, CorpusWriter
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.head.arkit import ArkitRig
from rapport.policies.head.asset import load_head
from rapport.policies.head.livelink import LiveLinkError, Take, read_livelink
from rapport.policies.motion import Layout, Motion

FPS = 30.0
CUTTING = Cutting()
_HALF_A_DAY_S = 12 * 3600


def livelink_layout(fps: float) -> Layout:
    """What a phone tells of a face, on the built-in head."""
    groups = (("expr", 50), ("jaw", 3), ("eyelid", 2), ("eyepose", 6), ("rot", 3))
    return Layout(groups, fps, "builtin")


def import_livelink(
    root: str | Path,
    path: str | Path,
    cutting: Cutting = CUTTING,
    fps: float = FPS,
    drawing: Drawing | None = None,
    transcriber: str | None = None,
) -> Corpus:
    """Read takes and write them as a corpus.

    Args:
        root: folder of the files.
        path: folder of the corpus to create; answers of a transcriber are kept beside it.
        cutting: how clips are cut.
        fps: to which takes are resampled.
        drawing: how the partner is drawn, on the built-in head; None = no frames.
        transcriber: "module:Class" of a `Transcriber`, for sides without a transcript.

    Raises:
        CorpusError: no such files, damaged ones, sides that do not overlap, or nothing to learn
            from; names the file, and the line where it is one.
    """
    counts = ReadCounts()
    source = {"kind": "livelink", **asdict(cutting), "fps": fps, "transcriber": transcriber}
    with CorpusWriter(path, source) as writer:
        transcripts = transcripts_beside(path, transcriber)
        clips = read_livelink_dyads(
            root, cutting, fps=fps, drawing=drawing, transcripts=transcripts, counts=counts
        )
        for clip in clips:
            writer.add(clip)
        require_splits(writer.splits, root, cutting.seconds)
        writer.source["counts"] = asdict(counts)
    return Corpus(path)


def read_livelink_dyads(
    root: str | Path,
    cutting: Cutting = CUTTING,
    fps: float = FPS,
    drawing: Drawing | None = None,
    transcripts: Transcripts | None = None,
    counts: ReadCounts | None = None,
) -> Iterator[Clip]:
    """Clips of all recordings, one recording in memory at a time.

    Args:
        root: folder of the files.
        cutting: how clips are cut.
        fps: to which takes are resampled.
        drawing: how the partner is drawn, on the built-in head; None = no frames.
        transcripts: for sides without a transcript.
        counts: filled in as the clips come.

    Raises:
        CorpusError: as of `import_livelink`.
        ValueError: a clip or a stride is shorter than a frame.
    """
    counts = ReadCounts() if counts is None else counts
    yield from read_dyads(
        Path(root),
        _Takes(fps),
        cutting,
        drawing=drawing,
        transcripts=transcripts,
        counts=counts,
    )


class _Takes:
    """Takes of the app, a csv for each side.

    Args:
        fps: to which they are resampled.
    """

    owner = "Live Link Face"
    suffix = "csv"

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self._layout = livelink_layout(fps)
        self._rig = ArkitRig(load_head())

    def sides(self, recording: Recording, counts: ReadCounts) -> dict[int, Side]:
        """Takes on the built-in head and sounds, of the time that both takes have."""
        takes = {}
        for number, files in recording.files.items():
            if "csv" in files:
                takes[number] = _read(files["csv"])
        spans = _shared(recording, takes, self.fps)
        sides = {}
        for number, files in recording.files.items():
            begin, end = spans.get(number, (0.0, None))
            motion = audio = None
            beyond = 0.0
            gaps: list[tuple[float, float]] = []
            if number in takes:
                motion = self._motion(takes[number], begin, end)
                gaps = [(lost - begin, found - begin) for lost, found in takes[number].gaps]
            if "wav" in files:
                sound = read_sound(files["wav"], counts)
                until = len(sound) if end is None else min(round(end * AUDIO_RATE), len(sound))
                audio = sound[round(begin * AUDIO_RATE) : until]
                beyond = (len(sound) - until) / AUDIO_RATE
            sides[number] = Side(
                motion, audio=audio, skipped=begin, beyond=beyond, gaps=tuple(gaps)
            )
        return sides

    def _motion(self, take: Take, begin: float, end: float | None) -> Motion:
        """The built-in head from `begin` to `end`, in seconds of the take."""
        weights = take.motion(self.fps, begin=begin)
        if end is not None:
            weights = weights.window(0, min(len(weights), round((end - begin) * self.fps)))
        return self._rig.motion(weights, self._layout)


def _read(path: Path) -> Take:
    try:
        return read_livelink(path)
    except LiveLinkError as error:
        raise CorpusError(str(error)) from error


def _shared(
    recording: Recording, takes: dict[int, Take], fps: float
) -> dict[int, tuple[float, float]]:
    """Begin and end, in seconds of each side's files, of the time that both takes have."""
    if len(takes) < 2:
        return {}
    later = takes[2].start - takes[1].start
    if abs(later) > _HALF_A_DAY_S:  # midnight lies between the two
        later -= 2 * _HALF_A_DAY_S * (1 if later > 0 else -1)
    starts = {1: max(later, 0.0), 2: max(-later, 0.0)}
    shared = min(take.seconds[-1] - starts[number] for number, take in takes.items())
    if shared <= 0:
        raise CorpusError(
            f"{recording.files[1]['csv']} and {recording.files[2]['csv']} have no time in common: "
            f"by their timecodes one begins {abs(later):.1f} s after the other. Set both phones by "
            "one clock, or give both takes the same first timecode"
        )
    # The last row's frame lasts, too.
    return {number: (start, start + shared + 1 / fps) for number, start in starts.items()}
