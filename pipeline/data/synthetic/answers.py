"""Whether a listener answered what was meant."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rapport.rewards.ratings.points import Point

FIRST_S, LAST_S = 0.3, 2.5  # when an answer shows, seconds after the point
BEST_S = 0.8  # it is the best so long that counts
FEWEST_S = 1.2  # of the window must lie in the clip
ENOUGH = 0.1  # valence shown
MOSTLY = 0.7  # share of the points that a fitting listener answers right


def answered(shown: np.ndarray, points: Sequence[Point], fps: float) -> list[float | None]:
    """How each point was answered.

    The level of an answer is the mean of the best `BEST_S` between `FIRST_S` and `LAST_S` after the
    point, of glad or sorry, whichever is more.

    Args:
        shown: (time,) valence that the listener shows, in [-1, 1].
        points: in seconds from its first frame.
        fps: frames per second.

    Returns:
        For each point 1 = with the right sign, 0.5 = not, 0 = with the wrong sign, None = its
        window lies outside.
    """
    answers: list[float | None] = []
    for point in points:
        first = max(round((point.time + FIRST_S) * fps), 0)
        last = min(round((point.time + LAST_S) * fps), len(shown))
        if last - first < round(FEWEST_S * fps):
            answers.append(None)
            continue
        window = np.sign(point.meaning) * shown[first:last]
        length = round(BEST_S * fps)
        means = np.convolve(window, np.full(length, 1 / length), mode="valid")
        right = means.max()
        wrong = -means.min()
        if max(right, wrong) < ENOUGH:
            answers.append(0.5)
        else:
            answers.append(1.0 if right > wrong else 0.0)
    return answers


def fits(shown: np.ndarray, points: Sequence[Point], fps: float) -> bool:
    """Whether a listener fits a speaker: right at most points, wrong at none.

    Args:
        shown: (time,) valence that the listener shows.
        points: of the speaker.
        fps: frames per second.
    """
    asked = [answer for answer in answered(shown, points, fps) if answer is not None]
    return not asked or (min(asked) > 0 and np.mean(np.array(asked) == 1) >= MOSTLY)
