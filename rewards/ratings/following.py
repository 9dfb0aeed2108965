"""What raters make of an answer where they do not understand speech: by affect, second for second.

The speaker's affect is read off face and words, and the listener's face is compared with it over
the whole clip. So are corpora judged that do not say what their speakers mean; where they say it,
see `understanding`.
"""

from __future__ import annotations

import numpy as np

from rapport.rewards.ratings.speaker_cues import SpeakerRead
from rapport.rewards.ratings.traits import RaterTraits

AGREE = 0.35  # difference of affect (rms) that is seen as a poor match


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
