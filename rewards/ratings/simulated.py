"""SIMULATED raters: stand-ins for people where no ratings are at hand, called simulated everywhere.

They see what a person in front of the side-by-side video could see: landmarks of the rendered
listener, never coefficients. Of the speaker they see the face and hear words and voice. Where a
corpus says what its speakers mean (the synthetic one), they understand speech as people do: they
are told the meaning of every point, and misread one of ten. Elsewhere they understand no speech,
and go by the face and by a lexicon. Each differs in what they expect, in leniency, in how they use
the scale and in how steady their hand is. They are a model of ours, not of any published panel:
they show that the pipeline follows a preference, and say nothing about people's opinion of a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from rapport.rewards.ratings.following import (
    appropriateness,
    empathy,
    expected_valence,
    perceived_valence,
    responsiveness,
)
from rapport.rewards.ratings.points import Point
from rapport.rewards.ratings.presence import engagement, naturalness
from rapport.rewards.ratings.ratings import CRITERIA, HIGHEST, LOWEST, Rating
from rapport.rewards.ratings.speaker_cues import SpeakerCues, SpeakerRead, read_speaker
from rapport.rewards.ratings.traits import RaterTraits, draw_raters
from rapport.rewards.ratings.understanding import (
    Answered,
    Understood,
    appropriateness_of_points,
    empathy_of_points,
)
from rapport.rewards.ratings.visible import VisibleMotion, displayed_valence

MISREAD = 0.1  # share of points that a rater takes for what face and words seem to say


class SimulatedPanel:
    """A panel of simulated raters.

    The same seed, rater, prompt and candidate give the same rating, in whatever order or company.

    Args:
        raters: how many; their names are simulated-0, simulated-1, ...
        seed: of who they are and of their noise.
        lexicon: word -> valence in [-1, 1], what words mean to them; without it they do not
            understand speech.

    Raises:
        ValueError: a panel of nobody.
    """

    def __init__(
        self, raters: int = 5, seed: int = 0, lexicon: Mapping[str, float] | None = None
    ) -> None:
        if raters < 1:
            raise ValueError(f"a panel of {raters} raters rates nothing")
        self.raters = raters
        self.seed = seed
        self.lexicon = dict(lexicon or {})
        self.traits = draw_raters(raters, seed)

    def rate(
        self, prompt_id: str, speaker: SpeakerCues, candidates: Mapping[str, VisibleMotion | None]
    ) -> list[Rating]:
        """Every rater's opinion of every candidate, whole numbers 1 to 5.

        Empathy and appropriateness are missing, not guessed, where the speaker's affect or the
        listener's expression cannot be seen; naturalness and engagement are judged without them.

        Args:
            prompt_id: what the candidates react to.
            speaker: what is seen and heard of the speaker.
            candidates: candidate id -> what is seen of it. None (not rendered) gets ratings with
                every criterion missing.
        """
        [ratings] = self.rate_beside(prompt_id, [speaker], candidates)
        return ratings

    def rate_beside(
        self,
        prompt_id: str,
        speakers: Iterable[SpeakerCues],
        candidates: Mapping[str, VisibleMotion | None],
    ) -> list[list[Rating]]:
        """The same beside each of some speakers, with the same hand: only the speaker differs.

        Args:
            prompt_id: what the candidates react to.
            speakers: what is seen and heard of each.
            candidates: as of `rate`.
        """
        looks = {
            candidate: Looks.of(listener)
            for candidate, listener in candidates.items()
            if listener is not None
        }
        opinions = []
        for speaker in speakers:
            # Candidates of one length share what the raters make of the speaker.
            takes: dict[tuple[int, float], Taken] = {}
            ratings = []
            for candidate_id in candidates:
                latent = np.full((self.raters, len(CRITERIA)), np.nan)
                if candidate_id in looks:
                    listener = looks[candidate_id].listener
                    length = (len(listener), listener.fps)
                    if length not in takes:
                        takes[length] = self._take(speaker, *length)
                    latent = impressions(looks[candidate_id], takes[length], self.traits)
                for index, grades in enumerate(self._grades(latent, prompt_id, candidate_id)):
                    rating = Rating(prompt_id, candidate_id, f"simulated-{index}", **grades)
                    ratings.append(rating)
            opinions.append(ratings)
        return opinions

    def _take(self, speaker: SpeakerCues, frames: int, fps: float) -> Taken:
        """What each rater makes of the speaker, over the frames of a listener."""
        read = read_speaker(speaker, self.lexicon, frames=frames, fps=fps)
        felt = perceived_valence(read, self.traits) if read.has_affect else None
        if speaker.points is None:
            return Taken(read, felt)
        misread = {
            point: np.array(
                [_misreads(self.seed, rater, speaker.name, point) for rater in range(self.raters)]
            )
            for point in speaker.points
        }
        understood = Understood.of(
            speaker.points,
            read,
            felt=felt,
            misread=misread,
            raters=self.traits,
            frames=frames,
            fps=fps,
        )
        return Taken(read, felt, understood)

    def _grades(
        self, latent: np.ndarray, prompt_id: str, candidate_id: str
    ) -> list[dict[str, int | None]]:
        """Each rater's grade by criterion, from impressions (raters, criteria)."""
        noise = [
            _noise(self.seed, rater, prompt_id=prompt_id, candidate_id=candidate_id)
            for rater in range(self.raters)
        ]
        grades = to_grades(latent, np.stack(noise), self.traits)
        return [
            {
                criterion: None if np.isnan(grade) else int(grade)
                for criterion, grade in zip(CRITERIA, row, strict=True)
            }
            for row in grades
        ]


