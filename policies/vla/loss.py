"""Supervised fine-tuning loss of the VLA policy (paper Eq. 7-9, restored in notes as items 7-9).

Pure functions of logits. The regulariser acts on the expected action under the 256-bin softmax,
which is differentiable. Its unit is the bin range of each dimension (a fraction of [low, high]):
expression coefficients and radians then weigh alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rapport.policies.vla.actions import ActionTokenizer


def expected_action(action_logits: Tensor, centres: Tensor) -> Tensor:
    """E[a] under the softmax over the bins.

    Args:
        action_logits: (..., steps * dims, bins).
        centres: (dims, bins), the value of every bin.

    Returns:
        (..., steps, dims), float32.
    """
    dims, bins = centres.shape
    probs = torch.softmax(action_logits.float(), dim=-1).unflatten(-2, (-1, dims))
    return (probs * centres.to(probs)).sum(dim=-1)


def temporal_coherence(expected: Tensor, actions: Tensor) -> Tensor:
    """Mean squared difference of velocities, L_temp: both (batch, steps, dims) -> scalar; 0 for a
    single step.
    """
    if actions.shape[1] == 1:
        return expected.new_zeros(())
    return (expected.diff(dim=1) - actions.diff(dim=1)).square().mean()


def identity_consistency(expected: Tensor, actions: Tensor) -> Tensor:
    """Squared drift of the clip's mean face, L_id, averaged over dims and batch: (batch, steps,
    dims) -> scalar.
    """
    return (expected.mean(dim=1) - actions.mean(dim=1)).square().mean()


def sft_loss(
    action_logits: Tensor,
    action_ids: Tensor,
    tokenizer: ActionTokenizer,
    lambda_exp: float = 1.0,
    lambda_pose: float = 1.0,
    lambda_reg: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_SFT = lambda_exp CE(expression) + lambda_pose CE(pose) + lambda_reg (L_temp + L_id), Eq.
    7-9.

    Each cross entropy is the mean over its own tokens, so that 53 expression dimensions do not
    drown 3 of head pose. Means over a batch of equal shapes: averaging over ranks gives the loss of
    the whole batch.

    Args:
        action_logits: (batch, steps * dims, bins).
        action_ids: (batch, steps * dims), token ids.

    Returns:
        The loss and its parts, detached: `ce_expression`, `ce_pose`, `temporal`, `identity`. A
        layout without head pose has no `ce_pose` (and likewise without expression).
    """
    dims = tokenizer.space.dims
    bins = action_ids - tokenizer.first_token
    ce = F.cross_entropy(
        action_logits.float().flatten(0, 1), bins.flatten(), reduction="none"
    ).reshape(-1, dims)
    expression = torch.from_numpy(tokenizer.space.expression).to(ce.device)
    unit = (torch.arange(tokenizer.bins, device=ce.device) + 0.5) / tokenizer.bins
    centres = (
        torch.from_numpy(tokenizer.moves).to(ce.device)[:, None] * unit
    )  # constant dimensions count as 0
    expected = expected_action(action_logits, centres)
    actions = centres[torch.arange(dims, device=ce.device), bins.unflatten(-1, (-1, dims))]

    weighted = {
        "temporal": (lambda_reg, temporal_coherence(expected, actions)),
        "identity": (lambda_reg, identity_consistency(expected, actions)),
    }
    if expression.any():
        weighted["ce_expression"] = (lambda_exp, ce[:, expression].mean())
    if not expression.all():
        weighted["ce_pose"] = (lambda_pose, ce[:, ~expression].mean())
    loss = sum(weight * part for weight, part in weighted.values())
    return loss, {name: part.detach() for name, (_, part) in weighted.items()}
