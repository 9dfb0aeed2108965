"""A recording as a shard of clips, and what is kept beside it to see how well it was tracked.

    tracked/NAME/
      clips.parquet    clips in which both people are tracked, of both roles; split "train"
      faces.parquet    pictures of both faces in each clip, where they are to be captioned
      track-a.npz      all that was tracked of each person
      beside.mp4       the film and the face that was read off it, side by side
      record.json      figures, and what it was made with: written last

A shard is there whole or not at all, so a run that goes on makes those that are missing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rapport.files import atomic, strict_json, write_atomic
from rapport.pipeline.data.columns import clip_schema, clips_to_table, jpeg, row_to_clip
from rapport.pipeline.data.pfl import standing
from rapport.pipeline.data.readers.dyads import Cutting
from rapport.pipeline.data.readers.pictures import frame_moments, with_frames
from rapport.pipeline.data.store import ROW_GROUP, CorpusError
from rapport.pipeline.data.video.beside import write_beside
from rapport.pipeline.data.video.quality import Gauge, jitter, movement
from rapport.pipeline.data.video.sides import Side
from rapport.pipeline.data.video.table import Recorded
from rapport.pipeline.data.video.tracking import SMOOTHED_S, Track, face_of, film_of
from rapport.pipeline.data.windows import cut, window_starts
from rapport.policies.clip import Clip
from rapport.policies.head.asset import TopologyError
from rapport.policies.head.video import on_this_head
from rapport.policies.motion import Layout

RECORD = "record.json"
CLIPS = "clips.parquet"
FACES = "faces.parquet"
FACES_SCHEMA = pa.schema(
    [
        ("side", pa.string()),
        ("start", pa.float64()),
        ("pictures", pa.list_(pa.binary())),
    ]
)
# Pictures that a caption is made of, even over a clip (GDPO-Listener, supplement, section 6), and
# their height and width.
CAPTIONED = 8
FACE_SIZE = 224
BESIDE = "beside.mp4"
_ALIKE_S = 1e-4  # moments nearer than this are one
_WINDOW_S = 4.0  # how far somebody moves is asked of so much time
Box = tuple[float, float, float]  # left, top, edge


@dataclass(frozen=True)
class Plan:
    """How recordings become clips.

    Args:
        fps: frames of motion per second.
        cutting: how clips are cut.
        rate: pictures of the speaker a second; 0 = none.
        size: their height and width.
        tracked: least share of a clip's frames in which a face was seen, of either person; the
            others are bridged.
        spoken: least share of a clip in which its speaker talks; the listener talks less.
        captioned: whether pictures of both faces are kept, for captions.
    """

    fps: float
    cutting: Cutting
    rate: float
    size: int
    tracked: float
    spoken: float
    captioned: bool = False


def key_of(recorded: Recorded, plan: Plan, tools: Mapping[str, Any]) -> str:
    """The same for shards that are made of the same files in the same way."""
    files = {}
    for path in recorded.files:
        there = path.stat() if path.is_file() else None
        files[str(path)] = None if there is None else (there.st_size, there.st_mtime_ns)
    what = {"recording": asdict(recorded), "files": files, "plan": asdict(plan), "tools": tools}
    return sha256(strict_json(what).encode()).hexdigest()


def is_made(folder: Path, key: str) -> bool:
    """Whether the shard of this key is there."""
    try:
        return bool(json.loads((folder / RECORD).read_text())["key"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_shard(
    folder: Path,
    recorded: Recorded,
    sides: Mapping[str, Side],
    plan: Plan,
    gauge: Gauge,
    *,
    key: str,
    cost: Callable[[], Mapping[str, float]],
) -> dict[str, Any]:
    """Write the shard of a recording; returns its record.

    Args:
        folder: of the shard.
        recorded: the recording.
        sides: what was read of it.
        plan: how it is cut.
        gauge: measures how well it was tracked.
        key: of `key_of`.
        cost: what the recording has cost by now.
    """
    counts = dict.fromkeys(("windows", "clips", "lost_face", "not_spoken"), 0)
    with atomic(folder) as partial:
        partial.mkdir()
        layout = _layout(sides)
        found = {side: list(_clips(recorded, sides, side, plan, counts)) for side in sides}
        clips = (clip for side in sides for clip in _pictured(found[side], sides, side, plan))
        _write_clips(partial / CLIPS, clips, layout)
        if plan.captioned:
            starts = sorted({clip.start for clips in found.values() for clip in clips})
            _write_faces(partial / FACES, starts, sides, plan)
        people = {}
        for side, known in sides.items():
            if known.track is not None:
                known.track.save(partial / f"track-{side}.npz")
                people[side] = _figures(known, gauge)
        write_beside(partial / BESIDE, sides, gauge.asset, plan.fps)
        seconds = max(known.track.motion.seconds for known in sides.values() if known.track)
        record = {
            "key": key,
            **cost(),
            "recording": recorded.name,
            "seconds": seconds,
            "shared_sound": recorded.shared_sound,
            **counts,
            "people": people,
        }
        write_atomic(partial / RECORD, strict_json(record, indent=2))
    return record


def _figures(known: Side, gauge: Gauge) -> dict[str, Any]:
    """How well somebody was tracked.

    Args:
        known: the person.
        gauge: measures on a head; nothing is in millimetres where the motion is of another.

    Returns:
        `talks`, `tracked` and `there` are shares; `jitter_{lips,brows}` and `quiet_{lips,brows}`
        are mm, where `quiet` is how far somebody who does not talk moves within 4 s.
    """
    track = known.track
    assert track is not None
    figures: dict[str, Any] = {
        "person": known.person.name,
        "talks": None if known.speech is None else float(known.speech.mean()),
        "tracked": track.share,
        "there": float(track.there.mean()),
    }
    motion, whole = on_this_head(track.motion, gauge.asset)
    if not whole:
        return figures
    try:
        places = gauge.places(motion)
    except TopologyError:  # a head without the landmarks of a face
        return figures
    quiet = track.there if known.speech is None else track.there & ~known.speech
    window = round(_WINDOW_S * motion.layout.fps)
    # Tracks of others come as they are.
    smoothed = SMOOTHED_S * motion.layout.fps if known.person.track is None else 0.0
    for region in ("lips", "brows"):
        figures[f"jitter_{region}"] = jitter(places[region], track.seen, smoothed)
        figures[f"quiet_{region}"] = movement(places[region], quiet, window)
    return figures


def _write_clips(path: Path, clips: Iterable[Clip], layout: Layout) -> None:
    """Clips in row groups, as a corpus has them."""
    rest = iter(clips)
    schema = clip_schema(layout)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        while batch := list(islice(rest, ROW_GROUP)):
            writer.write_table(clips_to_table(batch, layout), row_group_size=ROW_GROUP)


def _write_faces(
    path: Path, starts: Sequence[float], sides: Mapping[str, Side], plan: Plan
) -> None:
    """Pictures of everybody who was filmed, in windows that begin there."""
    rows = []
    seconds = plan.cutting.seconds
    moments = frame_moments(seconds, CAPTIONED / seconds)
    stretches = [(start, start + seconds, start + moments) for start in starts]
    for side, known in sides.items():
        if known.track is None or known.media is None:
            continue
        for start, crops in zip(starts, _crops(known, stretches, plan.fps, FACE_SIZE), strict=True):
            rows.append({"side": side, "start": start, "pictures": list(crops.values())})
    pq.write_table(pa.Table.from_pylist(rows, schema=FACES_SCHEMA), path)


def listening_side(clip: Clip) -> str:
    """Which side of its recording listens in a clip of a shard, as its id says."""
    return clip.clip_id.removeprefix(f"{clip.dyad_id}-listener-")[0]


def read_shard(folder: Path) -> Iterator[Clip]:
    """The clips of a shard.

    Raises:
        CorpusError: it is damaged.
    """
    try:
        with pq.ParquetFile(folder / CLIPS, page_checksum_verification=True) as file:
            layout = Layout.from_json(file.schema_arrow.metadata[b"layout"].decode())
            for number in range(file.num_row_groups):
                batch = file.read_row_group(number).combine_chunks().to_batches()[0]
                for row in range(batch.num_rows):
                    yield row_to_clip(batch, row, layout, frame_size=_frame_size(batch))
    except (OSError, ValueError, KeyError) as error:
        raise CorpusError(f"{folder / CLIPS} cannot be read ({error}): remove {folder}") from error


def _frame_size(batch: Any) -> tuple[int, int] | None:
    frames = batch.column("speaker_frames")
    for cell in frames:
        if cell.is_valid and len(cell.values):
            image = Image.open(io.BytesIO(cell.values[0].as_py()))
            return image.height, image.width
    return None


def _tracks(sides: Mapping[str, Side]) -> list[Track]:
    return [known.track for known in sides.values() if known.track is not None]


def _layout(sides: Mapping[str, Side]) -> Layout:
    layouts = {track.motion.layout for track in _tracks(sides)}
    if len(layouts) > 1:
        listed = "; ".join(sorted(map(str, layouts)))
        raise CorpusError(f"the two people are tracked unlike: {listed}. Take one tracker for both")
    return next(iter(layouts))


def _partner(sides: Mapping[str, Side], side: str) -> Side:
    """The other one."""
    return next(known for name, known in sides.items() if name != side)


def _clips(
    recorded: Recorded,
    sides: Mapping[str, Side],
    side: str,
    plan: Plan,
    counts: dict[str, int],
) -> Iterator[Clip]:
    """Windows in which this side listens and both are tracked, without pictures."""
    listener = sides[side]
    if listener.track is None:
        return
    [other] = sides.keys() - {side}
    partner = sides[other]
    frames = plan.cutting.frames(plan.fps)
    motion = listener.track.motion
    whole = Clip(
        clip_id=f"{recorded.name}-listener-{side}",
        dyad_id=recorded.name,
        split="train",
        listener=motion,
        speaker=None if partner.track is None else partner.track.motion,
        speaker_audio=partner.sound,
        # A sound of both is the speaker's; that the listener is in it is counted.
        listener_audio=None if recorded.shared_sound else listener.sound,
        words=partner.words,
        speaker_id=f"{recorded.name}-{other}",
    )
    tracks = _tracks(sides)
    there = np.all([track.there for track in tracks], axis=0)
    seen = np.all([track.seen for track in tracks], axis=0)
    for start in window_starts(len(motion), frames.length, frames.stride):
        counts["windows"] += 1
        end = start + frames.length
        if not (there[start:end].all() and seen[start:end].mean() >= plan.tracked):
            counts["lost_face"] += 1
            continue
        if not _is_spoken(partner, listener, slice(start, end), plan.spoken):
            counts["not_spoken"] += 1
            continue
        # A past that is not wholly there is none.
        past = (
            frames.past if start >= frames.past and there[start - frames.past : start].all() else 0
        )
        counts["clips"] += 1
        clip_id = f"{whole.clip_id}-{start:06d}"
        yield cut(whole, start, frames.length, clip_id=clip_id, past=past)


def _is_spoken(partner: Side, listener: Side, span: slice, least: float) -> bool:
    if partner.speech is None:
        return True
    talks = partner.speech[span].mean()
    own = 0.0 if listener.speech is None else listener.speech[span].mean()
    return bool(talks >= least and own <= talks)


def _pictured(
    clips: list[Clip], sides: Mapping[str, Side], side: str, plan: Plan
) -> Iterable[Clip]:
    """Clips to which one side listens, with pictures of the other, where it was filmed."""
    speaker = _partner(sides, side)
    if not plan.rate or not clips or speaker.track is None:
        return clips
    return _filmed(clips, speaker, plan)


def _filmed(clips: list[Clip], speaker: Side, plan: Plan) -> Iterator[Clip]:
    """Clips with pictures of one speaker."""
    stretches = []
    for clip in clips:
        before = 0.0 if clip.past is None else clip.past.listener.seconds
        begin = clip.start - before
        past = begin + frame_moments(before, plan.rate)
        moments = clip.start + frame_moments(clip.seconds, plan.rate)
        stretches.append((begin, clip.start + clip.seconds, np.concatenate([past, moments])))
    for clip, crops in zip(clips, _crops(speaker, stretches, plan.fps, plan.size), strict=True):

        def look(moments: np.ndarray, crops: Mapping[int, bytes] = crops) -> np.ndarray:
            files = [io.BytesIO(crops[_key(moment)]) for moment in moments]
            return np.stack([np.asarray(Image.open(file)) for file in files])

        yield from with_frames([clip], replace(clip, start=0.0), plan.rate, look)


def _crops(
    known: Side, stretches: Sequence[tuple[float, float, np.ndarray]], fps: float, size: int
) -> list[dict[int, bytes]]:
    """Pictures of one person in stretches of time, each cut by a square that stands still (`pfl`).

    Args:
        known: the person, who was filmed.
        stretches: begin, end and moments of each, seconds.
        fps: of the track.
        size: of the pictures.

    Returns:
        For each stretch JPEG by moment, in order.
    """
    assert known.track is not None
    boxes: list[Box] = []
    wanted: dict[int, set[Box]] = {}  # by moment
    for begin, end, moments in stretches:
        boxes.append(_box(known.track.boxes[round(begin * fps) : round(end * fps)]))
        for moment in moments:
            wanted.setdefault(_key(moment), set()).add(boxes[-1])
    decoded = _decoded(wanted, known, size)
    return [
        {_key(moment): decoded[_key(moment), box] for moment in moments}
        for (_, _, moments), box in zip(stretches, boxes, strict=True)
    ]


def _box(boxes: np.ndarray) -> Box:
    """One square for all of `Track.boxes`; zeros where none is known."""
    known = boxes[boxes[:, 2] > 0]
    if not len(known):
        return 0.0, 0.0, 0.0
    middle, edge = standing(known[:, (0, 1, 2, 2)])
    left, top = middle - edge / 2
    # To a tenth of a pixel, so that clips of a face that keeps still share their crops.
    return round(float(left), 4), round(float(top), 4), round(edge, 4)


def _key(moment: float) -> int:
    return round(float(moment) / _ALIKE_S)


def _decoded(
    wanted: Mapping[int, set[Box]], known: Side, size: int
) -> dict[tuple[int, Box], bytes]:
    """Crops as JPEG, by moment and box; at a moment the last picture that was there by then."""
    assert known.media is not None
    film = film_of(known.media)
    shown = film.first
    crops = {}
    for moment in sorted(wanted):
        taken = film.until(moment * _ALIKE_S + known.skipped)
        shown = taken[-1][1] if taken else shown
        assert shown is not None
        for box in wanted[moment]:
            crop = face_of(shown, known.person.part, np.array(box), size)
            crops[moment, box] = jpeg(crop)
    return crops
