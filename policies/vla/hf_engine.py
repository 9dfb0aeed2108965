"""Sampling with plain transformers: for debugging, chosen by name only (`rollout.engine=hf`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from torch import nn

from rapport.policies.vla.loading import load_checkpoint
from rapport.policies.vla.sampling import sample_prompt
from rapport.policies.vla.vla_prompt import VlaPrompt


class HfEngine:
    """The torch policy, chunk by chunk, one prompt at a time."""

    def __init__(self, checkpoint: Path, dtype: str, temperature: float):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_checkpoint(checkpoint, dtype=getattr(torch, dtype)).model
        # The cast is for type checkers, which cannot read transformers' own `to`.
        cast(nn.Module, self.model).to(self.device)
        self.config = self.model.config
        self.temperature = temperature

    def describe(self) -> dict[str, Any]:
        """Name, version and settings, for summaries."""
        return {
            "name": "hf",
            "version": transformers.__version__,
            "device": self.device,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def sample(
        self, prompts: list[VlaPrompt], samples: int, seeds: list[int], tokens: int | None = None
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Sample reactions to prompts.

        Args:
            prompts: what to react to.
            samples: reactions to each.
            seeds: one for each prompt.
            tokens: how many to sample; None = the whole horizon.

        Returns:
            For each prompt `samples` pairs of token ids and log-probs, (tokens,) each.
        """
        reactions = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            action_ids, log_probs = sample_prompt(
                self.model,
                prompt,
                samples=samples,
                seed=seed,
                temperature=self.temperature,
                tokens=tokens,
            )
            reactions.append(list(zip(action_ids, log_probs, strict=True)))
        return reactions

    def update(self, state: dict[str, torch.Tensor]) -> None:
        """Replace the weights; names as in `serving_state_dict`."""
        self.model.load_state_dict(state)
