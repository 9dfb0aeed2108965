"""What raters make of how a listener is there: engaged, and natural, whatever is said."""

from __future__ import annotations

import numpy as np

from rapport.rewards.ratings.visible import Expression, VisibleMotion
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
