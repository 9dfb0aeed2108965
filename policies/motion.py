"""Typed face motion: an array of coefficients never travels without its layout.

Published corpora disagree silently on the order of expression, rotation and jaw, on the frame rate
and on the face model behind the coefficients. Here a layout names all three; arrays of unlike
layouts cannot be compared, and every conversion is a call that somebody wrote.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np

from rapport.arrays import described, load_named, save_named

Topology = Literal["flame2020", "flame2023", "builtin", "faceverse", "arkit"]

# Eyelids close at 1; every other FLAME group is expression coefficients or axis-angle radians.
GROUPS = ("expr", "jaw", "neck", "eyelid", "eyepose", "rot", "trans")


# Groups in radians about each axis. No tracker turns further than half a turn.
ROTATIONS = ("jaw", "neck", "eyepose", "rot")
HALF_TURN = 3.15


class LayoutError(ValueError):
    """Motion of one layout was used where another is needed."""


@dataclass(frozen=True)
class Layout:
    """What the columns of a motion array mean.

    Args:
        groups: `(name, width)` in column order, names from `GROUPS`.
        fps: frames per second.
        topology: the face model that gives the coefficients their meaning.
    """

    groups: tuple[tuple[str, int], ...]
    fps: float
    topology: Topology

    def __post_init__(self) -> None:
        # A layout read from JSON has lists; as tuples, equal layouts compare equal.
        groups = tuple((str(name), int(width)) for name, width in self.groups)
        object.__setattr__(self, "groups", groups)
        names = self.names
        unknown = [name for name in names if name not in GROUPS]
        if unknown or len(set(names)) != len(names) or not names:
            raise LayoutError(
                f"layout groups {list(names)}: each must be one of {list(GROUPS)}, once"
            )
        if any(width < 1 for _, width in self.groups) or not self.fps > 0:
            raise LayoutError(f"layout {self}: widths and fps must be positive")
        if self.topology not in get_args(Topology):
            raise LayoutError(
                f"unknown topology {self.topology!r}, expected one of {list(get_args(Topology))}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Groups in column order."""
        return tuple(name for name, _ in self.groups)

    @property
    def dim(self) -> int:
        """Number of columns."""
        return sum(width for _, width in self.groups)

    def width(self, group: str) -> int:
        """Columns that a group takes. Raises `LayoutError` when the layout lacks it."""
        columns = self.columns(group)
        return int(columns.stop - columns.start)

    def columns(self, group: str) -> slice:
        """Columns of one group. Raises `LayoutError` when the layout lacks it."""
        start = 0
        for name, width in self.groups:
            if name == group:
                return slice(start, start + width)
            start += width
        raise LayoutError(f"this motion has no group {group!r}, only {list(self.names)} ({self})")

    def subset(self, widths: dict[str, int]) -> Layout:
        """The layout with only these groups, in this order, each cut to its first columns.

        Args:
            widths: how many columns to keep of each group.

        Raises:
            LayoutError: a group is absent or has fewer columns.
        """
        for name, width in widths.items():
            if width > self.width(name):
                raise LayoutError(
                    f"group {name!r} has {self.width(name)} columns here, {width} were asked for"
                )
        return replace(self, groups=tuple(widths.items()))

    def to_json(self) -> str:
        """A text that `from_json` reads."""
        groups = [list(group) for group in self.groups]
        return json.dumps({"groups": groups, "fps": self.fps, "topology": self.topology})

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Read what `to_json` wrote. Raises `LayoutError` when it describes no layout."""
        try:
            return cls(**json.loads(text))
        except LayoutError:
            raise
        except (ValueError, TypeError) as error:
            raise LayoutError(f"{text[:80]!r} describes no layout: {error}") from error

    def __str__(self) -> str:
        groups = " + ".join(f"{name} {width}" for name, width in self.groups)
        return f"{groups} @ {self.fps:g} fps, {self.topology}"


@dataclass(frozen=True, eq=False)
class Motion:
    """A face over time.

    Args:
        values: (time, layout.dim) float32, finite; read-only by convention.
        layout: what the columns mean.
    """

    values: np.ndarray
    layout: Layout

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float32)
        if values.ndim != 2 or values.shape[1] != self.layout.dim:
            raise LayoutError(
                f"motion of shape {values.shape} does not fit (time, {self.layout.dim}): "
                f"{self.layout}"
            )
        if not np.isfinite(values).all():
            frame, column = np.argwhere(~np.isfinite(values))[0]
            raise LayoutError(
                f"motion has NaN or infinity, first at frame {frame}, column {column}; mark it "
                "missing"
            )
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self) / self.layout.fps

    def group(self, name: str) -> np.ndarray:
        """Columns of one group, (time, width)."""
        return self.values[:, self.layout.columns(name)]

    def subset(self, layout: Layout) -> Motion:
        """Only the groups of `layout`, in its order. Frame rate and topology must already agree."""
        if (layout.fps, layout.topology) != (self.layout.fps, self.layout.topology):
            raise LayoutError(
                f"cannot take {layout} out of {self.layout}: frame rate or topology differ"
            )
        self.layout.subset(dict(layout.groups))  # raises when a group is absent or too narrow
        columns = [self.group(name)[:, :width] for name, width in layout.groups]
        return Motion(np.concatenate(columns, axis=1), layout)

    def window(self, start: int, length: int) -> Motion:
        """Frames [start, start + length)."""
        if start < 0 or start + length > len(self):
            raise LayoutError(
                f"window [{start}, {start + length}) reaches outside a motion of {len(self)} frames"
            )
        return Motion(self.values[start : start + length], self.layout)

    def save(self, path: str | Path) -> None:
        """Write an `.npz` of `values` (time, dim) and `layout`, a JSON text."""
        save_named(path, {"values": self.values, "layout": np.array(self.layout.to_json())})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ArrayFileError: there is no such file, or it is damaged.
            LayoutError: what is in it is no motion.
        """
        arrays = load_named(path)
        if arrays.keys() != {"values", "layout"}:
            raise LayoutError(
                f"{path} holds {described(arrays)}: no motion, which is values, layout"
            )
        return cls(arrays["values"], Layout.from_json(str(arrays["layout"])))


def require_radians(motion: Motion) -> None:
    """Raise `LayoutError` when a rotation turns further than half a turn about an axis.

    It is in degrees then, or no rotation. The message names the group and its largest value.
    """
    for name in motion.layout.names:
        if name not in ROTATIONS or not len(motion):
            continue
        size = np.abs(motion.group(name))
        if size.max() > HALF_TURN:
            frame, column = np.unravel_index(int(size.argmax()), size.shape)
            raise LayoutError(
                f"{name} turns by {size.max():.4g} at frame {frame}, column {column}: rotations "
                "are radians, at most 3.14. Are these degrees (numpy.radians) or z-scores?"
            )


def require_same_layout(a: Layout, b: Layout, what: str) -> None:
    """Raise `LayoutError` unless both layouts are the same.

    Args:
        a: one layout.
        b: the other.
        what: what was about to be done with both; the message starts with it.
    """
    if a != b:
        raise LayoutError(
            f"{what}: unlike layouts\n  {a}\n  {b}\nConvert explicitly with Motion.subset or "
            "resample."
        )
