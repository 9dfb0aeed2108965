"""SIMULATED raters: stand-ins for people where no ratings are at hand, called simulated everywhere.

They judge only what a person in front of the side-by-side video could see and hear: landmarks of
the rendered listener, and the speaker's face, words and voice. They know no coefficients and no
hidden truth of a corpus. Each differs in what they expect, in leniency, in how they use the scale
and in how steady their hand is. They are a model of ours, not of any published panel: they show
that the pipeline follows a preference, and say nothing about people's opinion of a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from scipy.special import ndtri

from rapport.rewards.ratings.ratings import CRITERIA, HIGHEST, LOWEST, Rating
from rapport.rewards.ratings.speaker_cues import SpeakerCues, SpeakerRead, read_speaker
from rapport.rewards.ratings.visible import Expression, VisibleMotion, displayed_valence
from rapport.rewards.smoothing import moving_mean

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
    """Who the raters are. Every field is (raters,), but `thresholds` is (raters, 4).

    Args:
        face_weight: weight of the speaker's face, against words, in the affect that is perceived.
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


def draw_raters(count: int, seed: int) -> RaterTraits:
    """`count` different raters. Rater i is the same whatever `count`."""
    people = []
    for index in range(count):
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
    traits = [field.name for field in fields(RaterTraits)]
    return RaterTraits(**{name: np.array([person[name] for person in people]) for name in traits})


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
        # Candidates of one length share what the raters make of the speaker.
        lengths = {
            (len(listener), listener.fps)
            for listener in candidates.values()
            if listener is not None
        }
        reads = {
            (frames, fps): read_speaker(speaker, self.lexicon, frames=frames, fps=fps)
            for frames, fps in lengths
        }
        ratings = []
        for candidate_id, listener in candidates.items():
            latent = np.full((self.raters, len(CRITERIA)), np.nan)
            if listener is not None:
                latent = impressions(listener, reads[len(listener), listener.fps], self.traits)
            for index, grades in enumerate(self._grades(latent, prompt_id, candidate_id)):
                rating = Rating(prompt_id, candidate_id, f"simulated-{index}", **grades)
                ratings.append(rating)
        return ratings

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


def impressions(listener: VisibleMotion, speaker: SpeakerRead, raters: RaterTraits) -> np.ndarray:
    """What raters think of a reaction before they grade it, (raters, criteria) in [0, 1].

    In the order of `CRITERIA`; NaN = cannot be judged.
    """
    missing = np.full(len(raters.gain), np.nan)
    empathies = missing
    fits = missing
    responsive = np.ones(len(raters.gain))
    if speaker.has_affect and listener.expression is not None:
        shown = displayed_valence(listener.expression)
        felt = perceived_valence(speaker, raters)
        wanted = expected_valence(felt, speaker.liveliness, raters)
        responsive = responsiveness(shown, felt)
        # What is shown to somebody else is no answer to this speaker.
        attention = facing(listener)
        empathies = attention * empathy(shown, wanted, patience=raters.patience, fps=listener.fps)
        fits = attention * appropriateness(shown, felt)
    engagements = responsive * engagement(listener, speaker.pauses)
    naturalnesses = np.full(len(raters.gain), naturalness(listener))
    return np.stack([empathies, fits, engagements, naturalnesses], axis=1)


def perceived_valence(speaker: SpeakerRead, raters: RaterTraits) -> np.ndarray:
    """The speaker's affect as each rater makes it out from face and words, (raters, time)."""
    if speaker.face is None or speaker.meaning is None:
        only = speaker.face if speaker.meaning is None else speaker.meaning
        assert only is not None, "impressions() asks only where there is a face or a meaning"
        return np.repeat(only[None], len(raters.gain), axis=0)
    weight = raters.face_weight[:, None]
    # 1.3: face and words that agree convince more than either alone.
    both = 1.3 * (weight * speaker.face + (1 - weight) * speaker.meaning)
    valence: np.ndarray = np.clip(both, -1, 1)
    return valence


def expected_valence(
    felt: np.ndarray, liveliness: np.ndarray | None, raters: RaterTraits
) -> np.ndarray:
    """What a listener should show, before any delay, (raters, time).

    A lively speaker asks for a stronger reaction.
    """
    lively = 1.0 if liveliness is None else 0.85 + 0.3 * liveliness
    wanted: np.ndarray = np.clip(
        raters.warmth[:, None] + raters.gain[:, None] * lively * felt, -1, 1
    )
    return wanted


