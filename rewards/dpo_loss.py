"""Direct preference optimisation losses (Eq. 11 of the VLA + DPO paper; Rafailov et al. 2023).

Every function maps pairs to one loss per pair. Nothing is averaged here: the mean over a global
batch is the learner's, so the result does not depend on how the batch was split among workers.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

DPOKind = Literal["sigmoid", "ipo", "robust", "margin"]


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    kind: DPOKind = "sigmoid",
    score_margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    *,
    num_tokens: int | Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of each pair, (batch,), and its metrics, each (batch,) and detached.

    With D = [log pi(w|x) - log ref(w|x)] - [log pi(l|x) - log ref(l|x)], ls = log sigmoid:

    - sigmoid: -ls(beta D), the paper's.
    - ipo: (D / num_tokens - 1 / (2 beta))^2 (Azar et al. 2023), averaged per token as TRL does and
    the
      authors confirmed. OpenRLHF uses sums under the same name: another loss.
    - robust: [-(1-e) ls(beta D) + e ls(-beta D)] / (1 - 2e), e = `label_smoothing` = the share of
    pairs
      that raters turned round (Chowdhury et al. 2024); unbiased under such noise, may be negative.
    - margin: -ls(beta D - score_margin): pairs that people told apart clearly must be further
    apart.

    Args:
        policy_chosen, policy_rejected: (batch,) log-probabilities of whole action sequences, SUMMED
            over tokens, each token normalised over the 256-bin support (not over the full
            vocabulary).
        reference_chosen, reference_rejected: (batch,) the same under the frozen SFT policy.
        beta: strength of the pull towards the reference; for ipo the inverse of twice the target
            margin.
        score_margin: (batch,) m * (score_chosen - score_rejected), not negative; only for "margin".
        label_smoothing: e in [0, 0.5), only for "robust".
        num_tokens: action tokens of a sequence, one number or (batch,); both members of a pair are
            as long.

    Metrics: `accuracy` (D > 0), `margin` (beta D), `chosen_reward` and `rejected_reward` (beta
    times the log-ratio to the reference, the implicit reward of DPO), `kl_per_token`: minus the
    mean log-ratio of the two sequences per token. As candidates were drawn from the reference it
    estimates KL(reference || policy) per token, without bias over all candidates; choosing best and
    worst and the ground truth bend it a little, so it may dip below zero."""
    _check(
        policy_chosen,
        policy_rejected,
        reference_chosen,
        reference_rejected,
        beta,
        kind,
        score_margin,
        label_smoothing,
    )
    chosen = policy_chosen - reference_chosen
    rejected = policy_rejected - reference_rejected
    difference = chosen - rejected

    if kind == "sigmoid":
        losses = -F.logsigmoid(beta * difference)
    elif kind == "ipo":
        losses = (difference / num_tokens - 1 / (2 * beta)) ** 2
    elif kind == "robust":
        kept, turned = F.logsigmoid(beta * difference), F.logsigmoid(-beta * difference)
        losses = (-(1 - label_smoothing) * kept + label_smoothing * turned) / (
            1 - 2 * label_smoothing
        )
    else:
        losses = -F.logsigmoid(beta * difference - score_margin)

    with torch.no_grad():
        metrics = {
            "accuracy": (difference > 0).to(difference.dtype),
            "margin": beta * difference.detach(),
            "chosen_reward": beta * chosen.detach(),
            "rejected_reward": beta * rejected.detach(),
            "kl_per_token": -(chosen + rejected).detach() / (2 * num_tokens),
        }
    return losses, metrics


def _check(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    kind: DPOKind,
    score_margin: Tensor | None,
    label_smoothing: float,
) -> None:
    shapes = {
        tuple(t.shape)
        for t in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    }
    if len(shapes) != 1 or policy_chosen.ndim != 1:
        raise ValueError(
            f"DPO needs four log-probabilities of one shape (batch,), got {sorted(shapes)}"
        )
    if kind not in get_args(DPOKind):
        raise ValueError(f"unknown DPO loss {kind!r}, expected one of {list(get_args(DPOKind))}")
    if not beta > 0:
        raise ValueError(f"beta is {beta:g}, it must be positive")
    if not 0 <= label_smoothing < 0.5 or (label_smoothing and kind != "robust"):
        raise ValueError(
            f"label_smoothing {label_smoothing:g} with loss {kind!r}: only 'robust' takes it, in "
            "[0, 0.5)"
        )
    if (kind == "margin") != (score_margin is not None):
        raise ValueError(
            f"loss {kind!r}: score_margin belongs to 'margin', which needs it, and to no other"
        )
    if score_margin is not None and score_margin.shape != policy_chosen.shape:
        raise ValueError(
            f"score_margin has shape {tuple(score_margin.shape)}, the pairs "
            f"{tuple(policy_chosen.shape)}"
        )
