"""What samples in the actors of a rollout fleet: vLLM, transformers, or the policy itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rapport.actors.cluster import vllm_environment
from rapport.actors.settings import EngineConfig
from rapport.policies.policy import Policy, Prompt, Reaction, load_policy

# By dtype of the engine. Half precision rounds each product: two torch paths of a small policy
# already differ by 0.03 nats.
CANARY_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


class Engine(Protocol):
    """What a fleet asks of whatever samples."""

    def describe(self) -> dict[str, Any]:
        """What it is: name, version, device, dtype."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        samples: int,
        seeds: Sequence[int],
        actions: int | None = None,
    ) -> list[list[Reaction]]:
        """`samples` reactions to each prompt, or their first `actions` actions."""

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights in place."""


class InProcess:
    """The policy itself, in the actor's process.

    Args:
        checkpoint: the policy's folder.
        sampler: how it samples; None where the policy has one way.
        gpus: share of a GPU that the actor has; 0 = it computes on the CPU.
    """

    def __init__(self, checkpoint: str, sampler: Any, gpus: float = 0) -> None:
        self.device = "cuda" if gpus else "cpu"
        self.policy: Policy = load_policy(checkpoint).to(self.device)
        self.policy.sampler = sampler

    def describe(self) -> dict[str, Any]:
        """The policy and its device."""
        return {
            "name": f"{self.policy.kind}, in process",
            "version": torch.__version__,
            "device": self.device,
            "dtype": "float32",
        }

    def sample(
        self,
        prompts: Sequence[Prompt],
        samples: int,
        seeds: Sequence[int],
        actions: int | None = None,
    ) -> list[list[Reaction]]:
        """Whole reactions; they are not sampled action by action."""
        return self.policy.sample(prompts, samples, seeds)

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Load them into the policy."""
        self.policy.load_weights(weights)


class TokenEngine:
    """vLLM or transformers with the VLA in it.

    Args:
        checkpoint: the policy's folder.
        config: which of the two, and how large.
    """

    def __init__(self, checkpoint: str, config: EngineConfig) -> None:
        self.engine: Any
        if config.engine == "vllm":
            from rapport.policies.vla.vllm_engine import VllmEngine

            self.engine = VllmEngine(
                Path(checkpoint),
                dtype=config.dtype,
                temperature=config.temperature,
                kv_cache_gib=config.kv_cache_gib,
                max_num_seqs=config.max_num_seqs,
                tensor_parallel=config.tensor_parallel,
                enforce_eager=config.enforce_eager,
            )
        else:
            from rapport.policies.vla.hf_engine import HfEngine

            self.engine = HfEngine(
                Path(checkpoint), dtype=config.dtype, temperature=config.temperature
            )

    def describe(self) -> dict[str, Any]:
        """The engine's own words."""
        return self.engine.describe()

    def sample(
        self,
        prompts: Sequence[Any],
        samples: int,
        seeds: Sequence[int],
        actions: int | None = None,
    ) -> list[list[Reaction]]:
        """Action tokens with their log-probs."""
        sampled = self.engine.sample(prompts, samples, seeds, actions)
        groups = []
        for prompt, seed, candidates in zip(prompts, seeds, sampled, strict=True):
            group = [
                Reaction(
                    prompt.prompt_id,
                    k,
                    tokens,
                    log_probs=log_probs,
                    versions=(0,) * self._chunks(prompt, len(tokens)),
                    seed=seed,
                    rest=prompt.rest,
                )
                for k, (tokens, log_probs) in enumerate(candidates)
            ]
            groups.append(group)
        return groups

    def _chunks(self, prompt: Any, tokens: int) -> int:
        """In how many chunks a reaction was sampled."""
        size = self.engine.config.chunk_tokens
        begun = 0 if prompt.begun is None else len(prompt.begun)
        return -(-(begun + tokens) // size) - begun // size

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Load them into the engine."""
        self.engine.update(dict(weights))


def canary_tolerance(config: EngineConfig) -> float:
    """Largest log-prob gap that is no mistake, nats."""
    given = config.canary_tolerance
    return CANARY_TOLERANCE[config.dtype] if given is None else given


def engine_environment(config: EngineConfig) -> dict[str, str]:
    """Environment of an engine's process, beside its threads."""
    return vllm_environment(config.gpus, config.enforce_eager)
