"""SIMULATED raters: stand-ins for people, used when no ratings are given and called simulated
everywhere.

They judge only what a person in front of the side-by-side video could see and hear: landmarks of
the rendered listener, and the speaker's face, words and voice. They know no coefficients and no
hidden truth of a corpus. Each differs in what they expect, in leniency, in how they use the scale
and in how steady their hand is. They are a model of ours, not of any published panel: they show
that the pipeline follows a preference, and say nothing about people's opinion of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from scipy.special import ndtri

from rapport.rewards.ratings.ratings import CRITERIA, HIGHEST, LOWEST, Rating
from rapport.rewards.ratings.speaker_cues import (
    SpeakerCues,
    SpeakerRead,
    moving_mean,
    read_speaker,
)
from rapport.rewards.ratings.visible import Expression, VisibleMotion, displayed_valence

# Human norms. "Live Link": 64 s of a person's facial recording on the built-in head; "dyad": the
# head of a recorded listener (DualTalk demo). The rest are our choices.
TREMOR_MM = 0.09  # residual of the mouth's corners from their 0.2 s mean (Live Link)
TREMOR_RAD = 0.009  # the same of the head's rotation (dyad)
FAST_MM_S = 60.0  # mouth or brow, twice the 99th percentile (Live Link)
FAST_RAD_S = 2.5  # head, above the 99th percentile (dyad)
LOPSIDED_MM = 2.0  # left-right difference of the mouth's lift
FAR_MM = 12.0  # furthest that mouth or brows go in a conversation
LIVELY_MM_S = 6.0  # rms speed of the mouth (Live Link)
LIVELY_RAD_S = 0.35  # median speed of the head (dyad)
NOD_RAD = 0.008  # rms pitch over the clip of a listener who nods now and then
AVERTED_RAD = 0.2  # head turned from the speaker, 11 degrees
CLOSED_EYES = 0.35  # mean opening below which the listener seems asleep
AGREE = 0.35  # difference of affect (rms) that is seen as a poor match


@dataclass(frozen=True, eq=False)
class RaterTraits:
    """Who the raters are; every field is (raters,) but `thresholds`, which is (raters, 4).

    Args:
        face_weight: share of the speaker's face, against words, in what is made of the speaker.
        gain: how much of the speaker's affect a listener should show.
        warmth: affect expected from a listener when nothing happens.
        patience: longest delay of a reaction that seems natural, seconds.
        leniency: added to every rating.
        stretch: use of the scale, 1 = full.
        halo: how far the whole impression colours each criterion, 0 to 1.
        noise: standard deviation between two ratings of the same thing.
        thresholds: where one grade ends and the next begins.
    """

    face_weight: np.ndarray
    gain: np.ndarray
    warmth: np.ndarray
    patience: np.ndarray
    leniency: np.ndarray
    stretch: np.ndarray
    halo: np.ndarray
    noise: np.ndarray
    thresholds: np.ndarray


def draw_raters(n: int, seed: int) -> RaterTraits:
    """`n` different raters. Rater i is the same whatever `n`."""
    people = []
    for index in range(n):
        rng = np.random.default_rng([seed, index])
        people.append(
            {
                "face_weight": rng.uniform(0.45, 0.75),
                "gain": rng.uniform(0.65, 0.95),
                "warmth": rng.normal(0.05, 0.05),
                "patience": rng.uniform(1.0, 1.6),
                "leniency": rng.normal(0.0, 0.3),
                "stretch": np.exp(rng.normal(0.0, 0.12)),
                "halo": rng.uniform(0.05, 0.25),
                "noise": rng.uniform(0.2, 0.5),
                "thresholds": np.sort(
                    np.arange(LOWEST, HIGHEST) + 0.5 + rng.normal(0.0, 0.12, HIGHEST - LOWEST)
                ),
            }
        )
    return RaterTraits(
        **{f.name: np.array([person[f.name] for person in people]) for f in fields(RaterTraits)}
    )


class SimulatedPanel:
    """A panel of simulated raters.

    The same seed, rater, prompt and candidate give the same rating, in whatever order or company.

    Args:
        n: raters; their names are simulated-0, simulated-1, ...
        seed: of who they are and of their noise.
        lexicon: word -> valence in [-1, 1], what words mean to them; without it they do not
            understand speech.
    """

    def __init__(
        self, n: int = 5, seed: int = 0, lexicon: Mapping[str, float] | None = None
    ) -> None:
        if n < 1:
            raise ValueError(f"a panel of {n} raters rates nothing")
        self.n, self.seed, self.lexicon = n, seed, dict(lexicon or {})
        self.traits = draw_raters(n, seed)

    def rate(
        self, prompt_id: str, speaker: SpeakerCues, candidates: Mapping[str, VisibleMotion | None]
    ) -> list[Rating]:
        """Every rater's opinion of every candidate, whole numbers 1 to 5.

        A candidate that is None (not rendered) gets ratings with every criterion missing. Empathy
        and appropriateness are missing, not guessed, where the speaker's affect or the listener's
        expression cannot be seen; naturalness and engagement are judged without them."""
        lengths = {
            (len(listener), listener.fps)
            for listener in candidates.values()
            if listener is not None
        }
        reads = {length: read_speaker(speaker, self.lexicon, *length) for length in lengths}
        ratings = []
        for candidate_id, listener in candidates.items():
            latent = np.full((self.n, len(CRITERIA)), np.nan)
            if listener is not None:
                latent = judge(listener, reads[len(listener), listener.fps], self.traits)
            noise = np.stack([_noise(self.seed, i, prompt_id, candidate_id) for i in range(self.n)])
            grades = to_grades(latent, noise, self.traits)
            for index, row in enumerate(grades):
                given = {
                    c: None if np.isnan(g) else int(g) for c, g in zip(CRITERIA, row, strict=True)
                }
                ratings.append(Rating(prompt_id, candidate_id, f"simulated-{index}", **given))
        return ratings


def judge(listener: VisibleMotion, speaker: SpeakerRead, raters: RaterTraits) -> np.ndarray:
    """(raters, criteria) in [0, 1], in the order of `CRITERIA`; NaN = cannot be judged."""
    n = len(raters.gain)
    empathy_, appropriateness_, responsive = np.full(n, np.nan), np.full(n, np.nan), np.ones(n)
    if speaker.has_affect and listener.expression is not None:
        shown = displayed_valence(listener.expression)
        felt = perceived_valence(speaker, raters)
        wanted = expected_valence(felt, speaker.liveliness, raters)
        empathy_ = empathy(shown, wanted, raters.patience, listener.fps)
        appropriateness_ = appropriateness(shown, felt)
        responsive = responsiveness(shown, felt)
        # What is shown to somebody else is no answer to this speaker.
        empathy_, appropriateness_ = (
            facing(listener) * empathy_,
            facing(listener) * appropriateness_,
        )
    engagement_ = responsive * engagement(listener, speaker.pauses)
    naturalness_ = np.full(n, naturalness(listener))
    return np.stack([empathy_, appropriateness_, engagement_, naturalness_], axis=1)


def perceived_valence(speaker: SpeakerRead, raters: RaterTraits) -> np.ndarray:
    """(raters, time): the speaker's affect as each rater makes it out from face and words."""
    if speaker.meaning is None:
        return np.repeat(speaker.face[None], len(raters.gain), axis=0)
    if speaker.face is None:
        return np.repeat(speaker.meaning[None], len(raters.gain), axis=0)
    weight = raters.face_weight[:, None]
    # 1.3: face and words that agree convince more than either alone.
    return np.clip(1.3 * (weight * speaker.face + (1 - weight) * speaker.meaning), -1, 1)


