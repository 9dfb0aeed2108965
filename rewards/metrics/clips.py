"""Clips as metrics take them: arrays or typed motion, checked once where they come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rapport.policies.motion import LayoutError, Motion, require_same_layout

# (time, dim), (clips, time, dim), or one item a clip.
Clips = np.ndarray | Motion | Sequence[np.ndarray | Motion]
Columns = tuple[tuple[str, int], ...]  # (group, width) in the order of the columns


def as_list(data: Any, what: str) -> list[Any]:
    """One item a clip; a single motion or (time, dim) array becomes a list of one.

    Args:
        data: clips, or None.
        what: the name of the data for error messages, here and below.

    Raises:
        ValueError: None, or no clip.
    """
    if data is None:
        raise ValueError(f"{what} is missing: this protocol needs it")
    if isinstance(data, Motion) or (isinstance(data, np.ndarray) and data.ndim == 2):
        return [data]
    items = list(data)
    if not items:
        raise ValueError(f"{what} has no clip")
    return items


def as_array(clip: np.ndarray | Motion, what: str) -> np.ndarray:
    """The values of a clip, (time, dim) float64.

    Raises:
        ValueError: another shape, or values that are not finite; says where.
    """
    x = np.asarray(clip.values if isinstance(clip, Motion) else clip, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(
            f"{what}: expected an array (time, dim) that is not empty, got shape {x.shape}"
        )
    return finite(x, what)


def finite(x: np.ndarray, what: str) -> np.ndarray:
    """`x` itself.

    Raises:
        ValueError: a value is NaN or infinite; names the first place.
    """
    if not np.isfinite(x).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise ValueError(f"{what} has NaN or infinity, first at frame {place[0]} (index {place})")
    return x


def same_count(items: Sequence[Any], like: Sequence[Any], what: str, like_what: str) -> None:
    """Raise `ValueError` unless there is one clip each."""
    if len(items) != len(like):
        raise ValueError(f"{len(items)} clips in {what} for {len(like)} in {like_what}; one each")


def paired(pred: Clips, target: Clips) -> list[tuple[np.ndarray, np.ndarray]]:
    """(prediction, target) of each clip as arrays of one shape.

    Raises:
        ValueError: unlike numbers of clips, or unlike shapes.
        LayoutError: typed motion of unlike layouts.
    """
    predicted = as_list(pred, "pred")
    recorded = as_list(target, "target")
    same_count(predicted, recorded, what="pred", like_what="target")
    pairs = []
    for index, (x, y) in enumerate(zip(predicted, recorded, strict=True)):
        require_typed_alike(x, y, f"pred against target of clip {index}")
        x = as_array(x, f"pred clip {index}")
        y = as_array(y, f"target clip {index}")
        if x.shape != y.shape:
            raise ValueError(f"clip {index}: pred has shape {x.shape}, target {y.shape}")
        pairs.append((x, y))
    return pairs


def with_partner(
    target: Clips, partner: Sequence[np.ndarray | Motion | None] | Clips | None
) -> list[np.ndarray | None]:
    """The partner of each clip as an array as long as the target; None where there is none.

    Raises:
        ValueError: unlike numbers of clips, or unlike lengths.
        LayoutError: typed motion of unlike layouts.
    """
    recorded = as_list(target, "target")
    if partner is None:
        return [None] * len(recorded)
    partners = as_list(partner, "partner")
    same_count(partners, recorded, what="partner", like_what="target")
    arrays: list[np.ndarray | None] = []
    for index, (s, y) in enumerate(zip(partners, recorded, strict=True)):
        if s is None:
            arrays.append(None)
            continue
        require_typed_alike(s, y, f"partner against target of clip {index}")
        array = as_array(s, f"partner clip {index}")
        if len(array) != len(y):
            raise ValueError(
                f"clip {index}: {len(array)} frames of the partner for {len(y)} of the target"
            )
        arrays.append(array)
    return arrays


def grouped(data: Clips, what: str, columns: Columns) -> list[dict[str, np.ndarray]]:
    """Each clip as group -> (time, width).

    Typed motion is taken apart by its own layout, so its order does not matter. A plain array says
    nothing about its columns: it must have those of `columns`, and a wrong order cannot be noticed.

    Raises:
        ValueError: plain arrays of another width.
    """
    return [
        _groups(clip, f"{what} clip {index}", columns)
        for index, clip in enumerate(as_list(data, what))
    ]


def require_typed_alike(a: Any, b: Any, what: str) -> None:
    """Raise `LayoutError` when both are typed and unlike in layout."""
    if isinstance(a, Motion) and isinstance(b, Motion):
        require_same_layout(a.layout, b.layout, what)


def require_same_face(a: Any, b: Any, what: str) -> None:
    """Raise `LayoutError` when both are typed and of unlike frame rate or topology.

    The order of their groups may differ.
    """
    faces = [(clip.layout.fps, clip.layout.topology) for clip in (a, b) if isinstance(clip, Motion)]
    if len(set(faces)) > 1:
        raise LayoutError(f"{what}: unlike frame rate or topology\n  {a.layout}\n  {b.layout}")


def frame_rate(data: Any, fps: float | None, default: float) -> float:
    """`fps`, or that of typed motion, or `default`.

    Raises:
        ValueError: `fps` is not that of the motion, or not positive.
    """
    first = data if isinstance(data, Motion) else data[0]
    own = first.layout.fps if isinstance(first, Motion) else None
    if fps is not None and own is not None and fps != own:
        raise ValueError(f"fps={fps:g} was given for motion of {own:g} fps")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps={fps} must be positive")
    return fps or own or default


def _groups(clip: np.ndarray | Motion, what: str, columns: Columns) -> dict[str, np.ndarray]:
    x = as_array(clip, what)
    if isinstance(clip, Motion):
        return {name: x[:, clip.layout.columns(name)] for name, _ in columns}
    widths = [width for _, width in columns]
    if x.shape[1] != sum(widths):
        listed = " + ".join(f"{name} {width}" for name, width in columns)
        raise ValueError(
            f"{what} has {x.shape[1]} columns, this protocol takes {sum(widths)}: {listed}"
        )
    parts = np.split(x, np.cumsum(widths)[:-1], axis=1)
    return {name: part for (name, _), part in zip(columns, parts, strict=True)}
