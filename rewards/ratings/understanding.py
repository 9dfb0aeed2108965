"""What raters make of an answer where they understand speech: by points, in time and by sign.

They know what the speaker means by each point, as people do who listen to the words, the face and
the voice together; in one of ten they are mistaken. Whoever holds one expression through a clip
earns nothing by it: half at most of a point of the right sign, and less than nothing of a wrong
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rapport.rewards.ratings.answers import best_level, held, window
from rapport.rewards.ratings.points import Point
from rapport.rewards.ratings.speaker_cues import SpeakerRead
from rapport.rewards.ratings.traits import RaterTraits
from rapport.rewards.smoothing import moving_mean

# All are our choices.
BEYOND_PATIENCE_S = 0.9  # an answer that began within a rater's patience is seen until then
EXPLAINED_S = 5.0  # for so long a point explains an expression
TURN_S = 0.8  # for so long an expression may outlast the point that turned its reason round
OVERSHOOT = 1.7  # from that many times the wanted strength on, an answer is too much
TOLERATED = 0.15  # an expression of that strength needs no reason
PHATIC = 0.35  # and a smile of that one none but the speaker's own
PHATIC_S = 2.0  # the speaker's smile is returned within that time
CALM = 0.6  # empathy of a calm face where nothing asked for any
UNCALLED = 5.0  # weight of expression that nothing asked for
WRONG = 2.5  # weight of an answer of the wrong sign
UNANSWERED = 2.0  # weight of a point that was not answered
SMILE_AT_BAD = 2.0  # times a frown at good news


@dataclass(frozen=True, eq=False)
class Understood:
    """A speaker's points as raters take them, over the frames of a clip.

    Args:
        points: as the speaker means them, in the order of time.
        meant: (raters, points) what each rater takes them to mean, in [-1, 1].
        wanted: (raters, points) how strong an answer each rater wants, 0 or more.
        allowed: (2, raters, time) how strong a smile and how strong a frown has a reason.
        patience: (raters,) seconds.
        fps: frames per second.
    """

    points: Sequence[Point]
    meant: np.ndarray
    wanted: np.ndarray
    allowed: np.ndarray
    patience: np.ndarray
    fps: float

    @classmethod
    def of(
        cls,
        points: Iterable[Point],
        speaker: SpeakerRead,
        felt: np.ndarray | None,
        misread: Mapping[Point, np.ndarray],
        raters: RaterTraits,
        *,
        frames: int,
        fps: float,
    ) -> Understood:
        """What raters make of a speaker whose points are known.

        Args:
            points: of the speaker.
            speaker: as seen and heard.
            felt: (raters, time) affect that they read off face and words, by which they go where
                they are mistaken; None = nothing can be read there, and they want no answer.
            misread: of each point (raters,) bool, who is mistaken.
            raters: who rate.
            frames: of the clip.
            fps: frames per second.
        """
        in_order = sorted(points, key=lambda point: point.time)
        meant = np.zeros((len(raters.gain), len(in_order)))
        lively = np.ones(len(in_order))
        for place, point in enumerate(in_order):
            frame = min(max(round(point.time * fps), 0), frames - 1)
            apparent = 0.0 if felt is None else felt[:, frame]
            meant[:, place] = np.where(misread[point], apparent, point.meaning)
            if speaker.liveliness is not None:
                lively[place] = 0.85 + 0.3 * speaker.liveliness[frame]
        wanted = raters.gain[:, None] * lively * np.abs(meant)
        return cls(
            in_order,
            meant,
            wanted=wanted,
            allowed=_allowed(in_order, meant, wanted, face=speaker.face, frames=frames, fps=fps),
            patience=raters.patience,
            fps=fps,
        )


@dataclass(frozen=True, eq=False)
class Answered:
    """What raters make of a face, before they say how good that is.

    Args:
        given: (raters, points) how strongly each point is answered in the sign that is wanted: the
            mean of level and of rise above what the face holds through the clip, in its best 0.8 s
            from 0.3 s after the point until the rater's patience is over. NaN = that is not in the
            clip, or the point is worth no answer to the rater.
        wrong: (raters, points) mean expression of the wrong sign after each point; at bad news it
            counts twice.
        uncalled: (raters,) mean strength of expression that nothing of the last 5 s explains.
    """

    given: np.ndarray
    wrong: np.ndarray
    uncalled: np.ndarray

    @classmethod
    def of(cls, shown: np.ndarray, speaker: Understood) -> Answered:
        """Of a valence over time, (time,)."""
        smiles = np.maximum(shown - speaker.allowed[0], 0)
        frowns = np.maximum(-shown - speaker.allowed[1], 0)
        return cls(
            _given(shown, speaker),
            wrong=_wrong(shown, speaker),
            uncalled=(smiles + frowns).mean(axis=1),
        )


def empathy_of_points(answered: Answered, speaker: Understood) -> np.ndarray:
    """Whether the points were answered in time, with the right sign, strongly enough, (raters,).

    In [0, 1]; a point counts by how much it means. Where a rater sees no point to answer, a calm
    face gets `CALM`.
    """
    counts = ~np.isnan(answered.given)
    times = np.where(counts, answered.given, 0) / np.where(counts, speaker.wanted, 1)
    credit = np.clip(times, 0, 1) * np.exp(-np.maximum(times - OVERSHOOT, 0))
    weight = np.where(counts, np.abs(speaker.meant), 0)
    total = weight.sum(axis=1)
    of_points = (weight * credit).sum(axis=1) / np.where(total > 0, total, 1)
    calm = CALM * np.exp(-UNCALLED * answered.uncalled)
    empathy: np.ndarray = np.where(total > 0, of_points, calm)
    return empathy


def appropriateness_of_points(answered: Answered, speaker: Understood) -> np.ndarray:
    """Whether what is shown has a reason, and what asked for an answer has one, (raters,).

    In [0, 1].
    """
    counts = ~np.isnan(answered.given)
    number = np.maximum(counts.sum(axis=1), 1)
    lacking = np.maximum(0.6 * speaker.wanted - np.where(counts, answered.given, 0), 0)
    missed = np.where(counts, lacking, 0).sum(axis=1) / number
    wrong = np.where(counts, answered.wrong, 0).sum(axis=1) / number
    fit: np.ndarray = np.exp(-(UNCALLED * answered.uncalled + WRONG * wrong + UNANSWERED * missed))
    return fit


def _allowed(
    points: Sequence[Point],
    meant: np.ndarray,
    wanted: np.ndarray,
    face: np.ndarray | None,
    *,
    frames: int,
    fps: float,
) -> np.ndarray:
    """How strong a smile and how strong a frown has a reason, (2, raters, time).

    A point explains what it asks for, and some more, for 5 s or until the next point of the other
    sign has had time to be taken in. A speaker's smile, beyond a resting one, may be returned.
    """
    clock = np.arange(frames)
    allowed = np.full((2, len(meant), frames), TOLERATED)
    if face is not None:
        smiles = (face - held(face, fps) > TOLERATED).astype(float)
        allowed[0, :, moving_mean(smiles, PHATIC_S * fps) > 0.1] = PHATIC
    starts = [point.time * fps for point in points]
    for r in range(len(meant)):
        for p, start in enumerate(starts):
            turned = [
                later + TURN_S * fps
                for q, later in enumerate(starts)
                if q > p and meant[r, q] * meant[r, p] < 0
            ]
            end = min([start + EXPLAINED_S * fps, *turned])
            explained = (clock >= start) & (clock < end)
            of_sign = allowed[0 if meant[r, p] > 0 else 1, r]
            of_sign[explained] = np.maximum(of_sign[explained], OVERSHOOT * wanted[r, p])
    return allowed


def _given(shown: np.ndarray, speaker: Understood) -> np.ndarray:
    """See `Answered.given`."""
    beyond = shown - held(shown, speaker.fps)
    given = np.full(speaker.meant.shape, np.nan)
    for p, point in enumerate(speaker.points):
        for r, patience in enumerate(speaker.patience):
            end_s = patience + BEYOND_PATIENCE_S
            frames = window(point, len(shown), speaker.fps, end_s=end_s)
            if frames is None or speaker.wanted[r, p] <= TOLERATED:
                continue
            sign = np.sign(speaker.meant[r, p])
            level = best_level(sign * shown[frames], speaker.fps)
            rise = best_level(sign * beyond[frames], speaker.fps)
            given[r, p] = (level + rise) / 2
    return given


def _wrong(shown: np.ndarray, speaker: Understood) -> np.ndarray:
    """See `Answered.wrong`.

    From when an earlier expression had time to turn until the moment is over, or the next point of
    the other sign is made.
    """
    wrong = np.zeros(speaker.meant.shape)
    for r, meant in enumerate(speaker.meant):
        for p, point in enumerate(speaker.points):
            after = [
                later.time
                for q, later in enumerate(speaker.points)
                if q > p and meant[q] * meant[p] < 0
            ]
            end = min([point.time + EXPLAINED_S / 2, *after])
            begin = max(round((point.time + TURN_S) * speaker.fps), 0)
            seen = shown[begin : max(round(end * speaker.fps), 0)]
            if len(seen):
                cost = SMILE_AT_BAD if meant[p] < 0 else 1.0
                wrong[r, p] = cost * np.mean(np.maximum(-np.sign(meant[p]) * seen, 0))
    return wrong
