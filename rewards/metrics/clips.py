"""Clips as metrics take them: arrays or typed motion, checked once where they come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rapport.policies.motion import Layout, LayoutError, Motion, require_same_layout

Clips = (
    np.ndarray | Motion | Sequence[np.ndarray | Motion]
)  # (time, dim), (clips, time, dim), or one item a clip
Order = tuple[tuple[str, int], ...]  # (group, width) in the order of the columns


def as_list(data: Any, what: str) -> list[Any]:
    """One item a clip: a single motion or (time, dim) array is a list of one."""
    if data is None:
        raise ValueError(f"{what} is missing: this protocol needs it")
    if isinstance(data, Motion) or (isinstance(data, np.ndarray) and data.ndim == 2):
        return [data]
    items = list(data)
    if not items:
        raise ValueError(f"{what} has no clip")
    return items


def as_array(clip: np.ndarray | Motion, what: str) -> np.ndarray:
    """(time, dim) float64. Raises `ValueError` on another shape or on values that are not finite,
    saying where.
    """
    x = np.asarray(clip.values if isinstance(clip, Motion) else clip, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(
            f"{what}: expected an array (time, dim) that is not empty, got shape {x.shape}"
        )
    return finite(x, what)


def finite(x: np.ndarray, what: str) -> np.ndarray:
    """`x` itself. Raises `ValueError` naming the first place that is NaN or infinite."""
    if not np.isfinite(x).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise ValueError(f"{what} has NaN or infinity, first at frame {place[0]} (index {place})")
    return x


def same_count(items: Sequence[Any], like: Sequence[Any], what: str, like_what: str) -> None:
    """Raise `ValueError` unless there is one clip each."""
    if len(items) != len(like):
        raise ValueError(f"{len(items)} clips in {what} for {len(like)} in {like_what}; one each")


def paired(pred: Clips, target: Clips) -> list[tuple[np.ndarray, np.ndarray]]:
    """(prediction, target) of each clip as arrays of one shape. Typed motion must agree in layout."""
    pred, target = as_list(pred, "pred"), as_list(target, "target")
    same_count(pred, target, "pred", "target")
    return [
        _pair(x, y, "pred", "target", index)
        for index, (x, y) in enumerate(zip(pred, target, strict=True))
    ]


def with_partner(
    target: Clips, partner: Sequence[np.ndarray | Motion | None] | Clips | None
) -> list[np.ndarray | None]:
    """The partner of each clip as an array as long as the target; None where there is none."""
    target = as_list(target, "target")
    if partner is None:
        return [None] * len(target)
    partner = as_list(partner, "partner")
    same_count(partner, target, "partner", "target")
    arrays: list[np.ndarray | None] = []
    for index, (s, y) in enumerate(zip(partner, target, strict=True)):
        if s is None:
            arrays.append(None)
            continue
        require_typed_alike(s, y, f"partner against target of clip {index}")
        arrays.append(as_array(s, f"partner clip {index}"))
        if len(arrays[-1]) != len(y):
            raise ValueError(
                f"clip {index}: {len(arrays[-1])} frames of the partner for {len(y)} of the target"
            )
    return arrays


def grouped(data: Clips, what: str, order: Order) -> list[dict[str, np.ndarray]]:
    """Each clip as group -> (time, width).

    Typed motion is taken apart by its own layout, so its order does not matter. A plain array says
    nothing about its columns: it must have those of `order`, and a wrong order cannot be noticed.
    """
    return [
        _groups(clip, f"{what} clip {index}", order)
        for index, clip in enumerate(as_list(data, what))
    ]


def require_typed_alike(a: Any, b: Any, what: str) -> None:
    """Raise `LayoutError` when both are typed and unlike in layout."""
    if isinstance(a, Motion) and isinstance(b, Motion):
        require_same_layout(a.layout, b.layout, what)


def require_same_face(a: Any, b: Any, what: str) -> None:
    """Raise `LayoutError` when both are typed and of unlike frame rate or topology; the order of
    groups may differ.
    """
    faces = [(clip.layout.fps, clip.layout.topology) for clip in (a, b) if isinstance(clip, Motion)]
    if len(set(faces)) > 1:
        raise LayoutError(f"{what}: unlike frame rate or topology\n  {a.layout}\n  {b.layout}")


def frame_rate(data: Any, fps: float | None, default: float) -> float:
    """`fps`, or that of typed motion, or `default`. Raises `ValueError` when the first two
    disagree.
    """
    first = data if isinstance(data, Motion) else data[0]
    layout: Layout | None = first.layout if isinstance(first, Motion) else None
    if fps is not None and layout is not None and fps != layout.fps:
        raise ValueError(f"fps={fps:g} was given for motion of {layout.fps:g} fps")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps={fps} must be positive")
    return fps or (layout.fps if layout else default)


def _pair(x: Any, y: Any, what: str, like: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    require_typed_alike(x, y, f"{what} against {like} of clip {index}")
    a, b = as_array(x, f"{what} clip {index}"), as_array(y, f"{like} clip {index}")
    if a.shape != b.shape:
        raise ValueError(f"clip {index}: {what} has shape {a.shape}, {like} {b.shape}")
    return a, b


def _groups(clip: np.ndarray | Motion, what: str, order: Order) -> dict[str, np.ndarray]:
    x = as_array(clip, what)
    if isinstance(clip, Motion):
        return {name: x[:, clip.layout.columns(name)] for name, _ in order}
    widths = [width for _, width in order]
    if x.shape[1] != sum(widths):
        columns = " + ".join(f"{name} {width}" for name, width in order)
        raise ValueError(
            f"{what} has {x.shape[1]} columns, this protocol takes {sum(widths)}: {columns}"
        )
    return dict(
        zip((name for name, _ in order), np.split(x, np.cumsum(widths)[:-1], axis=1), strict=True)
    )
