"""Clipped policy gradient with a KL penalty to a fixed reference (GDPO-Listener, Eq. 10; PPO,
Schulman et al. 2017).
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    kl: Tensor,
    clip: float,
    beta: float,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus Eq. 10: the mean over actions of `w min(rho A, clip(rho, 1 - eps, 1 + eps) A) - beta
    KL`.

    An action is what has a probability of its own: a denoise step of a latent, or a token. Every
    sample counts as much as any other, so samples may be spread over ranks in equal numbers and
    losses averaged; within a sample the actions of its mask are averaged.

    Args:
        log_probs: (samples, ...) of the actions under the policy, with gradients.
        old_log_probs: the same under the behaviour policy. Computed by the same code on the same
            batch, the ratio of an unchanged policy is exactly 1.
        advantages: (samples,).
        kl: like `log_probs`, KL(policy || reference) of each action.
        clip: eps. Belongs to the reduction of the log-probs: 0.2 for sums, far less for means over
            many dims.
        beta: weight of the KL.
        mask: like `log_probs`, bool, actions that count (listening frames); None = all. A sample of
            which none counts adds 0.
        weights: like `log_probs`, w of each action, see `importance_weights`; None = 1.

    Returns:
        The loss, and metrics, detached: `ratio` and `clip_fraction` (mean over counted actions; 1
        and 0 if there are none), `kl`, and `approx_kl`, the estimate (rho - 1) - log rho of how far
        the policy is from the behaviour policy.
    """
    _check(log_probs, old_log_probs, advantages, kl, clip, beta, mask, weights)
    counted = torch.ones_like(log_probs, dtype=torch.bool) if mask is None else mask
    counted = counted.flatten(1)
    # What does not count may be anything, NaN too.
    log_ratio = torch.where(counted, (log_probs - old_log_probs.detach()).flatten(1), 0.0)
    kl = torch.where(counted, kl.flatten(1), 0.0)
    ratio, advantage = log_ratio.exp(), advantages.to(log_ratio).unsqueeze(1)
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    if weights is not None:
        surrogate = surrogate * torch.where(counted, weights.detach().flatten(1), 0.0)
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
    return loss, metrics


def importance_weights(
    old_log_probs: Tensor, engine_log_probs: Tensor, truncation: float
) -> Tensor:
    """min(pi_old / mu, C) of every action, where an engine sampled from mu what the learner takes
    for pi_old.

    Both hold the same weights, but their kernels sum in other orders: without the weight the
    gradient is biased by what they differ in (truncated importance sampling, Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training")."""
    if not truncation >= 1:
        raise ValueError(f"truncation {truncation:g} must be at least 1")
    return (old_log_probs.detach() - engine_log_probs).exp().clamp(max=truncation)


def _check(
    log_probs: Tensor,
    old: Tensor,
    advantages: Tensor,
    kl: Tensor,
    clip: float,
    beta: float,
    mask: Tensor | None,
    weights: Tensor | None,
) -> None:
    given = {"mask": mask, "weights": weights}
    shapes = {"log_probs": log_probs, "old_log_probs": old, "kl": kl} | {
        name: value for name, value in given.items() if value is not None
    }
    if log_probs.ndim < 2 or any(value.shape != log_probs.shape for value in shapes.values()):
        found = ", ".join(f"{name} {tuple(value.shape)}" for name, value in shapes.items())
        raise ValueError(
            "log-probs, KL, mask and weights must have one shape (samples, actions ...), got "
            f"{found}"
        )
    if advantages.shape != log_probs.shape[:1]:
        raise ValueError(
            f"advantages must be ({len(log_probs)},), one a sample, got {tuple(advantages.shape)}"
        )
    if not 0 < clip < 1 or not beta >= 0:
        raise ValueError(f"clip {clip:g} must be between 0 and 1 and beta {beta:g} not negative")
