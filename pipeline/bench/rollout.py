"""Action tokens a second: a vLLM engine of the fleet against transformers' `generate`.

Each alone on the same cores. Both sample whole action sequences of the same policy for the same
prompts, temperature only, over the 256 bins. The policy has no slot embeddings: `generate` knows of
none. `fleet` is vLLM as the fleet asks it, whose log-probs of every token and seeds per prompt are
counted as its time; `bare` is vLLM without them, which is what `generate` does. Start-up is
reported beside, not within.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from rapport.actors.engines import TokenEngine, engine_environment
from rapport.actors.fleet import Request, RolloutWorker
from rapport.actors.settings import EngineConfig
from rapport.log import logger
from rapport.pipeline.bench.workload import (
    median_and_range,
    process,
    random_prompts,
    sampled_policy,
)
from rapport.pipeline.bench_settings import RolloutBench
from rapport.policies.vla.loading import load_checkpoint
from rapport.policies.vla.policy import prompt_seed
from rapport.policies.vla.vla_prompt import VlaPrompt
from rapport.policies.vla.vllm_plugin import sampling_params, vllm_prompt


class _OnlyActions(LogitsProcessor):
    """The action ids and nothing else."""

    def __init__(self, start: int, bins: int, vocabulary: int) -> None:
        self.mask = torch.full((vocabulary,), -torch.inf)
        self.mask[start : start + bins] = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + self.mask.to(scores)


class Bare:
    """vLLM that does no more than `generate`: no log-probs, one stream of random numbers."""

    def __init__(self, checkpoint: str, config: EngineConfig) -> None:
        from rapport.policies.vla.vllm_engine import VllmEngine

        torch.set_num_threads(config.threads)
        self.engine = VllmEngine(
            Path(checkpoint),
            dtype=config.dtype,
            temperature=config.temperature,
            kv_cache_gib=config.kv_cache_gib,
            tensor_parallel=1,
        )

    def generate(self, prompts: Sequence[VlaPrompt], samples: int) -> int:
        """Sample; returns how many tokens."""
        config = self.engine.config
        parameters = sampling_params(config, samples, None, temperature=self.engine.temperature)
        parameters.logprobs = None
        requests = [vllm_prompt(config, prompt.ids, prompt.frames) for prompt in prompts]
        outputs = self.engine.llm.generate(requests, parameters, use_tqdm=False)
        return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)


class TransformersGenerate:
    """The same policy under `generate`; frames are encoded once a prompt."""

    def __init__(self, checkpoint: str, config: EngineConfig) -> None:
        torch.set_num_threads(config.threads)
        dtype = getattr(torch, config.dtype)
        self.model = load_checkpoint(Path(checkpoint), dtype=dtype).model.eval()
        sizes = self.model.config
        only_actions = _OnlyActions(
            sizes.action_token_start, sizes.action_bins, sizes.text_config.vocab_size
        )
        self.processors = [only_actions]
        self.temperature = config.temperature

    @torch.inference_mode()
    def generate(self, prompts: Sequence[VlaPrompt], samples: int, batch_size: int) -> int:
        """Sample in batches of `batch_size` sequences; returns how many tokens."""
        torch.manual_seed(0)
        ids = torch.stack([torch.as_tensor(prompt.ids) for prompt in prompts])
        frames = torch.stack([torch.as_tensor(prompt.frames) for prompt in prompts])
        embedded = self.model.embed_prompt(ids, frames).repeat_interleave(samples, dim=0)
        tokens = self.model.config.action_tokens
        count = 0
        for rows in embedded.split(batch_size):
            sampled = self.model.language_model.generate(
                inputs_embeds=rows,
                attention_mask=torch.ones(rows.shape[:2], dtype=torch.long),
                do_sample=True,
                temperature=self.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                logits_processor=self.processors,
                pad_token_id=0,
            )
            count += sampled.numel()
        return count


def measure(config: RolloutBench) -> dict[str, Any]:
    """Both, in either dtype."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        sizes = sampled_policy(config, Path(scratch), slot_embeddings=False)
        prompts = random_prompts(sizes, count=config.bench.prompts, seed=config.seed)
        result["workload"] = {
            "prompts": config.bench.prompts,
            "samples": config.rollout.samples,
            "prompt_tokens": sizes.prompt_length,
            "action_tokens": sizes.action_tokens,
            "hidden": config.vla.hidden,
            "layers": config.vla.layers,
            "threads": config.bench.threads,
        }
        for dtype in ("float32", "bfloat16"):
            engine = EngineConfig(
                engine="vllm",
                dtype=dtype,
                threads=config.bench.threads,
                kv_cache_gib=config.rollout.kv_cache_gib,
                temperature=config.rollout.temperature,
            )
            vllm = {
                "fleet": _fleet(config, scratch, engine, prompts=prompts),
                "bare": {"tokens_per_s": _bare(config, scratch, engine, prompts=prompts)},
            }
            baseline = _transformers(config, scratch, engine, prompts=prompts)
            theirs = baseline["tokens_per_s"]["median"]
            for name, ours in vllm.items():
                rate = ours["tokens_per_s"]["median"]
                ours["ratio"] = rate / theirs
                logger.info(
                    f"[rollout] {dtype}: vLLM ({name}) {rate:.0f}, transformers {theirs:.0f} "
                    f"tokens/s (batches of {baseline['batch_size']}); {ours['ratio']:.2f} times"
                )
            result[dtype] = vllm | {"transformers": baseline}
    return result