def expected_valence(
    felt: np.ndarray, liveliness: np.ndarray | None, raters: RaterTraits
) -> np.ndarray:
    """(raters, time): what a listener should show, before any delay. A lively speaker asks for a
    stronger reaction.
    """
    lively = 1.0 if liveliness is None else 0.85 + 0.3 * liveliness
    return np.clip(raters.warmth[:, None] + raters.gain[:, None] * lively * felt, -1, 1)


def empathy(shown: np.ndarray, wanted: np.ndarray, patience: np.ndarray, fps: float) -> np.ndarray:
    """(raters,) in [0, 1]: does the shown affect (time,) follow the wanted one (raters, time)?

    Compared at every delay from 0.2 s to the rater's patience; the best one counts, as people do
    not hold a delay against anyone while it is natural."""
    frames = wanted.shape[1]
    delays = np.arange(round(0.2 * fps), round(patience.max() * fps) + 1)
    source = np.maximum(
        np.arange(frames)[None] - delays[:, None], 0
    )  # before the clip: as at its start
    error = np.mean((shown - wanted[:, source]) ** 2, axis=2)  # (raters, delays)
    error[delays[None] > np.round(patience * fps)[:, None]] = np.inf
    return np.exp(-error.min(axis=1) / (2 * AGREE**2))