def empathy(shown: np.ndarray, wanted: np.ndarray, patience: np.ndarray, fps: float) -> np.ndarray:
    """Whether the shown affect follows the wanted one, (raters,) in [0, 1].

    Compared at every delay from 0.2 s to the rater's patience. The best one counts, as people do
    not hold a delay against anyone while it is natural.

    Args:
        shown: (time,).
        wanted: (raters, time).
        patience: (raters,) seconds.
        fps: frames per second.
    """
    frames = wanted.shape[1]
    delays = np.arange(round(0.2 * fps), round(patience.max() * fps) + 1)
    # Before the clip the wanted affect is taken to be that of its start.
    source = np.maximum(np.arange(frames)[None] - delays[:, None], 0)
    error = np.mean((shown - wanted[:, source]) ** 2, axis=2)  # (raters, delays)
    error[delays[None] > np.round(patience * fps)[:, None]] = np.inf
    match: np.ndarray = np.exp(-error.min(axis=1) / (2 * AGREE**2))
    return match


def appropriateness(shown: np.ndarray, felt: np.ndarray) -> np.ndarray:
    """Whether the reaction has the right sign and strength, (raters,) in [0, 1].

    A smile at bad news weighs twice as much as a frown at good news; an outburst without cause and
    no answer to strong affect count against it, too. Delays do not count here but in empathy.
    """
    tone = felt.mean(axis=1)
    agreement = np.mean(shown * felt, axis=1)
    clash = np.mean(np.maximum(-shown * np.sign(felt), 0) * np.abs(felt), axis=1)
    smile_at_grief = np.mean(np.maximum(shown, 0) * np.maximum(-felt, 0), axis=1)
    excess = np.mean(np.maximum(np.abs(shown) - np.maximum(np.abs(felt), 0.35), 0), axis=1)
    missed = np.maximum(0.7 * tone**2 - np.maximum(agreement, 0), 0)
    fit: np.ndarray = np.exp(-(2.5 * clash + 2.5 * smile_at_grief + 1.5 * excess + 2.5 * missed))
    return fit


def responsiveness(shown: np.ndarray, felt: np.ndarray) -> np.ndarray:
    """Whether the face answers strong affect at all, right or wrong, (raters,) in [0, 1].

    A blank face seems absent.
    """
    missed = np.mean(np.maximum(0.6 * np.abs(felt) - np.abs(shown), 0), axis=1)
    response: np.ndarray = np.exp(-2.5 * missed)
    return response


def facing(listener: VisibleMotion) -> float:
    """How far the head is turned to the speaker, in [0, 1]."""
    return float(np.exp(-0.5 * np.mean((listener.head[:, 1] / AVERTED_RAD) ** 2)))


def engagement(listener: VisibleMotion, pauses: np.ndarray | None) -> float:
    """How engaged a listener looks, in [0, 1].

    They nod, most of all where the speaker pauses, are lively but do not fidget, face the speaker
    and are awake. What the face answers is `responsiveness`.

    Args:
        listener: what is seen of them.
        pauses: (time,) bool, the speaker is silent; None = not known.
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
    """How natural a motion looks, in [0, 1].

    It does not tremble or jump, stays within human range, is neither lopsided nor dead. Blinks are
    left out, as they are fast by nature.
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


def _nod(quick: np.ndarray) -> float:
    """Rms pitch of quick head movements (time, 3) beyond that of yaw and roll.

    Nods have a direction, fidgets have none.
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
    """Root mean square speed over time and columns, per second, of (time, dim)."""
    if len(x) < 2:
        return 0.0
    return float(np.sqrt(np.mean(np.diff(x, axis=0) ** 2))) * fps


def _top_speed(x: np.ndarray, fps: float) -> float:
    """Speed per second of the fastest column that 2 % of the frames exceed, of (time, dim)."""
    if len(x) < 2:
        return 0.0
    return float(np.quantile(np.abs(np.diff(x, axis=0)).max(axis=1), 0.98)) * fps


def _tremor(x: np.ndarray, fps: float) -> float:
    """Rms residual from the mean over 0.2 s."""
    return float(np.sqrt(np.mean((x - moving_mean(x, 0.2 * fps)) ** 2)))


def _excess(value: float, norm: float) -> float:
    """0 up to the human norm, then the number of doublings above it."""
    return max(float(np.log2(max(value, 1e-12) / norm)), 0.0)


def _noise(seed: int, rater: int, prompt_id: str, candidate_id: str) -> np.ndarray:
    """Standard normal numbers, (criteria,), of this rater, prompt and candidate alone."""
    digest = hashlib.sha256(f"{seed}\0{rater}\0{prompt_id}\0{candidate_id}".encode()).digest()
    uniform = (np.frombuffer(digest, np.uint64).astype(np.float64) + 0.5) / 2.0**64
    noise: np.ndarray = ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
    return noise
