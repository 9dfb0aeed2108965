"""Dynamics rewards: does a listener move as much, and as lively, as the real one did
(GDPO-Listener, section 3.3).

Each component is a penalty, 0 at best, for every FLAME group by itself, on decoded motion and on
listening frames only. Units are those of the group (expression coefficients, radians, eyelid
closure), so numbers of unlike groups do not compare; group-decoupled advantages never add them
before they are normalised.

`positional_variance`, `velocity_variance`, `mean_drift` and `mse` are the paper's. It writes the
variances and the MSE as sums over frames; here they are means, so that a number does not depend on
how long a clip is. `jerk` and `range` are guards: a policy can raise its variance by trembling or
by leaving what a face can do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from pydantic import Field

from rapport.policies.motion import Layout, Motion, require_same_layout
from rapport.settings import Section


@dataclass(frozen=True)
class DynamicsWeights:
    """Weights of the penalties within a group. The paper names the first four and gives no values."""

    positional_variance: float = 1.0
    velocity_variance: float = 1.0
    mean_drift: float = 0.1
    mse: float = 0.1
    jerk: float = 1.0
    range: float = 1.0

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in asdict(self).items() if not 0 <= value < np.inf}
        if wrong or not any(asdict(self).values()):
            raise ValueError(
                "dynamics weights must be finite and not negative, and not all 0: got "
                f"{wrong or 'zeros'}"
            )


COMPONENTS = tuple(DynamicsWeights.__dataclass_fields__)
Penalties = dict[str, dict[str, float]]  # component -> group -> penalty


def listening_frames(actor_speaks: np.ndarray, partner_speaks: np.ndarray) -> np.ndarray:
    """Frames in which the partner speaks and the actor is silent (supplement, section 1): (time,)
    bool each.
    """
    actor, partner = np.asarray(actor_speaks), np.asarray(partner_speaks)
    if (
        actor.shape != partner.shape
        or actor.ndim != 1
        or actor.dtype != bool
        or partner.dtype != bool
    ):
        raise ValueError(
            f"voice activity must be two (time,) bool masks, got {actor.dtype} {actor.shape} of "
            "the actor"
            f" and {partner.dtype} {partner.shape} of the partner"
        )
    return partner & ~actor


def motion_limits(motions: Iterable[Motion]) -> Motion:
    """Lowest and highest value of every channel in a corpus, as a motion of two frames: the limits
    for `penalties`.
    """
    low = high = layout = None
    for motion in motions:
        layout = layout or motion.layout
        require_same_layout(layout, motion.layout, "limits of a corpus")
        lowest, highest = motion.values.min(0), motion.values.max(0)
        low = lowest if low is None else np.minimum(low, lowest)
        high = highest if high is None else np.maximum(high, highest)
    if layout is None:
        raise ValueError("no motion to take limits from")
    return Motion(np.stack([low, high]), layout)


def penalties(
    generated: Motion, recorded: Motion, listening: np.ndarray, limits: Motion
) -> Penalties:
    """Every component for every group, `{component: {group: penalty}}`, averaged over the channels
    of the group.

    Differences over time never reach across frames that are left out. Standard deviations have ddof
    1. With too few frames (2 for a spread, 3 in a row for that of velocities, 4 in a row for jerk)
    a penalty is NaN: missing.

    Args:
        generated, recorded: of one layout and length.
        listening: (time,) bool, frames that count.
        limits: two frames, the lowest and highest value of each channel (see `motion_limits`).

    Components:
        positional_variance: |std(generated) - std(recorded)| over time.
        velocity_variance: the same of frame-to-frame differences.
        mean_drift: |mean(generated) - mean(recorded)|.
        mse: mean squared difference.
        jerk: |rms of third differences, generated - recorded|, per frame^3.
        range: mean distance outside the limits.
    """
    mask = _check(generated, recorded, listening, limits)
    x, y = (motion.values.astype(np.float64) for motion in (generated, recorded))
    low, high = limits.values.astype(np.float64)
    inside = x[mask]
    by_channel = {
        "positional_variance": np.abs(_std(inside) - _std(y[mask])),
        "velocity_variance": np.abs(
            _std(_differences(x, mask, 1)) - _std(_differences(y, mask, 1))
        ),
        "mean_drift": np.abs(_mean(inside) - _mean(y[mask])),
        "mse": _mean((inside - y[mask]) ** 2),
        "jerk": np.abs(_rms(_differences(x, mask, 3)) - _rms(_differences(y, mask, 3))),
        "range": _mean(np.maximum(inside - high, 0) + np.maximum(low - inside, 0)),
    }
    return {
        component: by_group(values, generated.layout) for component, values in by_channel.items()
    }


def missing_penalties(layout: Layout) -> Penalties:
    """Those of a rollout that failed: NaN throughout."""
    return {component: dict.fromkeys(layout.names, np.nan) for component in COMPONENTS}


def group_rewards(
    penalty: Penalties, weights: DynamicsWeights = DynamicsWeights()
) -> dict[str, float]:
    """R_i of every group: minus the weighted sum of its penalties. NaN where a penalty of positive
    weight is.
    """
    used = [(component, weight) for component, weight in asdict(weights).items() if weight]
    groups = penalty[COMPONENTS[0]]
    return {
        group: -sum(weight * penalty[component][group] for component, weight in used)
        for group in groups
    }


def variance_ratio(generated: Motion, recorded: Motion, listening: np.ndarray) -> dict[str, float]:
    """Variance over time, generated against recorded, `{group: ratio}`; a collapsed policy is well
    below 1.

    Variances are summed over the channels of a group before they are divided. NaN with fewer than 2
    frames, or where the recorded group stands still."""
    mask = _check(generated, recorded, listening)
    x, y = (
        by_group(_std(motion.values[mask].astype(np.float64)) ** 2, motion.layout)
        for motion in (generated, recorded)
    )
    return {group: x[group] / y[group] if y[group] > 0 else np.nan for group in x}


def by_group(values: np.ndarray, layout: Layout) -> dict[str, float]:
    """Mean over the channels of each group of (dim,) values."""
    return {name: float(values[layout.columns(name)].mean()) for name in layout.names}


def _differences(values: np.ndarray, mask: np.ndarray, order: int) -> np.ndarray:
    """Differences of `order` over time, (n, dim), of those `order + 1` frames in a row that all
    count.
    """
    whole = (
        np.lib.stride_tricks.sliding_window_view(mask, order + 1).all(1)
        if len(mask) > order
        else mask[:0]
    )
    return np.diff(values, n=order, axis=0)[whole]


def _std(values: np.ndarray) -> np.ndarray:
    return values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(0) if len(values) else np.full(values.shape[1], np.nan)


def _rms(values: np.ndarray) -> np.ndarray:
    return np.sqrt(_mean(values**2))


def _check(
    generated: Motion, recorded: Motion, listening: np.ndarray, limits: Motion | None = None
) -> np.ndarray:
    require_same_layout(
        generated.layout, recorded.layout, "dynamics rewards of generated and recorded motion"
    )
    if len(generated) != len(recorded):
        raise ValueError(
            f"generated motion has {len(generated)} frames, the recorded one {len(recorded)}"
        )
    mask = np.asarray(listening)
    if mask.shape != (len(generated),) or mask.dtype != bool:
        raise ValueError(
            f"the listening mask is {mask.dtype} {mask.shape}, it must be bool ({len(generated)},)"
        )
    if limits is not None:
        require_same_layout(generated.layout, limits.layout, "limits of the motion")
        if len(limits) != 2 or (limits.values[0] > limits.values[1]).any():
            raise ValueError(
                "limits are two frames, the lowest and the highest values; see motion_limits"
            )
    return mask


class RewardConfig(Section):
    """Weights of the penalties in the reward of a FLAME group."""

    positional_variance: float = Field(1.0, ge=0)
    """of standard deviations over time, against the recorded"""
    velocity_variance: float = Field(8.0, ge=0)
    """of those of frame-to-frame differences, which are about an eighth as large"""
    mean_drift: float = Field(0.03, ge=0)
    """of the distance of the means over time"""
    mse: float = Field(0.05, ge=0)
    """of the mean squared error"""
    jerk: float = Field(8.0, ge=0)
    """of third differences against the recorded: guards against trembling"""
    range: float = Field(1.0, ge=0)
    """of what lies outside the corpus' limits: guards against grimaces"""


class GroupWeightsConfig(Section):
    """lambda_i of the FLAME groups (Eq. 9); one that the corpus lacks has no reward."""

    expr: float = Field(1.0, ge=0)
    """expression coefficients"""
    jaw: float = Field(1.0, ge=0)
    """jaw rotation"""
    neck: float = Field(1.0, ge=0)
    """neck rotation"""
    eyelid: float = Field(1.0, ge=0)
    """eyelid closure; in clips so short that most have no blink, the penalty is least without"""
    eyepose: float = Field(1.0, ge=0)
    """eye rotations"""
    rot: float = Field(1.0, ge=0)
    """global head rotation"""
