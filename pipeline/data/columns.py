"""A clip as an Arrow row and back.

Columns have fixed shapes that plain pyarrow, `datasets` and Ray Data all read. Motion is
`list<fixed_size_list<float>[dim]>`, the one column type that keeps its shape in all three. An
absent modality is a null, never zeros. Frames are JPEG, as cameras and browsers send them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from PIL import Image

from rapport.policies.clip import Clip, Past, Word
from rapport.policies.motion import Layout, Motion
from rapport.rewards.ratings.points import Point

SCHEMA_VERSION = "3"
JPEG_QUALITY = 95
_WORD = pa.struct([("text", pa.string()), ("start", pa.float32()), ("end", pa.float32())])
_FULL_SCALE = 32767  # int16 value of a sample of 1.0


@dataclass(frozen=True, eq=False)
class Truth:
    """Hidden truth of a clip, which nothing may train on.

    Args:
        appropriate_affect: (time, 2) valence and arousal in [-1, 1] of the reaction that would
            have fitted.
        manner: how the recorded listener behaved in this clip.
        style: the listener's traits, name -> value.
    """

    appropriate_affect: np.ndarray
    manner: str
    style: dict[str, float]


def sequence_type(dim: int) -> pa.DataType:
    """Arrow type of a (time, dim) float32 array."""
    return pa.list_(pa.list_(pa.float32(), dim))


def clip_schema(layout: Layout) -> pa.Schema:
    """Columns of a clip shard; the layout and the schema version travel in the metadata."""
    motion = sequence_type(layout.dim)
    columns = [
        ("clip_id", pa.string()),
        ("dyad_id", pa.string()),
        ("split", pa.string()),
        ("listener", motion),
        ("speaker", motion),
        ("speaker_frames", pa.list_(pa.binary())),
        ("speaker_audio", pa.list_(pa.int16())),
        ("listener_audio", pa.list_(pa.int16())),
        ("words", pa.list_(_WORD)),
        ("speaker_shape", pa.list_(pa.float32())),
        ("speaker_id", pa.string()),
        ("start", pa.float64()),
        ("past_listener", motion),
        ("past_speaker", motion),
        ("past_speaker_frames", pa.list_(pa.binary())),
        ("past_speaker_audio", pa.list_(pa.int16())),
        ("past_words", pa.list_(_WORD)),
    ]
    metadata = {"layout": layout.to_json(), "schema_version": SCHEMA_VERSION}
    return pa.schema(columns, metadata=metadata)


LABEL_SCHEMA = pa.schema([("clip_id", pa.string()), ("expressed_affect", sequence_type(2))])
CAPTION_SCHEMA = pa.schema(
    [("clip_id", pa.string()), ("listener", pa.string()), ("speaker", pa.string())]
)
RESTS_SCHEMA = pa.schema([("clip_id", pa.string()), ("rest", pa.list_(pa.float32()))])
APPROPRIATE_SCHEMA = pa.schema([("clip_id", pa.string()), ("appropriate", pa.list_(pa.string()))])
_POINT = pa.struct(
    [
        ("time", pa.float32()),
        ("meaning", pa.float32()),
        ("kind", pa.string()),
        ("known", pa.bool_()),
    ]
)
POINTS_SCHEMA = pa.schema([("clip_id", pa.string()), ("points", pa.list_(_POINT))])
TRUTH_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("appropriate_affect", sequence_type(2)),
        ("manner", pa.string()),
        ("style", pa.list_(pa.struct([("trait", pa.string()), ("value", pa.float32())]))),
    ]
)


def sequences_to_arrow(sequences: list[np.ndarray | None], dim: int) -> pa.Array:
    """Put (time, dim) arrays of unequal length, or None, into one column of `sequence_type`."""
    present = [
        np.asarray(array, np.float32).reshape(-1) for array in sequences if array is not None
    ]
    flat = pa.array(np.concatenate(present) if present else np.zeros(0, np.float32), pa.float32())
    return _lists(sequences, pa.FixedSizeListArray.from_arrays(flat, dim))


def audio_to_arrow(signals: list[np.ndarray | None]) -> pa.Array:
    """(samples,) float32 in [-1, 1], or None, as `list<int16>`; louder samples are clipped."""
    present = [
        np.round(np.clip(signal, -1.0, 1.0) * _FULL_SCALE).astype(np.int16)
        for signal in signals
        if signal is not None
    ]
    flat = pa.array(np.concatenate(present) if present else np.zeros(0, np.int16), pa.int16())
    return _lists(signals, flat)


def _lists(arrays: list[np.ndarray | None], values: pa.Array) -> pa.Array:
    """A list column with the lengths of `arrays` over their flattened `values`; None is a null."""
    lengths = [0 if array is None else len(array) for array in arrays]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    absent = pa.array([array is None for array in arrays], pa.bool_())
    return pa.ListArray.from_arrays(offsets, values, mask=absent)


def clips_to_table(clips: list[Clip], layout: Layout) -> pa.Table:
    """Clips of one layout as a table of `clip_schema(layout)`."""
    schema = clip_schema(layout)
    speakers = [_values(clip.speaker) for clip in clips]
    frame_bytes = _frame_encoder()
    frames = [frame_bytes(clip.speaker_frames) for clip in clips]
    words = [_word_rows(clip.words) for clip in clips]
    shapes = [clip.speaker_shape for clip in clips]
    past: dict[str, list] = {
        name: [None if clip.past is None else getattr(clip.past, name) for clip in clips]
        for name in ("listener", "speaker", "speaker_frames", "speaker_audio", "words")
    }
    arrays = [
        pa.array([clip.clip_id for clip in clips], pa.string()),
        pa.array([clip.dyad_id for clip in clips], pa.string()),
        pa.array([clip.split for clip in clips], pa.string()),
        sequences_to_arrow([clip.listener.values for clip in clips], layout.dim),
        sequences_to_arrow(speakers, layout.dim),
        pa.array(frames, schema.field("speaker_frames").type),
        audio_to_arrow([clip.speaker_audio for clip in clips]),
        audio_to_arrow([clip.listener_audio for clip in clips]),
        pa.array(words, schema.field("words").type),
        pa.array(shapes, schema.field("speaker_shape").type),
        pa.array([clip.speaker_id for clip in clips], pa.string()),
        pa.array([clip.start for clip in clips], pa.float64()),
        sequences_to_arrow(list(map(_values, past["listener"])), layout.dim),
        sequences_to_arrow(list(map(_values, past["speaker"])), layout.dim),
        pa.array(list(map(frame_bytes, past["speaker_frames"])), pa.list_(pa.binary())),
        audio_to_arrow(past["speaker_audio"]),
        pa.array(list(map(_word_rows, past["words"])), pa.list_(_WORD)),
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def row_to_clip(
    batch: pa.RecordBatch, row: int, layout: Layout, frame_size: tuple[int, int] | None
) -> Clip:
    """Read one row of a batch of a clip shard.

    Args:
        batch: rows with the columns of `clip_schema(layout)`; a modality may be left out.
        row: which of them.
        layout: of the motion.
        frame_size: height and width of video frames; None where no clip has any.

    Raises:
        LayoutError: the motion is not finite.
    """
    cells = dict.fromkeys(clip_schema(layout).names, pa.scalar(None))
    cells |= {name: batch.column(name)[row] for name in batch.schema.names}
    shape = cells["speaker_shape"]
    return Clip(
        clip_id=cells["clip_id"].as_py(),
        dyad_id=cells["dyad_id"].as_py(),
        split=cells["split"].as_py(),
        listener=Motion(array_of(cells["listener"]), layout),
        speaker=_motion(cells["speaker"], layout),
        speaker_frames=_frames(cells["speaker_frames"], frame_size),
        speaker_audio=_audio(cells["speaker_audio"]),
        listener_audio=_audio(cells["listener_audio"]),
        words=_words(cells["words"]),
        speaker_shape=np.array(shape.values) if shape.is_valid else None,
        speaker_id=cells["speaker_id"].as_py(),
        start=cells["start"].as_py(),
        past=_past(cells, layout, frame_size),
    )


def _past(
    cells: dict[str, pa.Scalar], layout: Layout, frame_size: tuple[int, int] | None
) -> Past | None:
    listener = _motion(cells["past_listener"], layout)
    if listener is None:
        return None
    return Past(
        listener=listener,
        speaker=_motion(cells["past_speaker"], layout),
        speaker_frames=_frames(cells["past_speaker_frames"], frame_size),
        speaker_audio=_audio(cells["past_speaker_audio"]),
        words=_words(cells["past_words"]),
    )


def points_of(cell: pa.ListScalar) -> tuple[Point, ...]:
    """The points of one cell of `POINTS_SCHEMA`."""
    return tuple(Point(**point) for point in cell.as_py())


def _values(motion: Motion | None) -> np.ndarray | None:
    return None if motion is None else motion.values


def _motion(cell: pa.ListScalar, layout: Layout) -> Motion | None:
    return Motion(array_of(cell), layout) if cell.is_valid else None


def array_of(cell: pa.ListScalar) -> np.ndarray:
    """The (time, dim) array of one cell of a sequence column."""
    values = cell.values
    # A copy, because Arrow's own memory is read-only.
    return np.array(values.flatten()).reshape(len(values), values.type.list_size)


def _frame_encoder() -> Callable[[np.ndarray | None], list[bytes] | None]:
    """Encodes frames, those that several clips share once; None stays None."""
    encoded: dict[int, list[bytes]] = {}  # by identity of the array

    def frame_bytes(frames: np.ndarray | None) -> list[bytes] | None:
        if frames is None:
            return None
        if id(frames) not in encoded:
            encoded[id(frames)] = [jpeg(frame) for frame in frames]
        return encoded[id(frames)]

    return frame_bytes


def jpeg(frame: np.ndarray) -> bytes:
    """A frame (height, width, 3) uint8 as a corpus keeps it."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "jpeg", quality=JPEG_QUALITY, subsampling=0)
    return file.getvalue()


def _frames(cell: pa.ListScalar, size: tuple[int, int] | None) -> np.ndarray | None:
    if not cell.is_valid:
        return None
    assert size is not None, "the writer of a corpus with frames notes their size"
    images = [_image(frame.as_py()) for frame in cell.values]
    return np.stack(images).reshape(-1, *size, 3)


# Listeners of one moment saw the same frames, and stand one after the other.
@lru_cache(maxsize=32)
def _image(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def _audio(cell: pa.ListScalar) -> np.ndarray | None:
    return cell.values.to_numpy().astype(np.float32) / _FULL_SCALE if cell.is_valid else None


def _word_rows(words: tuple[Word, ...] | None) -> list[dict] | None:
    if words is None:
        return None
    return [{"text": word.text, "start": word.start, "end": word.end} for word in words]


def _words(cell: pa.ListScalar) -> tuple[Word, ...] | None:
    return tuple(Word(**word) for word in cell.as_py()) if cell.is_valid else None
