"""How smooth a motion is that was made window by window, and what its smoothness cost.

In units of motion, group by group. A motion is smooth if it does not jump at the joints of its
windows (`jump`) and trembles no more than another one (`jerk_ratio`). None of that says whether
it still moves: a head that stands still has no joints. So a smoother is good that brings `jump` to
1 and `jerk_ratio` down, and leaves `path_ratio` and both variances where they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from rapport.policies.motion import Motion, require_same_layout
from rapport.rewards.metrics.measures.flame_groups import FEWEST, ratio


def seams(
    motions: Sequence[Motion], reference: Sequence[Motion], frames: int, groups: Sequence[str]
) -> dict[str, float]:
    """Metrics `NAME/GROUP`.

    - `jump`: mean step over the joints of windows, over the mean step elsewhere in the same motion;
      1 = seamless. A step is the length of the first difference. A motion that trembles everywhere
      has a small one, which `jerk_ratio` tells.
    - `jerk_ratio`: root mean square of the third difference, over the reference's.
    - `path_ratio`: sum of all steps, over the reference's.
    - `variance_within`: variance within windows, about the mean of each, over the reference's.
    - `variance_ratio`: variance over time, about the mean of each motion, over the reference's.

    Sums over motions and channels are divided, so that a motion that hardly moves has no say. NaN
    where there is nothing to divide by: no joint, nothing that moves.

    Args:
        motions: (time, dim) each, cut in windows from its first frame on.
        reference: the same heads as recorded, or before they were smoothed; as long.
        frames: of a window.
        groups: of the layout.

    Raises:
        LayoutError: unlike layouts, or one that lacks a group.
        ValueError: motions of other lengths than their references, or fewer than 4 frames.
    """
    for motion, other in zip(motions, reference, strict=True):
        require_same_layout(motion.layout, other.layout, "smoothness")
        if len(motion) != len(other) or len(motion) < FEWEST:
            raise ValueError(
                f"a motion of {len(motion)} frames beside a reference of {len(other)}: they must "
                f"be as long, and have {FEWEST} frames or more"
            )
    values: dict[str, float] = {}
    for group in groups:
        x = [motion.group(group).astype(np.float64) for motion in motions]
        y = [motion.group(group).astype(np.float64) for motion in reference]
        values |= {
            f"jump/{group}": jump(x, frames),
            f"jerk_ratio/{group}": float(np.sqrt(ratio(_jerk(x), _jerk(y)))),
            f"path_ratio/{group}": ratio(_path(x), _path(y)),
            f"variance_within/{group}": ratio(_within(x, frames), _within(y, frames)),
            f"variance_ratio/{group}": ratio(_variance(x), _variance(y)),
        }
    return values


def jump(clips: Iterable[np.ndarray], frames: int) -> float:
    """Mean step over joints over the mean step elsewhere.

    NaN without a joint or a frame elsewhere, or where nothing moves; infinite where only joints do.

    Args:
        clips: (time, channels) each.
        frames: of a window; step t leads from frame t to t + 1, so it is over a joint where t + 1
            is a multiple of it.
    """
    over: list[np.ndarray] = []
    elsewhere: list[np.ndarray] = []
    for clip in clips:
        steps = _steps(clip)
        joint = np.arange(1, len(clip)) % frames == 0
        over.append(steps[joint])
        elsewhere.append(steps[~joint])
    at_joints, others = np.concatenate(over), np.concatenate(elsewhere)
    if not len(at_joints) or not len(others):
        return float("nan")
    if not others.any():
        return float("inf") if at_joints.any() else float("nan")
    return float(at_joints.mean() / others.mean())


def _steps(clip: np.ndarray) -> np.ndarray:
    """Length of each step, (time - 1,)."""
    return np.asarray(np.linalg.norm(np.diff(clip, axis=0), axis=1))


def _path(clips: Iterable[np.ndarray]) -> float:
    return float(sum(_steps(clip).sum() for clip in clips))


def _jerk(clips: Iterable[np.ndarray]) -> float:
    return float(sum(np.square(np.diff(clip, n=3, axis=0)).sum() for clip in clips))


def _variance(clips: Iterable[np.ndarray]) -> float:
    """Sum of squares about the mean of each clip."""
    return float(sum(np.square(clip - clip.mean(axis=0)).sum() for clip in clips))


def _within(clips: Iterable[np.ndarray], frames: int) -> float:
    """Sum of squares about the mean of each window."""
    windows = (
        clip[start : start + frames] for clip in clips for start in range(0, len(clip), frames)
    )
    return _variance(windows)