@dataclass(frozen=True, eq=False)
class Taken:
    """A speaker as raters take them.

    Args:
        read: what is seen and heard.
        felt: (raters, time) affect as each rater makes it out; None = it cannot be told.
        understood: what is meant; None = the raters do not understand speech here.
    """

    read: SpeakerRead
    felt: np.ndarray | None
    understood: Understood | None = None


@dataclass(frozen=True, eq=False)
class Looks:
    """What is seen of a listener, whoever speaks.

    Args:
        listener: as seen.
        shown: (time,) valence of the face; None = it cannot be seen.
        natural: naturalness in [0, 1].
    """

    listener: VisibleMotion
    shown: np.ndarray | None
    natural: float

    @classmethod
    def of(cls, listener: VisibleMotion) -> Looks:
        """Looks at a listener."""
        shown = None if listener.expression is None else displayed_valence(listener.expression)
        return cls(listener, shown, naturalness(listener))


def impressions(looks: Looks, speaker: Taken, raters: RaterTraits) -> np.ndarray:
    """What raters think of a reaction before they grade it, (raters, criteria) in [0, 1].

    In the order of `CRITERIA`; NaN = cannot be judged. Whether the listener faces the speaker
    counts once, in engagement.
    """
    shown = looks.shown
    empathies = fits = np.full(len(raters.gain), np.nan)
    responsive = np.ones(len(raters.gain))
    if shown is not None and speaker.understood is not None:
        answered = Answered.of(shown, speaker.understood)
        empathies = empathy_of_points(answered, speaker.understood)
        fits = appropriateness_of_points(answered, speaker.understood)
    elif shown is not None and speaker.felt is not None:
        fps = looks.listener.fps
        wanted = expected_valence(speaker.felt, speaker.read.liveliness, raters)
        responsive = responsiveness(shown, speaker.felt)
        empathies = empathy(shown, wanted, patience=raters.patience, fps=fps)
        fits = appropriateness(shown, speaker.felt)
    engagements = responsive * engagement(looks.listener, speaker.read.pauses)
    naturalnesses = np.full(len(raters.gain), looks.natural)
    return np.stack([empathies, fits, engagements, naturalnesses], axis=1)


def to_grades(latent: np.ndarray, noise: np.ndarray, raters: RaterTraits) -> np.ndarray:
    """Impressions as whole grades 1 to 5, (raters, criteria); NaN stays NaN.

    Args:
        latent: (raters, criteria) in [0, 1] or NaN.
        noise: (raters, criteria) standard normal.
        raters: how each of them uses the scale.
    """
    is_seen = ~np.isnan(latent)
    grade = LOWEST + (HIGHEST - LOWEST) * latent
    seen_sum = np.where(is_seen, grade, 0).sum(axis=1, keepdims=True)
    whole = seen_sum / np.maximum(is_seen.sum(axis=1, keepdims=True), 1)
    grade = grade + raters.halo[:, None] * (whole - grade)
    middle = (LOWEST + HIGHEST) / 2
    grade = (
        middle
        + raters.stretch[:, None] * (grade - middle)
        + raters.leniency[:, None]
        + raters.noise[:, None] * noise
    )
    above = grade[:, :, None] > raters.thresholds[:, None, :]
    return np.where(is_seen, LOWEST + above.sum(axis=2), np.nan)


def _misreads(seed: int, rater: int, name: str, point: Point) -> bool:
    """Whether this rater is mistaken about this point of this clip, whatever else is rated."""
    key = f"{seed}\0{rater}\0{name}\0{point.time:.2f}\0{point.kind}"
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return draw < MISREAD * 2.0**64


def _noise(seed: int, rater: int, prompt_id: str, candidate_id: str) -> np.ndarray:
    """Standard normal numbers, (criteria,), of this rater, prompt and candidate alone."""
    digest = hashlib.sha256(f"{seed}\0{rater}\0{prompt_id}\0{candidate_id}".encode()).digest()
    uniform = (np.frombuffer(digest, np.uint64).astype(np.float64) + 0.5) / 2.0**64
    noise: np.ndarray = ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
    return noise
