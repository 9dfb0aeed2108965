"""Whether a listener's face answers the points that a speaker makes, by what is seen of it.

A point is answered from 0.3 s after it has been made, when a person can have understood, to 2.5 s,
when the moment is over. What counts is the valence that the face shows beyond what it holds through
the whole clip: somebody who smiles whatever is said answers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rapport.rewards.ratings.points import Point
from rapport.rewards.smoothing import moving_mean

ANSWER_S = (0.3, 2.5)  # from the point to the begin and the end of its answer
INSIDE_S = 1.2  # of that, at least, must lie inside the clip for the answer to be judged
BEST_S = 0.8  # an expression is taken in within about that time
HELD_S = 0.4  # shorter moments in which an expression is dropped are not seen
THRESHOLD = 0.1  # displayed valence that counts as an answer


@dataclass(frozen=True)
class Answer:
    """What became of one point.

    Args:
        point: what was meant.
        right: 1 = answered with the right sign, 0 = with the wrong one, .5 = not answered.
    """

    point: Point
    right: float


def answers(shown: np.ndarray, points: Iterable[Point], fps: float) -> list[Answer]:
    """What became of the points whose answer can be judged in a clip.

    Args:
        shown: (time,) valence of the listener's face (`visible.displayed_valence`).
        points: of the speaker, in seconds from the start of `shown`; those that mean nothing ask
            for no answer.
        fps: frames per second.
    """
    beyond = shown - held(shown, fps)
    judged = []
    for point in points:
        frames = window(point, len(shown), fps)
        if frames is None or point.meaning == 0:
            continue
        glad = best_level(beyond[frames], fps)
        sorry = best_level(-beyond[frames], fps)
        right = 0.5
        if max(glad, sorry) > THRESHOLD:
            right = float((glad > sorry) == (point.meaning > 0))
        judged.append(Answer(point, right))
    return judged


def fits(judged: Sequence[Answer], least: float = 0.7) -> bool:
    """Whether a listener fits a speaker: at least that share answered right, and none wrong.

    Everybody fits who is asked nothing.
    """
    rights = [answer.right for answer in judged]
    return 0.0 not in rights and rights.count(1.0) >= least * len(rights)


def window(
    point: Point, frames: int, fps: float, end_s: float = ANSWER_S[1], begin_s: float = ANSWER_S[0]
) -> slice | None:
    """The frames of a clip in which a point is answered; None where too few of them are in it.

    Args:
        point: of the speaker.
        frames: of the clip.
        fps: frames per second.
        end_s: from the point to the end of its answer.
        begin_s: from the point to the begin of its answer.
    """
    begin = max(round((point.time + begin_s) * fps), 0)
    end = min(round((point.time + end_s) * fps), frames)
    return slice(begin, end) if end - begin >= round(INSIDE_S * fps) else None


def held(shown: np.ndarray, fps: float) -> float:
    """The valence that a face never drops in a clip: of one that passes through neutral, 0.

    Args:
        shown: (time,) valence.
        fps: frames per second.
    """
    steady = moving_mean(shown, HELD_S * fps)
    return float(max(steady.min(), 0.0) + min(steady.max(), 0.0))


def best_level(shown: np.ndarray, fps: float) -> float:
    """The highest mean over `BEST_S` within some frames (time,)."""
    width = min(max(round(BEST_S * fps), 1), len(shown))
    sums = np.concatenate([[0.0], np.cumsum(shown, dtype=np.float64)])
    return float(np.max(sums[width:] - sums[:-width]) / width)
