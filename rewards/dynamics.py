"""Dynamics rewards: whether a listener moves as much and as lively as the recorded one did.

Source: GDPO-Listener, section 3.3. Each component is a penalty, 0 at best, for every FLAME group by
itself, on decoded motion and on listening frames only. Units are those of the group (expression
coefficients, radians, eyelid closure), so numbers of unlike groups do not compare; group-decoupled
advantages never add them before they are normalised.

`positional_variance`, `velocity_variance`, `mean_drift` and `mse` are the paper's. It writes the
variances and the MSE as sums over frames; here they are means, so that a number does not depend on
how long a clip is. `jerk` and `range` are guards: a policy can raise its variance by trembling or
by leaving what a face can do.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from pydantic import Field, model_validator

from rapport.policies.motion import Layout, Motion, require_same_layout
from rapport.settings import Section


class RewardConfig(Section):
    """Weights of the penalties in the reward of a FLAME group.

    The paper names the first four components and gives no values.
    """

    positional_variance: float = Field(default=1.0, ge=0)
    """of standard deviations over time, against the recorded"""
    velocity_variance: float = Field(default=8.0, ge=0)
    """of those of frame-to-frame differences, which are about an eighth as large"""
    mean_drift: float = Field(default=0.03, ge=0)
    """of the distance of the means over time"""
    mse: float = Field(default=0.05, ge=0)
    """of the mean squared error"""
    jerk: float = Field(default=8.0, ge=0)
    """of third differences against the recorded: guards against trembling"""
    range: float = Field(default=1.0, ge=0)
    """of what lies outside the corpus' limits: guards against grimaces"""

    @model_validator(mode="after")
    def _something_counts(self) -> RewardConfig:
        weights = self.model_dump()
        if not all(np.isfinite(weight) for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"the weights must be finite and not all 0, got {weights}")
        return self


class GroupWeightsConfig(Section):
    """lambda_i of the FLAME groups (Eq. 9); one that the corpus lacks has no reward."""

    expr: float = Field(default=1.0, ge=0)
    """expression coefficients"""
    jaw: float = Field(default=1.0, ge=0)
    """jaw rotation"""
    neck: float = Field(default=1.0, ge=0)
    """neck rotation"""
    eyelid: float = Field(default=1.0, ge=0)
    """eyelid closure; in clips so short that most have no blink, the penalty is least without"""
    eyepose: float = Field(default=1.0, ge=0)
    """eye rotations"""
    rot: float = Field(default=1.0, ge=0)
    """global head rotation"""
    trans: float = Field(default=1.0, ge=0)
    """head translation; the paper's corpus has none"""


DEFAULT_WEIGHTS = RewardConfig()
COMPONENTS = tuple(RewardConfig.model_fields)
Penalties = dict[str, dict[str, float]]  # component -> group -> penalty


def listening_frames(actor_speaks: np.ndarray, partner_speaks: np.ndarray) -> np.ndarray:
    """Frames in which the partner speaks and the actor is silent, (time,) bool.

    Source: GDPO-Listener, supplement, section 1.

    Args:
        actor_speaks: (time,) bool.
        partner_speaks: (time,) bool.

    Raises:
        ValueError: masks of another shape or type.
    """
    actor = np.asarray(actor_speaks)
    partner = np.asarray(partner_speaks)
    are_masks = actor.ndim == 1 and actor.dtype == bool and partner.dtype == bool
    if not are_masks or actor.shape != partner.shape:
        raise ValueError(
            f"voice activity must be two (time,) bool masks, got {actor.dtype} {actor.shape} of "
            f"the actor and {partner.dtype} {partner.shape} of the partner"
        )
    listening: np.ndarray = partner & ~actor
    return listening


def motion_limits(motions: Iterable[Motion]) -> Motion:
    """Lowest and highest value of every channel in a corpus: the limits for `penalties`.

    Returns:
        A motion of two frames, first the lowest values, then the highest.

    Raises:
        ValueError: no motion at all.
        LayoutError: motions of unlike layouts.
    """
    limits: Motion | None = None
    for motion in motions:
        lowest = motion.values.min(0)
        highest = motion.values.max(0)
        if limits is not None:
            require_same_layout(limits.layout, motion.layout, "limits of a corpus")
            lowest = np.minimum(limits.values[0], lowest)
            highest = np.maximum(limits.values[1], highest)
        limits = Motion(np.stack([lowest, highest]), motion.layout)
    if limits is None:
        raise ValueError("no motion to take limits from")
    return limits


