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

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rapport.arrays import ArrayFileError, described, load_named
from rapport.log import logger
from rapport.pipeline.data.lengths import rate_of
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
from rapport.policies.motion import Layout, LayoutError, Motion, require_radians

FPS = 25.0
LAYOUT = Layout(groups=(("expr", 50), ("neck", 3), ("jaw", 3)), fps=FPS, topology="flame2020")


class _Tracks:
    """FLAME tracks, an npz for each side."""

    owner = "DualTalk"
    suffix = "npz"
    fps = FPS

    def sides(self, recording: Recording, counts: ReadCounts) -> dict[int, Side]:
        """Tracks and sounds as they are; the two sides begin together."""
        sides = {}
        for number, files in recording.files.items():
            motion = shape = audio = None
            if "npz" in files:
                motion, shape = read_track(files["npz"])
            if "wav" in files:
                audio = read_sound(files["wav"], counts)
            sides[number] = Side(motion, shape, audio)
        _require_rate(recording, sides)
        return sides


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
    cutting = Cutting(seconds, stride=stride, past=past)
    yield from read_dyads(
        Path(root), _Tracks(), cutting, drawing=drawing, transcripts=transcripts, counts=counts
    )


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


def _require_rate(recording: Recording, sides: dict[int, Side]) -> None:
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
