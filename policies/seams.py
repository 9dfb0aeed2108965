"""Smoothing of the joints between windows, where a face is made window by window.

A smoother is told what was shown last and is given the next window; it changes how the head turns
and where it is, and leaves the face as it is. It holds nothing between windows and reads nothing
later, so it serves a session as it serves a file. Another one is a trained network:
`rapport.policies.posnet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from rapport.policies.motion import Layout, LayoutError, Motion, require_same_layout

# What is smoothed, where a layout has it: how the head turns, and where it is.
TURNS = ("rot", "neck")
PLACE = "trans"


class Smoother(Protocol):
    """Joins a window to what was shown before it."""

    @property
    def memory(self) -> int:
        """How many of the last frames that were shown are read."""

    def __call__(self, shown: Motion | None, window: Motion) -> Motion:
        """The window as it is to be shown, as long as it was.

        Args:
            shown: what was shown last, smoothed: `memory` frames, or fewer where there were not as
                many; None before the first window.
            window: what comes next, at least one frame.

        Raises:
            LayoutError: unlike layouts, or one without a head that turns.
        """


def smooth(motion: Motion, frames: int, smoother: Smoother) -> Motion:
    """A whole motion, window by window, as a session gets it.

    Args:
        motion: to be smoothed.
        frames: of a window; the last one may be shorter.
        smoother: of its joints.

    Raises:
        LayoutError: as of the smoother.
    """
    joints = Joints(smoother)
    done = np.empty_like(motion.values)
    for start in range(0, len(motion), frames):
        end = min(start + frames, len(motion))
        done[start:end] = joints.join(motion.window(start, end - start)).values
    return Motion(done, motion.layout)


@dataclass(eq=False)
class Joints:
    """The joints of one motion that comes window by window.

    Args:
        smoother: joins them; None = nothing does.
        shown: the last frames that were, as many as the smoother reads; None before the first.
    """

    smoother: Smoother | None
    shown: Motion | None = None

    def join(self, window: Motion) -> Motion:
        """What comes next, as it is shown; it may be of no frame.

        Raises:
            LayoutError: as of the smoother.
        """
        if self.smoother is None or not len(window):
            return window
        window = self.smoother(self.shown, window)
        before = [] if self.shown is None else [self.shown.values]
        values = np.concatenate([*before, window.values])
        kept = max(len(values) - self.smoother.memory, 0)
        self.shown = Motion(values[kept:], window.layout)
        return window


def head_groups(layout: Layout) -> list[str]:
    """Groups that say how the head turns and where it is.

    Raises:
        LayoutError: nothing says how it turns.
    """
    turns = [group for group in TURNS if group in layout.names]
    if not turns:
        raise LayoutError(f"no head that turns: none of the groups {list(TURNS)} in {layout}")
    return [*turns, PLACE] if PLACE in layout.names else turns


def head_columns(layout: Layout) -> np.ndarray:
    """Columns of `head_groups`, (channels,).

    Raises:
        LayoutError: nothing says how the head turns.
    """
    return np.concatenate([np.r_[layout.columns(group)] for group in head_groups(layout)])


def with_head(window: Motion, head: np.ndarray) -> Motion:
    """The window with another head, (time, channels) in the order of `head_columns`."""
    values = window.values.copy()
    values[:, head_columns(window.layout)] = head
    return Motion(values, window.layout)


def heads(shown: Motion | None, window: Motion) -> tuple[np.ndarray, np.ndarray]:
    """The head as it was shown and as it comes, (time, channels) float64 each."""
    columns = head_columns(window.layout)
    if shown is None:
        return np.zeros((0, len(columns))), window.values[:, columns].astype(np.float64)
    require_same_layout(shown.layout, window.layout, "smoothing a joint")
    before, after = shown.values[:, columns], window.values[:, columns]
    return before.astype(np.float64), after.astype(np.float64)


@dataclass(frozen=True)
class Unsmoothed:
    """Leaves joints as they are."""

    memory: ClassVar[int] = 0

    def __call__(self, shown: Motion | None, window: Motion) -> Motion:
        """The window itself."""
        heads(shown, window)  # raises as the others do
        return window


@dataclass(frozen=True)
class MovingAverage:
    """The mean of the frames around each one, as far as they are known when the window comes.

    It is not late: the last frames of a window lean on what was before.

    Args:
        frames: that are averaged, an odd number.
    """

    frames: int = 5

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % 2 == 0:
            raise ValueError(f"a moving average of {self.frames} frames has no middle: take an odd")

    @property
    def memory(self) -> int:
        """Frames on one side of the middle."""
        return self.frames // 2

    def __call__(self, shown: Motion | None, window: Motion) -> Motion:
        """See `Smoother`."""
        before, after = heads(shown, window)
        before = before[len(before) - min(len(before), self.memory) :]
        known = np.concatenate([before, after])
        places = len(before) + np.arange(len(after))
        low = np.maximum(places - self.memory, 0)
        high = np.minimum(places + self.memory + 1, len(known))
        sums = np.concatenate([np.zeros((1, known.shape[1])), known.cumsum(axis=0)])
        return with_head(window, (sums[high] - sums[low]) / (high - low)[:, None])


@dataclass(frozen=True)
class Inertialisation:
    """Goes on as the head was moving, and fades what that differs from the window.

    At the joint the head is elsewhere than the window says, and moves otherwise. Both differences
    fade by quintics that have no acceleration at either end, so position and speed go through the
    joint. Nothing is learnt, and what the window does is kept. Rotations are small enough here that
    axis-angles may be added.

    Source: Bollo, "Inertialization: high-performance animation transitions in Gears of War", GDC
    2018.

    Args:
        frames: over which the differences fade; a window may be shorter.
    """

    frames: int = 12
    memory: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"differences cannot fade over {self.frames} frames: 1 or more")

    def __call__(self, shown: Motion | None, window: Motion) -> Motion:
        """See `Smoother`."""
        before, after = heads(shown, window)
        if not len(before):
            return window
        earlier = _before(after)
        offset = before[-1] - earlier[0]
        # A second frame says how fast it moved; without one, as fast as the window does.
        was = before[-2] - earlier[1] if len(before) > 1 else offset
        passed = np.minimum(np.arange(1, len(after) + 1) / self.frames, 1)[:, None]
        fade, glide = quintics(passed)
        return with_head(window, after + fade * offset + glide * self.frames * (offset - was))


def _before(window: np.ndarray) -> np.ndarray:
    """(2, channels) what a window would have done one frame before it begins, and two.

    Along the parabola through its first three frames, so that a motion without a seam is hardly
    touched; through fewer where it has no more.
    """
    count = min(3, len(window))
    parabola = np.polyfit(np.arange(count), window[:count], count - 1)
    before: np.ndarray = np.vander([-1, -2], count) @ parabola
    return before


def quintics(passed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How an offset of 1, and one of 0 with a speed of 1, fade as `passed` goes from 0 to 1.

    Neither has an acceleration at 0; value, speed and acceleration of both are 0 at 1.
    """
    u = passed
    return 1 - 10 * u**3 + 15 * u**4 - 6 * u**5, u - 6 * u**3 + 8 * u**4 - 3 * u**5


# Those that learn nothing.
SMOOTHERS: Mapping[str, Smoother] = {
    "none": Unsmoothed(),
    "average": MovingAverage(),
    "inertialise": Inertialisation(),
}


def with_jumps(
    motion: Motion, frames: int, rng: np.random.Generator, *, scale: np.ndarray, size: float = 0.7
) -> Motion:
    """A motion whose head is somewhere else in each window, as if its windows knew not each other.

    The first window stays where it is.

    Args:
        motion: that has no seams.
        frames: of a window.
        rng: of the jumps.
        scale: (channels,) standard deviation of each of `head_columns`.
        size: how far from its place a window is, standard deviations.
    """
    columns = head_columns(motion.layout)
    count = -(-len(motion) // frames)
    offsets = size * scale * rng.normal(size=(count, len(columns)))
    offsets[0] = 0
    return with_head(
        motion, motion.values[:, columns] + offsets.repeat(frames, axis=0)[: len(motion)]
    )
