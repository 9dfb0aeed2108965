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
    """A speaker's points as raters take them.

    Args:
        points: as the speaker means them, in the order of time.
        meant: (raters, points) what each rater takes them to mean, in [-1, 1].
        face: (time,) valence of the speaker's face beyond what it holds; None = it is not seen.
        liveliness: (time,) of the voice, see `SpeakerRead`; None = it is not heard.
    """

    points: Sequence[Point]
    meant: np.ndarray
    face: np.ndarray | None
    liveliness: np.ndarray | None

    @classmethod
    def of(
        cls,
        points: Iterable[Point],
        raters: int,
        speaker: SpeakerRead,
        felt: np.ndarray | None,
        misread: Mapping[Point, np.ndarray],
        fps: float,
    ) -> Understood:
        """What raters make of a speaker whose points are known.

        Args:
            points: of the speaker.
            raters: how many.
            speaker: as seen and heard.
            felt: (raters, time) affect that they read off face and words, by which they go where
                they are mistaken; None = nothing can be read there, and they want no answer.
            misread: of each point (raters,) bool, who is mistaken.
            fps: frames per second.
        """
        in_order = sorted(points, key=lambda point: point.time)
        meant = np.zeros((raters, len(in_order)))
        for place, point in enumerate(in_order):
            apparent: np.ndarray | float = 0.0
            if felt is not None:
                apparent = felt[:, min(max(round(point.time * fps), 0), felt.shape[1] - 1)]
            meant[:, place] = np.where(misread[point], apparent, point.meaning)
        face = speaker.face
        if face is not None:
            face = face - held(face, fps)
        return cls(in_order, meant, face=face, liveliness=speaker.liveliness)

    def wanted(self, raters: RaterTraits, fps: float) -> np.ndarray:
        """Strength of the answer that each rater wants to each point, (raters, points)."""
        strength: np.ndarray = raters.gain[:, None] * np.abs(self.meant)
        if self.liveliness is not None and len(self.points):
            frames = [round(point.time * fps) for point in self.points]
            lively = self.liveliness[np.clip(frames, 0, len(self.liveliness) - 1)]
            strength = strength * (0.85 + 0.3 * lively)
        return strength


def empathy_of_points(
    shown: np.ndarray, speaker: Understood, raters: RaterTraits, fps: float
) -> np.ndarray:
    """Whether the points were answered in time, with the right sign, strongly enough, (raters,).

    In [0, 1]; a point counts by how much it means. Where a rater sees no point to answer, a calm
    face gets `CALM`.

    Args:
        shown: (time,) valence of the listener's face.
        speaker: as understood.
        raters: who rate.
        fps: frames per second.
    """
    given = strengths(shown, speaker, raters, fps=fps)
    wanted = speaker.wanted(raters, fps)
    # What is worth no answer is no point to a rater.
    counts = ~np.isnan(given) & (wanted > TOLERATED)
    times = np.where(counts, given, 0) / np.where(counts, wanted, 1)
    credit = np.clip(times, 0, 1) * np.exp(-np.maximum(times - OVERSHOOT, 0))
    weight = np.where(counts, np.abs(speaker.meant), 0)
    total = weight.sum(axis=1)
    answered = (weight * credit).sum(axis=1) / np.where(total > 0, total, 1)
    calm = CALM * np.exp(-UNCALLED * uncalled(shown, speaker, raters, fps=fps))
    empathy: np.ndarray = np.where(total > 0, answered, calm)
    return empathy


def appropriateness_of_points(
    shown: np.ndarray, speaker: Understood, raters: RaterTraits, fps: float
) -> np.ndarray:
    """Whether what is shown has a reason, and what asked for an answer has one, (raters,).

    In [0, 1]. Arguments as of `empathy_of_points`.
    """
    given = strengths(shown, speaker, raters, fps=fps)
    wanted = speaker.wanted(raters, fps)
    counts = ~np.isnan(given) & (wanted > TOLERATED)
    number = np.maximum(counts.sum(axis=1), 1)
    missed = np.where(counts, np.maximum(0.6 * wanted - given, 0), 0).sum(axis=1) / number
    wrong = np.where(counts, _wrong(shown, speaker, fps), 0).sum(axis=1) / number
    excess = uncalled(shown, speaker, raters, fps=fps)
    fit: np.ndarray = np.exp(-(UNCALLED * excess + WRONG * wrong + UNANSWERED * missed))
    return fit


def strengths(
    shown: np.ndarray, speaker: Understood, raters: RaterTraits, fps: float
) -> np.ndarray:
    """How strongly each point is answered in the sign that each rater wants, (raters, points).

    The mean of level and of rise above what the face holds through the clip, in its best 0.8 s from
    0.3 s after the point until the rater's patience is over. NaN = that is not in the clip.
    """
    beyond = shown - held(shown, fps)
    given = np.full(speaker.meant.shape, np.nan)
    for p, point in enumerate(speaker.points):
        for r, patience in enumerate(raters.patience):
            frames = window(point, len(shown), fps, end_s=patience + BEYOND_PATIENCE_S)
            if frames is not None:
                sign = np.sign(speaker.meant[r, p])
                level = best_level(sign * shown[frames], fps)
                rise = best_level(sign * beyond[frames], fps)
                given[r, p] = (level + rise) / 2
    return given


def uncalled(shown: np.ndarray, speaker: Understood, raters: RaterTraits, fps: float) -> np.ndarray:
    """Mean strength of expression that no point of the last 5 s explains, (raters,)."""
    frames = np.arange(len(shown))
    allowed = np.full((2, len(raters.gain), len(shown)), TOLERATED)  # smiles and frowns
    if speaker.face is not None:
        # A smile may be returned.
        smiled = moving_mean((speaker.face > TOLERATED).astype(float), PHATIC_S * fps) > 0.1
        allowed[0, :, smiled] = PHATIC
    strength = OVERSHOOT * speaker.wanted(raters, fps)
    starts = [point.time * fps for point in speaker.points]
    for r in range(len(raters.gain)):
        for p, start in enumerate(starts):
            meant = speaker.meant[r, p]
            turned = [
                starts[q] + TURN_S * fps
                for q in range(p + 1, len(starts))
                if speaker.meant[r, q] * meant < 0
            ]
            end = min([start + EXPLAINED_S * fps, *turned])
            explained = (frames >= start) & (frames < end)
            sort = 0 if meant > 0 else 1
            allowed[sort, r, explained] = np.maximum(allowed[sort, r, explained], strength[r, p])
    smiles = np.maximum(shown - allowed[0], 0)
    frowns = np.maximum(-shown - allowed[1], 0)
    excess: np.ndarray = (smiles + frowns).mean(axis=1)
    return excess


def _wrong(shown: np.ndarray, speaker: Understood, fps: float) -> np.ndarray:
    """Expression of the wrong sign after each point, (raters, points).

    From when an earlier expression had time to turn until the moment is over, or the next point of
    the other sign is made. A smile at bad news counts twice a frown at good news.
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
            begin = max(round((point.time + TURN_S) * fps), 0)
            seen = shown[begin : max(round(end * fps), 0)]
            if len(seen):
                cost = SMILE_AT_BAD if meant[p] < 0 else 1.0
                wrong[r, p] = cost * np.mean(np.maximum(-np.sign(meant[p]) * seen, 0))
    return wrong
