"""How far a policy has moved from its reference, in nats."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rapport.policies.vla.model import FaceVLA
from rapport.policies.vla.sequence import seen_of
from rapport.policies.vla.vla_prompt import VlaPrompt


def sequence_kl(
    policy: FaceVLA, reference: FaceVLA, prompt: VlaPrompt, tokens: np.ndarray
) -> float:
    """KL(policy || reference) of whole reactions to a prompt, nats.

    Estimated from samples of the policy: the sum over positions of the exact KL between both
    distributions over the bins, given what the policy sampled before, averaged over samples. It is
    without bias, never negative, and of less variance than the mean log-ratio of the samples, as it
    leaves less to chance (Rao-Blackwell; Amini et al. 2025, arXiv 2504.10637).

    Args:
        policy: the one that moved.
        reference: the one it moved from.
        prompt: what was answered.
        tokens: (samples, steps * dims) action token ids that `policy` sampled at temperature 1.
    """
    seen = seen_of(policy.config, [prompt])
    actions = torch.as_tensor(tokens.astype(np.int64))[None]

    def log_probs(model: FaceVLA) -> Tensor:
        return torch.log_softmax(model.action_logits(seen, actions).float(), -1)

    with torch.inference_mode():
        ours = log_probs(policy)
        theirs = log_probs(reference)
        return float((ours.exp() * (ours - theirs)).sum((-1, -2)).mean())
