"""What a reward model sees and hears of a listener and a speaker, as some eighty numbers.

Two kinds. *Manner* is of the listener alone: where face and head are, how much they move and how
fast. *Answer* is of both: whether the listener's face goes with the speaker's some tenths of a
second later, whether nods and movement come where the speaker pauses. All of it is read off
landmarks, heads and the sound of the voice. Words are not understood, and nothing here knows how
simulated raters grade, or the independent judge, which stays a judge.
"""

from __future__ import annotations

import numpy as np

from rapport.rewards.ratings.speaker_cues import SpeakerCues, SpeakerRead, read_speaker
from rapport.rewards.ratings.visible import VisibleMotion, displayed_valence
from rapport.rewards.smoothing import moving_mean

FACE = ("valence", "smile", "spread", "lips", "brow_inner", "brow_outer", "eyes")
HEAD = ("pitch", "yaw", "roll")
FOLLOWED = ("valence", "smile", "brow_inner", "brow_outer", "pitch")  # where people mirror
DELAYS_S = (0.2, 0.6, 1.0, 1.6)  # of an answer
SLOW_S, QUICK_S = 2.0, 0.5  # moving means that part slow, middle and fast movement
SMOOTH_S = 0.5  # lips that speak move the corners of the mouth; an expression outlasts syllables
AFTER_S = 0.8  # for so long a pause asks for an answer
STILL = 1e-6  # below it nothing moves; keeps logarithms finite


def reward_features(speaker: SpeakerCues, listener: VisibleMotion) -> dict[str, float]:
    """Numbers by name, the same names for everybody; NaN = a cue of it is absent.

    Args:
        speaker: face at the listener's frame rate and for as long, voice; words are not read.
        listener: as seen.

    Raises:
        ValueError: the speaker is seen at another frame rate or for another time.
    """
    channels = _channels(listener)
    read = read_speaker(speaker, {}, frames=len(listener), fps=listener.fps)
    return _manner(channels, listener.fps) | _answer(channels, speaker, read, listener.fps)


def _channels(seen: VisibleMotion) -> dict[str, np.ndarray]:
    """Each (time,): millimetres of the face, radians of the head; NaN where not seen."""
    face = dict.fromkeys(FACE, np.full(len(seen), np.nan))
    if seen.expression is not None:
        e = seen.expression
        face = {
            "valence": displayed_valence(e),
            "smile": e.mouth_lift.mean(axis=1),
            "spread": e.mouth_spread.mean(axis=1),
            "lips": e.lip_opening,
            "brow_inner": e.brow_inner.mean(axis=1),
            "brow_outer": e.brow_outer.mean(axis=1),
            "eyes": e.eye_opening.mean(axis=1),
        }
    return face | dict(zip(HEAD, seen.head.T, strict=True))


def _manner(channels: dict[str, np.ndarray], fps: float) -> dict[str, float]:
    """Of the listener alone: means, how far from rest, and liveliness in three bands."""
    values = {}
    for name, x in channels.items():
        slow = moving_mean(x, SLOW_S * fps)
        middle = moving_mean(x, QUICK_S * fps) - slow
        fast = x - slow - middle
        values[f"{name}: mean"] = float(x.mean())
        values[f"{name}: away"] = float(np.abs(x).mean())
        values[f"{name}: slow"] = _log_rms(slow - slow.mean())
        values[f"{name}: middle"] = _log_rms(middle)
        values[f"{name}: fast"] = _log_rms(fast)
    return values | {"movement": _log_rms(_speed(channels, fps))}


def _answer(
    channels: dict[str, np.ndarray], speaker: SpeakerCues, read: SpeakerRead, fps: float
) -> dict[str, float]:
    """Of both: how the listener's face goes with the speaker's, and what comes in pauses."""
    if speaker.visible is None:
        theirs = dict.fromkeys((*FACE, *HEAD), np.full(len(channels["pitch"]), np.nan))
    else:
        theirs = _channels(speaker.visible)
    values = {}
    for name in FOLLOWED:
        own = moving_mean(channels[name], SMOOTH_S * fps)
        other = moving_mean(theirs[name], SMOOTH_S * fps)
        for delay in DELAYS_S:
            values[f"{name}: follows by {delay} s"] = _correlation(own, _late(other, delay * fps))
        values[f"{name}: with"] = float(np.mean(own * other))
    shown = channels["valence"]
    asked = _late(moving_mean(theirs["valence"], SMOOTH_S * fps), DELAYS_S[1] * fps)
    values["mirror"] = -float(np.mean((shown - asked) ** 2))
    values["clash"] = float(np.mean(np.maximum(-shown * asked, 0)))
    return values | _timing(channels, read, fps)


def _timing(channels: dict[str, np.ndarray], read: SpeakerRead, fps: float) -> dict[str, float]:
    """Nods and movement where the speaker pauses, and beside how lively they speak."""
    absent = ("nods in pauses", "moves in pauses", "smiles in pauses", "moves with voice")
    if read.pauses is None or read.liveliness is None:
        return dict.fromkeys(absent, np.nan)
    speed = _speed(channels, fps)
    quick = channels["pitch"] - moving_mean(channels["pitch"], fps)
    near = moving_mean(read.pauses.astype(np.float64), AFTER_S * fps) > 1e-9
    values = dict.fromkeys(absent[:3], 0.0)  # where all or nothing is pause, nothing can be told
    if near.any() and not near.all():
        values = {
            "nods in pauses": _log_rms(quick[near]) - _log_rms(quick[~near]),
            "moves in pauses": _log_rms(speed[near]) - _log_rms(speed[~near]),
            "smiles in pauses": float(
                channels["smile"][near].mean() - channels["smile"][~near].mean()
            ),
        }
    values["moves with voice"] = _correlation(moving_mean(speed, fps), read.liveliness)
    return values


def _speed(channels: dict[str, np.ndarray], fps: float) -> np.ndarray:
    """Of the mouth, in mm/s, and the head, in hundredths of rad/s, together, (time,)."""
    names = (*HEAD, "smile") if np.isfinite(channels["smile"]).all() else HEAD
    scaled = np.stack([channels[n] * (100.0 if n in HEAD else 1.0) for n in names], axis=1)
    if len(scaled) < 2:
        return np.zeros(len(scaled))
    speed: np.ndarray = np.linalg.norm(np.gradient(scaled, 1 / fps, axis=0), axis=1)
    return speed


def _late(x: np.ndarray, frames: float) -> np.ndarray:
    """The same so much later; before it begins, its first value."""
    late: np.ndarray = x[np.maximum(np.arange(len(x)) - round(frames), 0)]
    return late


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; 0 where one of them stands still, NaN where one is absent."""
    x = x - x.mean()
    y = y - y.mean()
    scale = float(np.sqrt(np.mean(x**2) * np.mean(y**2)))
    return float(np.mean(x * y)) / scale if not scale < STILL else 0.0


def _log_rms(x: np.ndarray) -> float:
    return float(np.log(np.sqrt(np.mean(x**2)) + 1e-4))