def penalties(
    generated: Motion, recorded: Motion, listening: np.ndarray, limits: Motion
) -> Penalties:
    """Every component for every group, averaged over the channels of the group.

    The components:

    - positional_variance: |std(generated) - std(recorded)| over time.
    - velocity_variance: the same of frame-to-frame differences.
    - mean_drift: |mean(generated) - mean(recorded)|.
    - mse: mean squared difference.
    - jerk: |rms of third differences, generated - recorded|, per frame^3.
    - range: mean distance outside the limits.

    Differences over time never reach across frames that are left out. Standard deviations have ddof
    1. With too few frames (2 for a standard deviation, 3 in a row for that of velocities, 4 in a
    row for jerk) a penalty is NaN: missing.

    Args:
        generated: motion of the policy.
        recorded: what the listener really did, of the same layout and length.
        listening: (time,) bool, frames that count.
        limits: two frames, the lowest and highest value of each channel (see `motion_limits`).

    Returns:
        component -> group -> penalty.

    Raises:
        LayoutError: unlike layouts.
        ValueError: unlike lengths, or a mask or limits of another form.
    """
    mask = _check(generated, recorded, listening, limits=limits)
    x = generated.values.astype(np.float64)
    y = recorded.values.astype(np.float64)
    low, high = limits.values.astype(np.float64)
    x_velocity = _differences(x, mask, order=1)
    y_velocity = _differences(y, mask, order=1)
    x_jerk = _differences(x, mask, order=3)
    y_jerk = _differences(y, mask, order=3)
    x = x[mask]
    y = y[mask]
    by_channel = {
        "positional_variance": np.abs(_std(x) - _std(y)),
        "velocity_variance": np.abs(_std(x_velocity) - _std(y_velocity)),
        "mean_drift": np.abs(_mean(x) - _mean(y)),
        "mse": _mean((x - y) ** 2),
        "jerk": np.abs(_rms(x_jerk) - _rms(y_jerk)),
        "range": _mean(np.maximum(x - high, 0) + np.maximum(low - x, 0)),
    }
    return {
        component: by_group(values, generated.layout) for component, values in by_channel.items()
    }


def missing_penalties(layout: Layout) -> Penalties:
    """Those of a rollout that failed: NaN throughout."""
    return {component: dict.fromkeys(layout.names, np.nan) for component in COMPONENTS}


def group_rewards(
    penalties_by_component: Penalties, weights: RewardConfig = DEFAULT_WEIGHTS
) -> dict[str, float]:
    """R_i of every group: minus the weighted sum of its penalties.

    NaN where a penalty is NaN whose weight is positive.
    """
    used = [(component, weight) for component, weight in weights.model_dump().items() if weight]
    groups = penalties_by_component[COMPONENTS[0]]
    return {
        group: -sum(weight * penalties_by_component[component][group] for component, weight in used)
        for group in groups
    }


def variance_ratio(generated: Motion, recorded: Motion, listening: np.ndarray) -> dict[str, float]:
    """Variance over time, generated over recorded; a collapsed policy is well below 1.

    Variances are summed over the channels of a group before they are divided.

    Args:
        generated: motion of the policy.
        recorded: what the listener really did, of the same layout and length.
        listening: (time,) bool, frames that count.

    Returns:
        group -> ratio; NaN with fewer than 2 frames, or where the recorded group stands still.
    """
    mask = _check(generated, recorded, listening)
    x = by_group(_std(generated.values[mask].astype(np.float64)) ** 2, generated.layout)
    y = by_group(_std(recorded.values[mask].astype(np.float64)) ** 2, recorded.layout)
    return {group: x[group] / y[group] if y[group] > 0 else np.nan for group in x}


def by_group(values: np.ndarray, layout: Layout) -> dict[str, float]:
    """Mean over the channels of each group, of (dim,) values."""
    return {name: float(values[layout.columns(name)].mean()) for name in layout.names}


def _differences(values: np.ndarray, mask: np.ndarray, order: int) -> np.ndarray:
    """Differences of `order` over time, (n, dim), where `order + 1` frames in a row all count."""
    whole = mask[:0]
    if len(mask) > order:
        whole = np.asarray(np.lib.stride_tricks.sliding_window_view(mask, order + 1).all(1))
    differences: np.ndarray = np.diff(values, n=order, axis=0)[whole]
    return differences


def _std(values: np.ndarray) -> np.ndarray:
    if len(values) < 2:
        return np.full(values.shape[1], np.nan)
    std: np.ndarray = values.std(0, ddof=1)
    return std


def _mean(values: np.ndarray) -> np.ndarray:
    if not len(values):
        return np.full(values.shape[1], np.nan)
    mean: np.ndarray = values.mean(0)
    return mean


def _rms(values: np.ndarray) -> np.ndarray:
    rms: np.ndarray = np.sqrt(_mean(values**2))
    return rms


def _check(
    generated: Motion, recorded: Motion, listening: np.ndarray, limits: Motion | None = None
) -> np.ndarray:
    """The listening mask, when everything goes together."""
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
