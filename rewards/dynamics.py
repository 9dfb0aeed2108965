"""Dynamics rewards: whether listeners move as much and as lively as recorded ones do.

A reward belongs to a component of a FLAME group, to a sample and to a frame in which the actor
listens. A component is a feature of the motion about that frame, and a distance from the recorded
listener's. Components are never added before they are normalised one by one
(`rapport.rewards.advantage`), so their units do not matter.

Two forms.

- `energy`: minus the distance to the recorded listener, plus the mean distance to the other samples
  of the group. This is the energy score (Gneiting & Raftery 2007), which is proper: it is best when
  samples are spread as people are. Its features are where the face is on average, its path, and how
  lively it is in three bands.
- `paper`: minus the distance to the recorded listener alone (GDPO-Listener, section 3.3, which
  writes sums over frames where here are means). It is best at the median of what people might do,
  so it makes listeners alike; with few samples the difference is large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rapport.policies.motion import Layout, Motion, require_same_layout
from rapport.rewards.settings import RewardConfig

# Moving averages that part the bands, seconds; what passes them is halved at about .44 / length Hz.
SHORT = 0.25
LONG = 1.0
# Over how much time the liveliness of a band is taken, seconds; of the slow one over the window.
MIDDLE_SPAN = 2.0
FAST_SPAN = 1.0
# Listening frames that rewards and the judge of movement need; fewer say how somebody sat when the
# other one began.
LEAST_FRAMES = 25
# Added to squares before a root is taken: its slope at 0 is infinite.
TINY = 1e-12


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
    """Lowest and highest value of every channel in a corpus: the limits of `energy_features`.

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


@dataclass(frozen=True, eq=False)
class Recorded:
    """What the reactions to a prompt are compared with.

    Args:
        motion: of the recorded listener.
        listening: (time,) bool, frames that count.
        limits: two frames, the lowest and highest value of each channel (see `motion_limits`).

    Raises:
        LayoutError: limits of another layout.
        ValueError: a mask or limits of another form.
    """

    motion: Motion
    listening: np.ndarray
    limits: Motion

    def __post_init__(self) -> None:
        _check(self.motion, self.listening, self.limits)

    @property
    def rewarded(self) -> bool:
        """Whether somebody listens long enough."""
        return enough_listening(self.listening)


def enough_listening(listening: np.ndarray) -> bool:
    """Whether a reward says something: `LEAST_FRAMES` of listening, or half of a shorter clip's."""
    return int(np.sum(listening)) >= min(LEAST_FRAMES, max(1, len(listening) / 2))


def group_rewards(samples: Tensor, recorded: Recorded, config: RewardConfig) -> Tensor:
    """Rewards of a group of reactions to one prompt, (group, time, components, FLAME groups).

    NaN = missing: in frames in which nobody listens, everywhere where somebody listens for less
    than `LEAST_FRAMES`, and of samples that are not finite. Differentiable in the samples.

    Args:
        samples: (group, time, dim).
        recorded: what they are compared with.
        config: which form, and which components.

    Raises:
        ValueError: samples of another shape.
    """
    values = torch.as_tensor(recorded.motion.values).to(samples)
    if samples.ndim != 3 or samples.shape[1:] != values.shape:
        raise ValueError(
            f"samples {tuple(samples.shape)} are not (group, {', '.join(map(str, values.shape))}), "
            "as the recorded motion is"
        )
    layout = recorded.motion.layout
    listening = torch.as_tensor(recorded.listening, device=samples.device)
    finite = samples.isfinite().flatten(1).all(1)
    rewards = samples.new_full(
        (*samples.shape[:2], len(config.weights), len(layout.names)), torch.nan
    )
    if not recorded.rewarded or not finite.any():
        return rewards
    sound = samples[finite]
    features = FEATURES[config.form]
    ours = features(sound, listening, layout.fps)
    theirs = features(values[None], listening, layout.fps)
    components = []
    for name in config.weights:
        if name == "range":
            components.append(-_by_group(_beyond(sound, recorded.limits), layout, "mean"))
            continue
        apart = _distance(ours[name], theirs[name], layout)
        if config.form == "energy":
            apart = apart - _among(ours[name], layout)
        components.append(-apart)
    counted = torch.stack(components, 2)
    counted = torch.where(listening[:, None, None], counted, torch.nan)
    return rewards.masked_scatter(finite[:, None, None, None].expand_as(rewards), counted)


