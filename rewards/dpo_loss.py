"""Direct preference optimisation losses.

Sources: Eq. 11 of the VLA + DPO paper; Rafailov et al. 2023. A loss is given for every pair.
Nothing is averaged here: the mean over a global batch is the learner's, so the result does not
depend on how the batch was split among workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

DPOKind = Literal["sigmoid", "ipo", "robust", "margin"]


@dataclass(frozen=True, eq=False)
class PairLogProbs:
    """Log-probabilities of the chosen and the rejected action sequence of each pair.

    They are SUMMED over tokens, each token normalised over the 256-bin support (not over the full
    vocabulary).

    Args:
        policy_chosen: (batch,) under the policy, with gradients.
        policy_rejected: (batch,) likewise.
        reference_chosen: (batch,) under the frozen SFT policy.
        reference_rejected: (batch,) likewise.
        num_tokens: action tokens of a sequence, one number or (batch,); both members of a pair are
            equally long.

    Raises:
        ValueError: tensors of unlike shapes, or of more than one dimension.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    num_tokens: int | Tensor

    def __post_init__(self) -> None:
        log_probs = (
            self.policy_chosen,
            self.policy_rejected,
            self.reference_chosen,
            self.reference_rejected,
        )
        shapes = {tuple(tensor.shape) for tensor in log_probs}
        if len(shapes) != 1 or self.policy_chosen.ndim != 1:
            raise ValueError(
                f"DPO needs four log-probabilities of one shape (batch,), got {sorted(shapes)}"
            )


@dataclass(frozen=True, eq=False)
class DPOLoss:
    """The loss of each pair and what it says about the policy.

    Args:
        losses: (batch,) with gradients.
        metrics: each (batch,) and detached; see `dpo_loss`.
    """

    losses: Tensor
    metrics: dict[str, Tensor]


def dpo_loss(
    pairs: PairLogProbs,
    beta: float,
    kind: DPOKind = "sigmoid",
    *,
    score_margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    chosen_nll: float = 0.0,
) -> DPOLoss:
    """Loss of each pair.

    With D = [log pi(w|x) - log ref(w|x)] - [log pi(l|x) - log ref(l|x)] and ls = log sigmoid:

    - sigmoid: -ls(beta D), the paper's.
    - ipo: (D / num_tokens - 1 / (2 beta))^2 (Azar et al. 2023), averaged per token as TRL does and
      the authors confirmed. OpenRLHF uses sums under the same name: another loss.
    - robust: [-(1-e) ls(beta D) + e ls(-beta D)] / (1 - 2e), e = `label_smoothing` = the share of
      pairs that raters turned round (Chowdhury et al. 2024); unbiased under such noise, may be
      negative.
    - margin: -ls(beta D - score_margin): pairs that people told apart clearly must be further
      apart.

    Any of them may be held by imitation of the chosen one: `chosen_nll` times -log pi(w|x) per
    token is added, as in RPO (Pang et al. 2024, arXiv 2404.19733). The losses above know only how
    far chosen and rejected are apart, so both may become unlikely together.

    The metrics are `accuracy` (D > 0), `margin` (beta D), `chosen_reward` and `rejected_reward`
    (beta times the log-ratio to the reference, the implicit reward of DPO), `chosen_nll` per token
    before it is weighed, and `kl_per_token`:
    minus the mean log-ratio of the two sequences per token. As candidates were drawn from the
    reference, it estimates KL(reference || policy) per token, without bias over all candidates.
    Choosing best and worst and the ground truth biases it a little, so it may fall below zero.

    Args:
        pairs: log-probabilities under policy and reference.
        beta: strength of the tie to the reference; for ipo the inverse of twice the target margin.
        kind: which of the losses above.
        score_margin: (batch,) m * (score_chosen - score_rejected), not negative; only for "margin".
        label_smoothing: e in [0, 0.5), only for "robust".
        chosen_nll: weight of the imitation of the chosen one, not negative.

    Raises:
        ValueError: an unknown kind, or options that do not belong to it.
    """
    _check_options(beta, kind, label_smoothing, chosen_nll)
    _check_margin(pairs, kind, score_margin)
    chosen = pairs.policy_chosen - pairs.reference_chosen
    rejected = pairs.policy_rejected - pairs.reference_rejected
    difference = chosen - rejected

    if kind == "sigmoid":
        losses = -F.logsigmoid(beta * difference)
    elif kind == "ipo":
        losses = (difference / pairs.num_tokens - 1 / (2 * beta)) ** 2
    elif kind == "robust":
        kept = F.logsigmoid(beta * difference)
        turned = F.logsigmoid(-beta * difference)
        losses = (-(1 - label_smoothing) * kept + label_smoothing * turned) / (
            1 - 2 * label_smoothing
        )
    else:
        assert score_margin is not None, "checked above"
        losses = -F.logsigmoid(beta * difference - score_margin)
    imitation = -pairs.policy_chosen / pairs.num_tokens
    if chosen_nll:
        losses = losses + chosen_nll * imitation

    with torch.no_grad():
        metrics = {
            "accuracy": (difference > 0).to(difference.dtype),
            "margin": beta * difference.detach(),
            "chosen_reward": beta * chosen.detach(),
            "rejected_reward": beta * rejected.detach(),
            "chosen_nll": imitation.detach(),
            "kl_per_token": -(chosen + rejected).detach() / (2 * pairs.num_tokens),
        }
    return DPOLoss(losses, metrics)


def _check_options(beta: float, kind: DPOKind, label_smoothing: float, chosen_nll: float) -> None:
    if kind not in get_args(DPOKind):
        raise ValueError(f"unknown DPO loss {kind!r}, expected one of {list(get_args(DPOKind))}")
    if not beta > 0:
        raise ValueError(f"beta is {beta:g}, it must be positive")
    if not 0 <= label_smoothing < 0.5 or (label_smoothing and kind != "robust"):
        raise ValueError(
            f"label_smoothing {label_smoothing:g} with loss {kind!r}: only 'robust' takes it, in "
            "[0, 0.5)"
        )
    if not chosen_nll >= 0:
        raise ValueError(f"chosen_nll is {chosen_nll:g}, a weight must not be negative")


def _check_margin(pairs: PairLogProbs, kind: DPOKind, score_margin: Tensor | None) -> None:
    if (kind == "margin") != (score_margin is not None):
        raise ValueError(
            f"loss {kind!r}: score_margin belongs to 'margin', which needs it, and to no other"
        )
    if score_margin is not None and score_margin.shape != pairs.policy_chosen.shape:
        raise ValueError(
            f"score_margin has shape {tuple(score_margin.shape)}, the pairs "
            f"{tuple(pairs.policy_chosen.shape)}"
        )
