"""Sampling with vLLM, chunk by chunk: the engine of the rollout fleet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.sampling import chunk_seed
from rapport.policies.vla.sequence import Seen, seen_of
from rapport.policies.vla.vla_prompt import VlaPrompt
from rapport.policies.vla.vllm_plugin import (
    Item,
    check_version,
    create_engine,
    engine_items,
    engine_prompt,
    read_output,
    sampling_params,
    update_weights,
)

if TYPE_CHECKING:
    from vllm import RequestOutput


@dataclass
class Answer:
    """A reaction that is being sampled.

    Args:
        prompt: what is answered.
        seen: the prompt as tensors.
        items: the prompt's items, shared by its samples.
        sample: which of the samples.
        seed: of the prompt.
        actions: what is there already, action ids.
        log_probs: of what was sampled.
    """

    prompt: VlaPrompt
    seen: Seen
    items: Sequence[Item | None]
    sample: int
    seed: int
    actions: np.ndarray
    log_probs: list[np.ndarray] = field(default_factory=list)


class VllmEngine:
    """One vLLM engine in this process.

    Every chunk of a reaction is a request of its own, with the context so far as its prompt. What
    vLLM computed of it before lies in the prefix cache; if it does not, the answer is the same.

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
        self.requests = 0  # asked since the start

    def describe(self) -> dict[str, Any]:
        """Name, version and settings, for summaries."""
        has_gpu = torch.cuda.is_available()
        return {
            "name": "vllm",
            "version": check_version(),
            "device": "cuda" if has_gpu else "cpu",
            "dtype": self.dtype,
            "tensor_parallel": self.vllm_config.parallel_config.tensor_parallel_size,
            "eager": self.vllm_config.model_config.enforce_eager,
            "kv_blocks": self.vllm_config.cache_config.num_gpu_blocks,
        }

    @property
    def room(self) -> int:
        """Reactions that are sampled at once: as many as the cache holds whole contexts of.

        With more, vLLM would drop some in the middle and read their contexts again.
        """
        cache = self.vllm_config.cache_config
        tokens = (cache.num_gpu_blocks or 0) * cache.block_size
        seats: int = self.vllm_config.scheduler_config.max_num_seqs
        return max(1, min(seats, tokens // self.config.context_length))

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
        waiting = self._answers(prompts, samples, seeds)
        done: dict[tuple[str, int], Answer] = {}
        running: dict[str, Answer] = {}
        left = len(prompts) * samples
        while left:
            while len(running) < self.room and (answer := next(waiting, None)) is not None:
                running[self._ask(answer, tokens)] = answer
            for output in self.llm.llm_engine.step():
                answer = running.pop(output.request_id)
                ids, log_probs = read_output(cast("RequestOutput", output))
                answer.actions = np.concatenate([answer.actions, ids])
                answer.log_probs.append(log_probs)
                if self._left(answer, tokens):
                    running[self._ask(answer, tokens)] = answer
                else:
                    done[answer.prompt.prompt_id, answer.sample] = answer
                    left -= 1
        return [
            [_sampled(done[prompt.prompt_id, sample]) for sample in range(samples)]
            for prompt in prompts
        ]

    def _answers(
        self, prompts: Sequence[VlaPrompt], samples: int, seeds: Sequence[int]
    ) -> Iterator[Answer]:
        """Nothing of them is sampled yet. A prompt is made ready when its turn comes."""
        for prompt, seed in zip(prompts, seeds, strict=True):
            seen = seen_of(self.config, [prompt])
            items = engine_items(self.config, seen)
            begun = np.zeros(0, np.int64) if prompt.begun is None else prompt.begun
            for sample in range(samples):
                yield Answer(prompt, seen, items, sample, seed=seed, actions=begun)

    def _left(self, answer: Answer, tokens: int | None) -> int:
        """Actions that are still to be sampled."""
        if tokens is None:
            return self.config.action_tokens - len(answer.actions)
        return tokens - sum(map(len, answer.log_probs))

    def _ask(self, answer: Answer, tokens: int | None) -> str:
        """Ask for the rest of a chunk; returns the request's name."""
        chunk, within = divmod(len(answer.actions), self.config.chunk_tokens)
        count = min(self.config.chunk_tokens - within, self._left(answer, tokens))
        seed = chunk_seed(answer.seed, answer.prompt.prompt_id, answer.sample, chunk)
        actions = torch.from_numpy(answer.actions)[None]
        name = str(self.requests)
        self.requests += 1
        self.llm.llm_engine.add_request(
            name,
            engine_prompt(self.config, answer.seen, answer.items, actions),
            sampling_params(self.config, count, seed, self.temperature),
        )
        return name

    def update(self, state: dict[str, torch.Tensor]) -> None:
        """Replace the weights; names as in `serving_state_dict`."""
        update_weights(self.llm, state)


def _sampled(answer: Answer) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probs of what was sampled, without what was there before."""
    log_probs = np.concatenate(answer.log_probs)
    return answer.actions[-len(log_probs) :], log_probs