def _fleet(
    config: RolloutBench, checkpoint: str, engine: EngineConfig, prompts: Sequence[VlaPrompt]
) -> dict[str, Any]:
    """The engine as the fleet asks it, from its start on."""
    seeds = [prompt_seed(config.seed, prompt.prompt_id) for prompt in prompts]
    request = Request(number=0, prompts=prompts, seeds=seeds, samples=config.rollout.samples)
    started = time.perf_counter()
    with process(
        RolloutWorker,
        partial(TokenEngine, checkpoint, engine),
        engine.threads,
        threads=engine.threads,
        gpus=engine.gpus,
        environment=engine_environment(engine),
    ) as call:
        described = call("describe")
        start = time.perf_counter() - started
        cold = _fleet_rate(call, request)
        warm = [_fleet_rate(call, request) for _ in range(config.bench.repeats)]
    logger.info(
        f"[rollout] vLLM {described['version']}, {engine.dtype}: start {start:.1f} s, first call "
        f"{cold:.0f}, then {warm[-1]:.0f} tokens/s"
    )
    return {
        "version": described["version"],
        "device": described["device"],
        "start_s": start,
        "cold_tokens_per_s": cold,
        "tokens_per_s": median_and_range(warm),
    }


def _fleet_rate(call: Callable[..., Any], request: Request) -> float:
    started = time.perf_counter()
    groups = call("sample", request)
    tokens = sum(len(reaction.actions) for group in groups for reaction in group)
    return tokens / (time.perf_counter() - started)


def _bare(
    config: RolloutBench, checkpoint: str, engine: EngineConfig, prompts: Sequence[VlaPrompt]
) -> dict[str, float]:
    samples = config.rollout.samples
    with process(
        Bare,
        checkpoint,
        engine,
        threads=engine.threads,
        gpus=engine.gpus,
        environment=engine_environment(engine),
    ) as call:
        call("generate", prompts[:1], 2)  # warm
        rates = [_rate(call, prompts, samples) for _ in range(config.bench.repeats)]
    return median_and_range(rates)


def _transformers(
    config: RolloutBench, checkpoint: str, engine: EngineConfig, prompts: Sequence[VlaPrompt]
) -> dict[str, Any]:
    """At the best of `bench.batch_sizes`, which the first measurement of each decides."""
    samples = config.rollout.samples
    sequences = len(prompts) * samples
    sizes = sorted({min(size, sequences) for size in config.bench.batch_sizes})
    with process(
        TransformersGenerate, checkpoint, engine, threads=engine.threads, gpus=engine.gpus
    ) as call:
        call("generate", prompts[:1], 2, 2)  # warm
        rates = {size: _rate(call, prompts, samples, size) for size in sizes}
        best = max(rates, key=lambda size: rates[size])
        repeated = [rates[best]]
        for _ in range(config.bench.repeats - 1):
            repeated.append(_rate(call, prompts, samples, best))
    return {
        "tokens_per_s": median_and_range(repeated),
        "batch_size": best,
        "tokens_per_s_by_batch_size": rates,
    }


def _rate(call: Callable[..., Any], *arguments: Any) -> float:
    """Tokens a second of `generate`."""
    started = time.perf_counter()
    return call("generate", *arguments) / (time.perf_counter() - started)