def appropriateness(shown: np.ndarray, felt: np.ndarray) -> np.ndarray:
    """(raters,) in [0, 1]: is the reaction of the right sign, and not stronger than what it
    answers?

    A smile at bad news weighs twice as much as a frown at good news; an outburst without cause and
    no answer to strong affect count against it too. Delays are no matter here, they are empathy's.
    """
    tone = felt.mean(axis=1)
    agreement = np.mean(shown * felt, axis=1)
    clash = np.mean(np.maximum(-shown * np.sign(felt), 0) * np.abs(felt), axis=1)
    smile_at_grief = np.mean(np.maximum(shown, 0) * np.maximum(-felt, 0), axis=1)
    excess = np.mean(np.maximum(np.abs(shown) - np.maximum(np.abs(felt), 0.35), 0), axis=1)
    missed = np.maximum(0.7 * tone**2 - np.maximum(agreement, 0), 0)
    return np.exp(-(2.5 * clash + 2.5 * smile_at_grief + 1.5 * excess + 2.5 * missed))


def responsiveness(shown: np.ndarray, felt: np.ndarray) -> np.ndarray:
    """(raters,) in [0, 1]: does the face answer strong affect at all, in whatever sense? A blank
    face seems absent.
    """
    return np.exp(-2.5 * np.mean(np.maximum(0.6 * np.abs(felt) - np.abs(shown), 0), axis=1))


def facing(listener: VisibleMotion) -> float:
    """In [0, 1]: is the head turned to the speaker?"""
    return float(np.exp(-0.5 * np.mean((listener.head[:, 1] / AVERTED_RAD) ** 2)))


def engagement(listener: VisibleMotion, pauses: np.ndarray | None) -> float:
    """In [0, 1]: nods, most of all where the speaker pauses; lively but not fidgeting; facing the
    speaker, awake.

    What the face answers is not in it (`responsiveness`).
    """
    fps = listener.fps
    quick = moving_mean(listener.head, 0.08 * fps) - moving_mean(listener.head, 1.0 * fps)
    if pauses is None or not pauses.any() or pauses.all():
        nod = _nod(quick)
    else:
        # From 0.4 s before a pause, where the phrase can be heard to end, until 0.4 s after.
        near = moving_mean(pauses.astype(np.float64), 0.8 * fps) > 1e-9
        elsewhere = _nod(quick[~near]) if (~near).any() else 0.0
        nod = max(_nod(quick[near]) - 0.9 * elsewhere, 0.3 * elsewhere)
    lively = _liveliness(listener)
    too_lively = np.exp(-_excess(lively, 1.5))
    alive = 1 - np.exp(-6 * lively)
    awake = 1.0
    if listener.expression is not None:
        awake = np.clip(listener.expression.eye_opening.mean() / CLOSED_EYES, 0, 1)
    attentive = 0.5 + 0.5 * (1 - np.exp(-nod / NOD_RAD))
    return float(alive * too_lively * facing(listener) * awake * attentive)


