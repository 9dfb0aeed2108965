"""Action tokens a second: a vLLM engine of the fleet against transformers' `generate`.

Each alone on the same cores. Both sample whole reactions of the same policy to the same prompts,
chunk by chunk, temperature only, over the 256 bins. The policy has no slot embeddings: `generate`
knows of none. vLLM is asked as the fleet asks it: its log-probs of every token, and a seed for
every chunk, are counted as its time. Start-up is reported beside, not within.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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
from rapport.policies.vla.sequence import context_ids, context_of, seen_of
from rapport.policies.vla.vla_prompt import VlaPrompt

TOLD = ("present", "heard", "said", "own")  # what ids are made of


class _OnlyActions(LogitsProcessor):
    """The action ids and nothing else."""

    def __init__(self, start: int, bins: int, vocabulary: int) -> None:
        self.mask = torch.full((vocabulary,), -torch.inf)
        self.mask[start : start + bins] = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + self.mask.to(scores)


class TransformersGenerate:
    """The same policy under `generate`, chunk by chunk; items are encoded once a prompt."""

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
        sizes = self.model.config
        seen = seen_of(sizes, prompts)
        perceived = self.model.perceive(seen).repeat_interleave(samples, dim=0)
        told = {n: v.repeat_interleave(samples, dim=0) for n, v in seen.items() if n in TOLD}
        count = 0
        for rows in torch.arange(len(perceived)).split(batch_size):
            actions = torch.zeros((len(rows), 0), dtype=torch.long)
            while actions.shape[1] < sizes.action_tokens:
                shown, before = context_of(sizes, {n: v[rows] for n, v in told.items()}, actions)
                ids = context_ids(sizes, shown, before)
                first = sizes.items - shown["present"].shape[1]
                embedded = self.model.embed(ids, perceived[rows, first:])
                chosen = self._actions(embedded, sizes.chunk_tokens)
                actions = torch.cat([actions, chosen], dim=1)
            count += actions.numel()
        return count

    def _actions(self, embedded: Tensor, tokens: int) -> Tensor:
        """Action ids (rows, tokens) that follow embeddings (rows, length, hidden)."""
        sampled: Tensor = self.model.language_model.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
            do_sample=True,
            temperature=self.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            logits_processor=self.processors,
            pad_token_id=0,
        )
        return sampled


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
            ours = _fleet(config, scratch, engine, prompts=prompts)
            baseline = _transformers(config, scratch, engine, prompts=prompts)
            theirs = baseline["tokens_per_s"]["median"]
            rate = ours["tokens_per_s"]["median"]
            ours["ratio"] = rate / theirs
            logger.info(
                f"[rollout] {dtype}: vLLM {rate:.0f}, transformers {theirs:.0f} tokens/s (batches "
                f"of {baseline['batch_size']}); {ours['ratio']:.2f} times"
            )
            result[dtype] = {"fleet": ours, "transformers": baseline}
    return result | {"by_chunk": _by_chunk(config)}


def _by_chunk(config: RolloutBench) -> dict[str, Any]:
    """Tokens a second of the fleet by the length of a chunk, one after the other.

    A clip has as many tokens whatever its chunks; shares are those of one chunk for all of it.
    """
    lengths = [config.corpus.seconds, *config.bench.chunks]
    engine = EngineConfig(
        engine="vllm",
        dtype="float32",
        threads=config.bench.threads,
        kv_cache_gib=config.rollout.kv_cache_gib,
        temperature=config.rollout.temperature,
    )
    rates: dict[float, list[float]] = {}
    for length in lengths:
        vla = config.vla.model_copy(update={"chunk": length, "context": config.corpus.seconds})
        with tempfile.TemporaryDirectory() as scratch:
            sizes = sampled_policy(config.model_copy(update={"vla": vla}), Path(scratch))
            prompts = random_prompts(sizes, count=config.bench.prompts, seed=config.seed)
            seeds = [prompt_seed(config.seed, prompt.prompt_id) for prompt in prompts]
            request = Request(
                number=0, prompts=prompts, seeds=seeds, samples=config.rollout.samples
            )
            with _engine(scratch, engine) as call:
                _fleet_rate(call, request)  # warm
                rates[length] = [_fleet_rate(call, request) for _ in range(config.bench.repeats)]
    found = {f"{length:g}": median_and_range(each) for length, each in rates.items()}
    whole = found[f"{lengths[0]:g}"]["median"]
    shares = {length: each["median"] / whole for length, each in found.items()}
    shown = ", ".join(f"{length} s {share:.2f}" for length, share in shares.items())
    logger.info(f"[rollout] by length of a chunk, against one of {lengths[0]:g} s: {shown}")
    return {"tokens_per_s": found, "share": shares}


def _fleet(
    config: RolloutBench, checkpoint: str, engine: EngineConfig, prompts: Sequence[VlaPrompt]
) -> dict[str, Any]:
    """The engine as the fleet asks it, from its start on."""
    seeds = [prompt_seed(config.seed, prompt.prompt_id) for prompt in prompts]
    request = Request(number=0, prompts=prompts, seeds=seeds, samples=config.rollout.samples)
    started = time.perf_counter()
    with _engine(checkpoint, engine) as call:
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


def _engine(checkpoint: str, engine: EngineConfig) -> AbstractContextManager[Callable[..., Any]]:
    """A worker of the fleet in a process of its own."""
    return process(
        RolloutWorker,
        partial(TokenEngine, checkpoint, engine),
        engine.threads,
        threads=engine.threads,
        gpus=engine.gpus,
        environment=engine_environment(engine),
    )


def _fleet_rate(call: Callable[..., Any], request: Request) -> float:
    started = time.perf_counter()
    groups = call("sample", request)
    tokens = sum(len(reaction.actions) for group in groups for reaction in group)
    return tokens / (time.perf_counter() - started)


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
