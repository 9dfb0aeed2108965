"""Action tokens a second: a vLLM engine of the fleet against transformers' `generate`, each alone
on the same cores.

Both sample whole action sequences of the same policy for the same prompts, temperature only, over
the 256 bins. The policy has no slot embeddings: `generate` knows of none. `fleet` is vLLM as the
fleet asks it, whose log-probs of every token and seeds per prompt are counted as its time; `bare`
is vLLM without them, which is what `generate` does. Start-up is reported beside, not within.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from transformers import LogitsProcessor

from rapport.actors.engines import TokenEngine, engine_environment
from rapport.actors.fleet import Request, RolloutWorker
from rapport.actors.settings import EngineConfig
from rapport.pipeline.bench.workload import process, random_policy, random_prompts, spread
from rapport.pipeline.settings import BenchConfig
from rapport.policies.vla.loading import load_checkpoint
from rapport.policies.vla.policy import prompt_seed
from rapport.policies.vla.vla_prompt import VlaPrompt
from rapport.policies.vla.vllm_plugin import sampling_params, vllm_prompt


class _OnlyActions(LogitsProcessor):
    """The 256 action ids and nothing else."""

    def __init__(self, start: int, bins: int, vocabulary: int):
        self.mask = torch.full((vocabulary,), -torch.inf)
        self.mask[start : start + bins] = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + self.mask.to(scores)


@ray.remote
class Bare:
    """A vLLM engine that does no more than `generate`: no log-probs, one stream of random numbers."""

    def __init__(self, checkpoint: str, options: EngineConfig):
        from rapport.policies.vla.vllm_engine import VllmEngine

        torch.set_num_threads(options.threads)
        self.engine = VllmEngine(
            Path(checkpoint), options.dtype, options.temperature, options.kv_cache_gib, 1
        )

    def generate(self, prompts: list[VlaPrompt], samples: int) -> int:
        """Sample; returns how many tokens."""
        config = self.engine.config
        parameters = sampling_params(config, samples, None, self.engine.temperature)
        parameters.logprobs = None
        outputs = self.engine.llm.generate(
            [vllm_prompt(config, p.ids, p.frames) for p in prompts], parameters, use_tqdm=False
        )
        return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)


@ray.remote
class TransformersGenerate:
    """The same policy under `generate`; frames are encoded once a prompt."""

    def __init__(self, checkpoint: str, dtype: str, threads: int, temperature: float):
        torch.set_num_threads(threads)
        self.model = load_checkpoint(Path(checkpoint), dtype=getattr(torch, dtype)).model.eval()
        c = self.model.config
        self.only_actions = [
            _OnlyActions(c.action_token_start, c.action_bins, c.text_config.vocab_size)
        ]
        self.temperature = temperature

    @torch.inference_mode()
    def generate(self, prompts: list[VlaPrompt], samples: int, batch: int) -> int:
        """Sample in batches of `batch` sequences; returns how many tokens."""
        torch.manual_seed(0)
        ids = torch.stack([torch.as_tensor(p.ids) for p in prompts])
        frames = torch.stack([torch.as_tensor(p.frames) for p in prompts])
        embedded = self.model.embed_prompt(ids, frames).repeat_interleave(samples, dim=0)
        tokens, count = self.model.config.action_tokens, 0
        for rows in embedded.split(batch):
            sampled = self.model.language_model.generate(
                inputs_embeds=rows,
                attention_mask=torch.ones(rows.shape[:2], dtype=torch.long),
                do_sample=True,
                temperature=self.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                logits_processor=self.only_actions,
                pad_token_id=0,
            )
            count += sampled.numel()
        return count


def measure(config: BenchConfig, say: Callable[[str], None]) -> dict[str, Any]:
    b, rollout = config.bench, config.rollout
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        policy = random_policy(config, Path(scratch), slot_embeddings=False)
        prompts = random_prompts(policy, b.prompts, config.seed)
        seeds = [prompt_seed(config.seed, prompt.prompt_id) for prompt in prompts]
        count = b.prompts * rollout.samples
        result["workload"] = {
            "prompts": b.prompts,
            "samples": rollout.samples,
            "prompt_tokens": policy.prompt_length,
            "action_tokens": policy.action_tokens,
            "hidden": config.vla.hidden,
            "layers": config.vla.layers,
            "threads": b.threads,
        }
        for dtype in ("float32", "bfloat16"):
            options = rollout.model_copy(
                update={"engine": "vllm", "dtype": dtype, "threads": b.threads}
            )
            fleet = _fleet(
                config, scratch, options, Request(0, prompts, seeds, rollout.samples), say
            )
            with process(Bare, b.threads, scratch, options, **engine_environment(options)) as call:
                call("generate", prompts[:1], 2)  # warm
                bare = [
                    _tokens_per_s(call, "generate", prompts, rollout.samples)
                    for _ in range(b.repeats)
                ]
            with process(
                TransformersGenerate, b.threads, scratch, dtype, b.threads, rollout.temperature
            ) as call:
                call("generate", prompts[:1], 2, 2)  # warm
                rates = {
                    batch: _tokens_per_s(call, "generate", prompts, rollout.samples, batch)
                    for batch in sorted({min(size, count) for size in b.batch_sizes})
                }
                best = max(rates, key=rates.get)
                theirs = [rates[best]] + [
                    _tokens_per_s(call, "generate", prompts, rollout.samples, best)
                    for _ in range(b.repeats - 1)
                ]
            theirs = spread(theirs)
            vllm = {"fleet": fleet, "bare": {"tokens_per_s": spread(bare)}}
            for name, found in vllm.items():
                rate = found["tokens_per_s"]["median"]
                found["ratio"] = rate / theirs["median"]
                say(
                    f"{dtype}: vLLM ({name}) {rate:.0f}, transformers {theirs['median']:.0f} "
                    "tokens/s (batches of "
                    f"{best}); {found['ratio']:.2f} times"
                )
            result[dtype] = vllm | {
                "transformers": {
                    "tokens_per_s": theirs,
                    "batch_size": best,
                    "tokens_per_s_by_batch_size": rates,
                }
            }
    return result


def _fleet(
    config: BenchConfig,
    checkpoint: str,
    options: EngineConfig,
    request: Request,
    say: Callable[[str], None],
) -> dict[str, Any]:
    started = time.perf_counter()
    with process(
        RolloutWorker,
        config.bench.threads,
        partial(TokenEngine, checkpoint, options),
        config.bench.threads,
        **engine_environment(options),
    ) as call:
        info = call("describe")
        start = time.perf_counter() - started
        cold = _vllm_rate(call, request)
        warm = [_vllm_rate(call, request) for _ in range(config.bench.repeats)]
    say(
        f"vLLM {info['version']}, {options.dtype}: start {start:.1f} s, first call {cold:.0f}, "
        f"then {warm[-1]:.0f} "
        "tokens/s"
    )
    return {
        "version": info["version"],
        "device": info["device"],
        "start_s": start,
        "cold_tokens_per_s": cold,
        "tokens_per_s": spread(warm),
    }


def _vllm_rate(call: Callable[..., Any], request: Request) -> float:
    started = time.perf_counter()
    groups = call("sample", request)
    tokens = sum(len(reaction.actions) for group in groups for reaction in group)
    return tokens / (time.perf_counter() - started)


def _tokens_per_s(call: Callable[..., Any], *arguments: Any) -> float:
    started = time.perf_counter()
    return call(*arguments) / (time.perf_counter() - started)