def naturalness(listener: VisibleMotion) -> float:
    """In [0, 1]: no trembling, no jumps, nothing beyond human range, neither lopsided nor dead.

    Blinks are left out, as they are fast by nature.
    """
    fps = listener.fps
    head = listener.head
    doubts = [
        _excess(_tremor(head, fps), TREMOR_RAD),
        _excess(_top_speed(head, fps), FAST_RAD_S),
    ]
    if listener.expression is not None:
        features = _features(listener.expression)
        lift = listener.expression.mouth_lift
        doubts += [
            _excess(_tremor(features, fps), 1.5 * TREMOR_MM),
            _excess(_top_speed(features, fps), FAST_MM_S),
            _excess(float(np.quantile(np.abs(features), 0.98)), FAR_MM),
            _excess(float(np.sqrt(np.mean((lift[:, 0] - lift[:, 1]) ** 2))), LOPSIDED_MM),
        ]
    dead = np.exp(-20 * _liveliness(listener))  # only a face that all but stands still
    return float((1 - 0.6 * dead) * np.exp(-sum(doubts)))


def to_grades(latent: np.ndarray, noise: np.ndarray, raters: RaterTraits) -> np.ndarray:
    """Impressions in [0, 1], (raters, criteria), as each rater's whole grades 1 to 5; NaN stays
    NaN.
    """
    seen = ~np.isnan(latent)
    grade = LOWEST + (HIGHEST - LOWEST) * latent
    whole = np.where(seen, grade, 0).sum(axis=1, keepdims=True) / np.maximum(
        seen.sum(axis=1, keepdims=True), 1
    )
    halo, stretch, leniency, sigma = (
        getattr(raters, name)[:, None] for name in ("halo", "stretch", "leniency", "noise")
    )
    grade = grade + halo * (whole - grade)
    middle = (LOWEST + HIGHEST) / 2
    grade = middle + stretch * (grade - middle) + leniency + sigma * noise
    above = grade[:, :, None] > raters.thresholds[:, None, :]
    return np.where(seen, LOWEST + above.sum(axis=2), np.nan)


def _nod(quick: np.ndarray) -> float:
    """Rms pitch of quick head movements (time, 3) beyond what yaw and roll do: nods have a
    direction, fidgets none.
    """
    power = np.mean(quick**2, axis=0)
    return float(np.sqrt(max(power[0] - 0.5 * (power[1] + power[2]), 0.0)))


def _features(expression: Expression) -> np.ndarray:
    """(time, 8) mm: what is watched for how it moves."""
    columns = (
        expression.mouth_lift,
        expression.mouth_spread,
        expression.brow_inner,
        expression.brow_outer,
    )
    return np.concatenate(columns, axis=1)


def _liveliness(listener: VisibleMotion) -> float:
    """Movement in units of a lively person's: mean of head and, where it is seen, mouth."""
    parts = [_rms_speed(listener.head, listener.fps) / LIVELY_RAD_S]
    if listener.expression is not None:
        parts.append(_rms_speed(listener.expression.mouth_lift, listener.fps) / LIVELY_MM_S)
    return float(np.mean(parts))


def _rms_speed(x: np.ndarray, fps: float) -> float:
    """Root mean square speed of (time, dim): over time, of the mean square over columns."""
    return float(np.sqrt(np.mean(np.diff(x, axis=0) ** 2))) * fps if len(x) > 1 else 0.0


def _top_speed(x: np.ndarray, fps: float) -> float:
    return (
        float(np.quantile(np.abs(np.diff(x, axis=0)).max(axis=1), 0.98)) * fps
        if len(x) > 1
        else 0.0
    )


def _tremor(x: np.ndarray, fps: float) -> float:
    """Rms residual from the mean over 0.2 s."""
    return float(np.sqrt(np.mean((x - moving_mean(x, 0.2 * fps)) ** 2)))


def _excess(value: float, norm: float) -> float:
    """0 up to the human norm, then the number of doublings above it."""
    return max(float(np.log2(max(value, 1e-12) / norm)), 0.0)


def _noise(seed: int, rater: int, prompt_id: str, candidate_id: str) -> np.ndarray:
    """(criteria,) standard normal numbers that belong to this rater, prompt and candidate alone."""
    digest = hashlib.sha256(f"{seed}\0{rater}\0{prompt_id}\0{candidate_id}".encode()).digest()
    uniform = (np.frombuffer(digest, np.uint64).astype(np.float64) + 0.5) / 2.0**64
    return ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
