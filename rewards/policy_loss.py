"""Clipped policy gradient with a KL penalty to a fixed reference.

Sources: GDPO-Listener, Eq. 10; PPO, Schulman et al. 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PolicyActions:
    """The actions of some samples, and how likely they are.

    An action is what has a probability of its own: a denoise step of a latent, or a token.

    Args:
        log_probs: (samples, ...) of the actions under the policy, with gradients.
        old_log_probs: the same under the behaviour policy. Computed by the same code on the same
            batch, the ratio of an unchanged policy is exactly 1.
        advantages: (samples, ...) that broadcast to `log_probs`.
        kl: like `log_probs`, KL(policy || reference) of each action.
        mask: like `log_probs`, bool, actions that count (listening frames); None = all. A sample of
            which none counts adds 0.
        weights: like `log_probs`, w of each action, see `importance_weights`; None = 1.

    Raises:
        ValueError: tensors whose shapes do not go together.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    kl: Tensor
    mask: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {
            name: tuple(tensor.shape)
            for name in ("log_probs", "old_log_probs", "kl", "mask", "weights")
            if (tensor := getattr(self, name)) is not None
        }
        if self.log_probs.ndim < 2 or len(set(shapes.values())) != 1:
            listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(
                "log-probs, KL, mask and weights must have one shape (samples, actions ...), got "
                f"{listed}"
            )
        advantages = tuple(self.advantages.shape)
        actions = tuple(self.log_probs.shape)
        fits = len(advantages) == len(actions) and advantages[0] == actions[0]
        if not fits or any(
            own not in (1, wanted) for own, wanted in zip(advantages, actions, strict=True)
        ):
            raise ValueError(f"advantages must broadcast to log-probs {actions}, got {advantages}")


@dataclass(frozen=True, eq=False)
class PolicyLoss:
    """The loss of some samples and what it says about the policy.

    Args:
        loss: one number, with gradients.
        metrics: one detached number each; see `clipped_policy_loss`.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


def clipped_policy_loss(actions: PolicyActions, clip: float, beta: float) -> PolicyLoss:
    """Minus Eq. 10: the mean of `w min(rho A, clip(rho, 1 - eps, 1 + eps) A) - beta KL`.

    Every sample counts as much as any other, so samples may be spread over ranks in equal numbers
    and losses averaged; within a sample the actions of its mask are averaged.

    The metrics are `ratio` and `clip_fraction` (mean over counted actions; 1 and 0 if there are
    none), `kl`, and `approx_kl`, the estimate (rho - 1) - log rho of how far the policy is from the
    behaviour policy.

    Args:
        actions: log-probs, advantages and KL.
        clip: eps. Belongs to the reduction of the log-probs: 0.2 for sums, far less for means over
            many dims.
        beta: weight of the KL.

    Raises:
        ValueError: `clip` outside (0, 1) or a negative `beta`.
    """
    if not 0 < clip < 1 or not beta >= 0:
        raise ValueError(f"clip {clip:g} must be between 0 and 1 and beta {beta:g} not negative")
    mask = actions.mask
    if mask is None:
        mask = torch.ones_like(actions.log_probs, dtype=torch.bool)
    counted = mask.flatten(1)
    # Masked entries may hold NaN, and NaN times 0 is NaN: select, never multiply by the mask.
    log_ratio = (actions.log_probs - actions.old_log_probs.detach()).flatten(1)
    log_ratio = torch.where(counted, log_ratio, 0.0)
    kl = torch.where(counted, actions.kl.flatten(1), 0.0)
    ratio = log_ratio.exp()
    advantage = actions.advantages.expand_as(actions.log_probs).flatten(1).to(log_ratio)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    if actions.weights is not None:
        surrogate = surrogate * torch.where(counted, actions.weights.detach().flatten(1), 0.0)
    objective = torch.where(counted, surrogate - beta * kl, 0.0)
    loss = -(objective.sum(1) / counted.sum(1).clamp(min=1)).mean()
    with torch.no_grad():
        share = counted.to(ratio) / counted.sum().clamp(min=1)
        metrics = {
            "ratio": 1 + ((ratio - 1) * share).sum(),
            "clip_fraction": (((ratio - 1).abs() > clip) * share).sum(),
            "kl": (kl * share).sum(),
            "approx_kl": ((ratio - 1 - log_ratio) * share).sum(),
        }
    return PolicyLoss(loss, metrics)


def importance_weights(
    old_log_probs: Tensor, engine_log_probs: Tensor, truncation: float
) -> Tensor:
    """min(pi_old / mu, C) of every action that an engine sampled.

    The engine sampled from mu, which the learner takes for pi_old. Both hold the same weights, but
    their kernels sum in other orders: without the weight the gradient is biased by what they differ
    in. Source: truncated importance sampling, Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training".

    Args:
        old_log_probs: of the actions, computed by the learner.
        engine_log_probs: of the same actions, as the engine gave them.
        truncation: C, the largest weight, at least 1.

    Raises:
        ValueError: a smaller truncation.
    """
    if not truncation >= 1:
        raise ValueError(f"truncation {truncation:g} must be at least 1")
    return (old_log_probs.detach() - engine_log_probs).exp().clamp(max=truncation)