def energy_features(values: Tensor, listening: Tensor, fps: float) -> dict[str, Tensor]:
    """Feature -> (samples, time, dim) of motion (samples, time, dim).

    Bands are differences of moving averages, and how lively one is, the root of the mean square
    over the listening frames about a frame.

    Args:
        values: motion.
        listening: (time,) bool, at least one frame.
        fps: frames per second.
    """
    mean = values[:, listening].mean(1, keepdim=True)
    smooth = moving_average(values, SHORT * fps)
    smoother = moving_average(values, LONG * fps)
    slow = (smoother - mean)[:, listening].square().mean(1, keepdim=True)
    return {
        "mean": mean.expand_as(values),
        "path": smooth,
        "slow": (slow + TINY).sqrt().expand_as(values),
        "middle": _liveliness(smooth - smoother, listening, MIDDLE_SPAN * fps),
        "fast": _liveliness(values - smooth, listening, FAST_SPAN * fps),
    }


def paper_features(values: Tensor, listening: Tensor, fps: float) -> dict[str, Tensor]:
    """The same of the paper's components; velocities never reach across frames left out."""
    heard = values[:, listening]
    velocity = values.diff(dim=1)[:, listening[1:] & listening[:-1]]
    whole = {
        "positional_variance": _std(heard),
        "velocity_variance": _std(velocity),
        "mean_drift": heard.mean(1, keepdim=True),
    }
    return {name: value.expand_as(values) for name, value in whole.items()} | {"mse": values}


FEATURES: Mapping[str, Callable[[Tensor, Tensor, float], dict[str, Tensor]]] = {
    "energy": energy_features,
    "paper": paper_features,
}


def moving_average(values: Tensor, frames: float) -> Tensor:
    """Over the nearest odd number of frames, (samples, time, dim); shorter at both ends."""
    reach = int(frames / 2)
    averaged: Tensor = F.avg_pool1d(
        values.mT, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False
    )
    smoothed: Tensor = averaged.mT
    return smoothed


def _liveliness(band: Tensor, listening: Tensor, frames: float) -> Tensor:
    """Root mean square over the listening frames within `frames` of each."""
    counted = listening.to(band)[None, :, None]
    power = moving_average(band.square() * counted, frames)
    return (power / moving_average(counted, frames).clamp(min=TINY) + TINY).sqrt()


def _std(values: Tensor) -> Tensor:
    """(samples, 1, dim); 0 with a single frame."""
    if values.shape[1] < 2:
        return values.new_zeros(len(values), 1, values.shape[2])
    return (values.var(1, keepdim=True) + TINY).sqrt()


def _distance(ours: Tensor, theirs: Tensor, layout: Layout) -> Tensor:
    """Euclidean distance in each FLAME group, (samples, time, groups), of (samples, time, dim)."""
    return (_by_group((ours - theirs).square(), layout, "sum") + TINY).sqrt()


def _among(ours: Tensor, layout: Layout) -> Tensor:
    """Mean distance of each sample from the others, (samples, time, groups)."""
    count = len(ours)
    if count < 2:
        return ours.new_zeros(1, ours.shape[1], len(layout.names))
    # Each sample moves in the field of the others, which stand still: so gradients count a pair
    # once, and are those of the score.
    apart = torch.stack([_distance(ours, other[None], layout) for other in ours.detach()])
    itself = torch.eye(count, dtype=torch.bool, device=ours.device)[:, :, None, None]
    return torch.where(itself, 0.0, apart).sum(1) / (count - 1)


def _beyond(values: Tensor, limits: Motion) -> Tensor:
    low, high = torch.as_tensor(limits.values).to(values)
    beyond: Tensor = (values - high).clamp(min=0) + (low - values).clamp(min=0)
    return beyond


def _by_group(values: Tensor, layout: Layout, reduction: Literal["mean", "sum"]) -> Tensor:
    """(..., dim) -> (..., groups)."""
    reduce = torch.sum if reduction == "sum" else torch.mean
    return torch.stack([reduce(values[..., layout.columns(name)], -1) for name in layout.names], -1)


def _check(motion: Motion, listening: np.ndarray, limits: Motion) -> None:
    if listening.shape != (len(motion),) or listening.dtype != bool:
        raise ValueError(
            f"the listening mask is {listening.dtype} {listening.shape}, it must be bool "
            f"({len(motion)},)"
        )
    require_same_layout(motion.layout, limits.layout, "limits of the motion")
    if len(limits) != 2 or (limits.values[0] > limits.values[1]).any():
        raise ValueError(
            "limits are two frames, the lowest and the highest values; see motion_limits"
        )
