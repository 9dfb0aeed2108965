"""Supervised fine-tuning loss of the VLA policy (paper Eq. 7-9, restored in notes as items 7-9).

Pure functions of logits. The regulariser acts on the expected action under the 256-bin softmax,
which is differentiable. Its unit is the bin range of each dimension (a fraction of [low, high]):
expression coefficients and radians then weigh alike.
"""

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
    probs = torch.unflatten(torch.softmax(action_logits.float(), dim=-1), -2, (-1, dims))
    return (probs * centres.to(probs)).sum(dim=-1)


def temporal_coherence(expected: Tensor, actions: Tensor) -> Tensor:
    """Mean squared difference of velocities, L_temp: both (batch, steps, dims) -> scalar.

    A single step has no velocity and gives 0.
    """
    if actions.shape[1] == 1:
        return expected.new_zeros(())
    return (expected.diff(dim=1) - actions.diff(dim=1)).square().mean()


def identity_consistency(expected: Tensor, actions: Tensor) -> Tensor:
    """Squared drift of the clip's mean face, L_id: both (batch, steps, dims) -> scalar.

    Averaged over dims and batch.
    """
    return (expected.mean(dim=1) - actions.mean(dim=1)).square().mean()


def sft_loss(
    action_logits: Tensor,
    action_ids: Tensor,
    tokenizer: ActionTokenizer,
    lambda_exp: float = 1.0,
    lambda_pose: float = 1.0,
    lambda_reg: float = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_SFT = lambda_exp CE(expression) + lambda_pose CE(pose) + lambda_reg (L_temp + L_id).

    Eq. 7-9. Each cross entropy is the mean over its own tokens, so that 53 expression dimensions do
    not drown 3 of head pose. All are means over a batch of equal shapes, so that averaging over
    ranks gives the loss of the whole batch.

    Args:
        action_logits: (batch, steps * dims, bins).
        action_ids: (batch, steps * dims), token ids.
        tokenizer: what the tokens stand for.
        lambda_exp: weight of the expression tokens.
        lambda_pose: weight of the head-pose tokens.
        lambda_reg: weight of the regulariser, L_temp + L_id.

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
    # Dimensions that never move have one value in all bins, so they count as 0.
    centres = torch.from_numpy(tokenizer.moves).to(ce.device)[:, None] * unit
    expected = expected_action(action_logits, centres)
    bins_by_dim = torch.unflatten(bins, -1, (-1, dims))
    actions = centres[torch.arange(dims, device=ce.device), bins_by_dim]

    parts = {
        "temporal": temporal_coherence(expected, actions),
        "identity": identity_consistency(expected, actions),
    }
    loss = lambda_reg * parts["temporal"] + lambda_reg * parts["identity"]
    if expression.any():
        parts["ce_expression"] = ce[:, expression].mean()
        loss = loss + lambda_exp * parts["ce_expression"]
    if not expression.all():
        parts["ce_pose"] = ce[:, ~expression].mean()
        loss = loss + lambda_pose * parts["ce_pose"]
    return loss, {name: part.detach() for name, part in parts.items()}
