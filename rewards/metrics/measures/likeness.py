"""How alike people a crowd of generated listeners moves, by FLAME group: some a lot, some a little.

A deviation of each listener from the recorded one, |std - std'|, is least where everybody moves
like the median person, and so cannot see people being made all alike. Here nobody is paired: what
counts is how amplitudes are distributed over windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rapport.policies.motion import Motion, require_same_layout

SPLITS = 200
# Of people's mean amplitude: who moves less than this share of it counts as moving so much, since
# the logarithm of standing still is -infinity.
STILL = 0.01


def likeness(
    generated: Sequence[Motion],
    recorded: Sequence[Motion],
    counted: Sequence[np.ndarray],
    conversations: Sequence[str],
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Group -> `position` and `velocity`: how far amplitudes are from people's; 1 = as people.

    The amplitude of a window is as in `log_amplitudes`, of positions and of frame-to-frame
    differences. `relative_distance` compares its distribution over windows with people's. A group
    that nobody recorded moves, or whose two halves of people do not differ, is left out.

    Args:
        generated: (time, dim) of each window.
        recorded: likewise, of the same layout.
        counted: (time,) bool of each window, frames that count; two in a row at least three times.
        conversations: of each window: windows of one are of people who are alike, and are never
            parted.
        seed: of the halves.

    Raises:
        LayoutError: unlike layouts.
        ValueError: all windows are of one conversation.
    """
    for motion, other in zip(generated, recorded, strict=True):
        require_same_layout(motion.layout, other.layout, "likeness")
    halves = half_of_people(conversations, seed)
    values: dict[str, dict[str, float]] = {}
    for group in recorded[0].layout.names:
        x = [each.group(group).astype(np.float64) for each in generated]
        y = [each.group(group).astype(np.float64) for each in recorded]
        parts = list(zip(x, y, counted, strict=True))
        kinds = {
            "position": [(a[part], b[part]) for a, b, part in parts],
            "velocity": [(velocities(a, part), velocities(b, part)) for a, b, part in parts],
        }
        for kind, pairs in kinds.items():
            own = np.array([amplitude(a) for a, _ in pairs])
            people = np.array([amplitude(b) for _, b in pairs])
            if not people.any():
                continue
            least = STILL * people.mean()
            distance = relative_distance(
                log_amplitudes(own, least), log_amplitudes(people, least), halves
            )
            if np.isfinite(distance):
                values.setdefault(group, {})[kind] = distance
    return values


def amplitude(values: np.ndarray) -> float:
    """Root mean square over channels of the standard deviations over time (ddof 1).

    Args:
        values: (time, channels), in the unit of the group, which is that of the result.
    """
    return float(np.sqrt(values.var(axis=0, ddof=1).mean()))


def velocities(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """(steps, channels) frame-to-frame differences within the frames that count.

    Args:
        values: (time, channels).
        counted: (time,) bool; no difference reaches across a frame that does not count.
    """
    steps: np.ndarray = np.diff(values, axis=0)[counted[1:] & counted[:-1]]
    return steps


def log_amplitudes(amplitudes: np.ndarray, least: float) -> np.ndarray:
    """Natural logarithms of (windows,) amplitudes, of which none counts as less than `least`."""
    return np.asarray(np.log(np.maximum(amplitudes, least)))


def half_of_people(conversations: Sequence[str], seed: int) -> np.ndarray:
    """(SPLITS, windows) bool: which windows are in the first of two random halves of people.

    Of an odd number of conversations the first half has one less.

    Args:
        conversations: of each window.
        seed: of the halves.

    Raises:
        ValueError: there are fewer than two.
    """
    names, of_window = np.unique(np.asarray(conversations), return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"people are compared with other people: that needs windows of 2 conversations or "
            f"more, got {len(names)}"
        )
    rng = np.random.default_rng(seed)
    ranks = rng.permuted(np.tile(np.arange(len(names)), (SPLITS, 1)), axis=1)
    halves: np.ndarray = (ranks < len(names) // 2)[:, of_window]
    return halves


def relative_distance(x: np.ndarray, people: np.ndarray, halves: np.ndarray) -> float:
    """Distance of a method from people over that of people from other people; 1 = as people.

    Over the same splits, each taken both ways: the method's windows of one half against people's
    of the other, over people's of the one half against people's of the other, by `wasserstein`. So
    both distances are between as many windows of people who have not met, and a method that draws
    from people's distribution has 1 in expectation, however few the windows. NaN where people do
    not differ.

    Args:
        x: (windows,) of a method.
        people: (windows,) of the recorded people, in the same order.
        halves: (splits, windows) bool, see `half_of_people`.
    """
    crossed = wasserstein(x, people, halves, ~halves) + wasserstein(x, people, ~halves, halves)
    # People's distance is the same both ways.
    between_people = 2 * wasserstein(people, people, halves, ~halves)
    total = between_people.sum()
    return float(crossed.sum() / total) if total > 0 else float("nan")


def wasserstein(x: np.ndarray, y: np.ndarray, of_x: np.ndarray, of_y: np.ndarray) -> np.ndarray:
    """(splits,) Wasserstein-1 distances between some of x and some of y.

    That is the area between both empirical distribution functions (Vallender 1974).

    Args:
        x: (n,).
        y: (m,).
        of_x: (splits, n) bool, those of x that count in each split.
        of_y: (splits, m) bool, those of y.
    """
    values = np.concatenate([x, y])
    order = np.argsort(values, kind="stable")
    steps_of_x = of_x / of_x.sum(axis=1, keepdims=True)
    steps_of_y = of_y / of_y.sum(axis=1, keepdims=True)
    steps = np.concatenate([steps_of_x, -steps_of_y], axis=1)[:, order]
    apart = np.abs(np.cumsum(steps, axis=1))[:, :-1]
    distances: np.ndarray = apart @ np.diff(values[order])
    return distances
