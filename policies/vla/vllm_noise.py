"""A logits processor for vLLM: the noise of a request decides its actions, as it does in torch.

vLLM's own seeded sampling draws other numbers than `sampling.next_actions` does from the same seed,
so that a session would have another face in each of the two.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.sampling import decided


class ChosenByNoise(LogitsProcessor):
    """Leaves requests with noise (`vllm_plugin.chosen_by`) one token; others are left alone."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        config = cast(FaceVLAConfig, vllm_config.model_config.hf_config)
        self.bins = slice(config.action_token_start, config.action_token_start + config.action_bins)
        # Row of the batch -> noise, temperature, tokens so far; vLLM adds to the last.
        self.requests: dict[int, tuple[np.ndarray, float, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """It decides what is chosen."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Requests came, went or have other rows."""
        process_dict_updates(self.requests, batch_update, _noise_of)

    def apply(self, logits: Tensor) -> Tensor:
        """Logits (rows, vocabulary), in place."""
        if not self.requests:
            return logits
        rows = torch.tensor(list(self.requests), device=logits.device)
        noise, temperatures = (
            torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]
            for values in zip(
                *[(noise[len(done)], heat) for noise, heat, done in self.requests.values()],
                strict=True,
            )
        )
        scores = torch.log_softmax(logits[rows, self.bins] / temperatures.float(), dim=-1)
        chosen = decided(scores, noise)[:, 0] + self.bins.start
        logits[rows] = -torch.inf
        logits[rows, chosen] = 0
        return logits


def _noise_of(
    params: SamplingParams, prompt: list[int] | None, done: list[int]
) -> tuple[np.ndarray, float, list[int]] | None:
    extra: dict[str, Any] = params.extra_args or {}
    return (extra["noise"], extra["temperature"], done) if "noise" in extra else None
