"""A clip as an Arrow row and back: fixed-shape columns that plain pyarrow, `datasets` and Ray Data
all read.

Motion is `list<fixed_size_list<float>[dim]>`, the one column type that keeps its shape in all three
readers. An absent modality is a null, never zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rapport.policies.clip import Clip, Word
from rapport.policies.motion import Layout, Motion

SCHEMA_VERSION = "1"
_WORD = pa.struct([("text", pa.string()), ("start", pa.float32()), ("end", pa.float32())])


@dataclass(frozen=True, eq=False)
class Truth:
    """What nothing may train on: the reaction that would have fitted, and how this listener was
    drawn.

    Args:
        appropriate_affect: (time, 2) valence and arousal in [-1, 1].
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
    ]
    metadata = {"layout": layout.to_json(), "schema_version": SCHEMA_VERSION}
    return pa.schema(columns, metadata=metadata)


LABEL_SCHEMA = pa.schema([("clip_id", pa.string()), ("expressed_affect", sequence_type(2))])
TRUTH_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("appropriate_affect", sequence_type(2)),
        ("manner", pa.string()),
        ("style", pa.list_(pa.struct([("trait", pa.string()), ("value", pa.float32())]))),
    ]
)


def sequences_to_arrow(sequences: list[np.ndarray | None], dim: int) -> pa.Array:
    """(time, dim) arrays of unequal length, or None, as one `list<fixed_size_list<float>[dim]>`
    column.
    """
    lengths = [0 if s is None else len(s) for s in sequences]
    present = [np.asarray(s, np.float32).reshape(-1) for s in sequences if s is not None]
    flat = pa.array(np.concatenate(present) if present else np.zeros(0, np.float32), pa.float32())
    values = pa.FixedSizeListArray.from_arrays(flat, dim)
    return _lists(lengths, values, [s is None for s in sequences])


def audio_to_arrow(signals: list[np.ndarray | None]) -> pa.Array:
    """(samples,) float32 in [-1, 1], or None, as `list<int16>`; louder samples are clipped."""
    lengths = [0 if s is None else len(s) for s in signals]
    present = [
        np.round(np.clip(s, -1.0, 1.0) * 32767).astype(np.int16) for s in signals if s is not None
    ]
    flat = pa.array(np.concatenate(present) if present else np.zeros(0, np.int16), pa.int16())
    return _lists(lengths, flat, [s is None for s in signals])


def _lists(lengths: list[int], values: pa.Array, absent: list[bool]) -> pa.Array:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(absent, pa.bool_()))


def clips_to_table(clips: list[Clip], layout: Layout) -> pa.Table:
    """Clips of one layout as a table of `clip_schema(layout)`."""
    schema = clip_schema(layout)
    arrays = [
        pa.array([c.clip_id for c in clips], pa.string()),
        pa.array([c.dyad_id for c in clips], pa.string()),
        pa.array([c.split for c in clips], pa.string()),
        sequences_to_arrow([c.listener.values for c in clips], layout.dim),
        sequences_to_arrow(
            [None if c.speaker is None else c.speaker.values for c in clips], layout.dim
        ),
        pa.array(
            [_frame_bytes(c.speaker_frames) for c in clips], schema.field("speaker_frames").type
        ),
        audio_to_arrow([c.speaker_audio for c in clips]),
        audio_to_arrow([c.listener_audio for c in clips]),
        pa.array([_word_rows(c.words) for c in clips], schema.field("words").type),
        pa.array([c.speaker_shape for c in clips], schema.field("speaker_shape").type),
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def row_to_clip(
    batch: pa.RecordBatch, row: int, layout: Layout, frame_size: tuple[int, int] | None
) -> Clip:
    """Row `row` of a batch read from a clip shard. Raises `LayoutError` when its motion is not
    finite.
    """
    column = {name: batch.column(name)[row] for name in batch.schema.names}
    return Clip(
        clip_id=column["clip_id"].as_py(),
        dyad_id=column["dyad_id"].as_py(),
        split=column["split"].as_py(),
        listener=Motion(array_of(column["listener"]), layout),
        speaker=Motion(array_of(column["speaker"]), layout) if column["speaker"].is_valid else None,
        speaker_frames=_frames(column["speaker_frames"], frame_size),
        speaker_audio=_audio(column["speaker_audio"]),
        listener_audio=_audio(column["listener_audio"]),
        words=tuple(Word(**w) for w in column["words"].as_py())
        if column["words"].is_valid
        else None,
        speaker_shape=np.array(column["speaker_shape"].values)
        if column["speaker_shape"].is_valid
        else None,
    )


def array_of(scalar: pa.ListScalar) -> np.ndarray:
    """The (time, dim) array of one cell of a sequence column, copied: Arrow's own memory is
    read-only.
    """
    values = scalar.values
    return np.array(values.flatten()).reshape(len(values), values.type.list_size)


def _frame_bytes(frames: np.ndarray | None) -> list[bytes] | None:
    return None if frames is None else [np.ascontiguousarray(frame).tobytes() for frame in frames]


def _frames(scalar: pa.ListScalar, size: tuple[int, int] | None) -> np.ndarray | None:
    if not scalar.is_valid:
        return None
    frames = [
        np.frombuffer(frame.as_buffer(), np.uint8).reshape(*size, 3) for frame in scalar.values
    ]
    return np.stack(frames)


def _audio(scalar: pa.ListScalar) -> np.ndarray | None:
    return scalar.values.to_numpy().astype(np.float32) / 32767 if scalar.is_valid else None


def _word_rows(words: tuple[Word, ...] | None) -> list[dict] | None:
    return (
        None if words is None else [{"text": w.text, "start": w.start, "end": w.end} for w in words]
    )
