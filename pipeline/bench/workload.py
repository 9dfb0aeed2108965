"""What benchmarks run on: policies of a given size with weights and prompts at random, and actors
of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rapport.actors.cluster import worker_environment
from rapport.pipeline.settings import BenchConfig
from rapport.policies.motion import Layout
from rapport.policies.vla.actions import ActionSpace, ActionTokenizer
from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.loading import build_tiny, save_checkpoint, tiny_config
from rapport.policies.vla.prompt import build_prompt
from rapport.policies.vla.text import build_text_tokenizer
from rapport.policies.vla.vla_prompt import VlaPrompt


def random_policy(config: BenchConfig, directory: Path, **changes: Any) -> FaceVLAConfig:
    """Save a policy of the configured size; `changes` as in `tiny_config`, and `space`,
    `vocabulary`.
    """
    policy = config.vla
    space = changes.pop("space", None)
    if space is None:
        layout = Layout(
            (("expr", policy.action.expr_dims), ("rot", 3), ("jaw", 3)), 25.0, "builtin"
        )
        space = ActionSpace(layout, policy.action.rate, config.corpus.seconds)
    vocabulary = changes.pop("vocabulary", policy.vocabulary)
    tokenizer = build_text_tokenizer(["hello there"], text_vocabulary=vocabulary - 256)
    sizes = {
        "frames": config.corpus.frames,
        "image_size": config.corpus.image_size,
        "text_tokens": policy.text_tokens,
        "hidden": policy.hidden,
        "layers": policy.layers,
        "heads": policy.heads,
        "kv_heads": policy.kv_heads,
        "tower_hidden": policy.vision_hidden,
        "tower_layers": policy.vision_layers,
    }
    model = build_tiny(tiny_config(tokenizer, space, **sizes | changes), seed=config.seed)
    low, high = -np.ones(space.dims, np.float32), np.ones(space.dims, np.float32)
    actions = ActionTokenizer(space, low, high, model.config.action_token_start)
    save_checkpoint(model, tokenizer, actions, directory)
    return model.config


def random_prompts(
    config: FaceVLAConfig, count: int, seed: int, has_frames: bool = True
) -> list[VlaPrompt]:
    """Prompts full of text; ids beyond the special tokens and the bytes."""
    rng = np.random.default_rng(seed)
    shape = (config.frames, config.image_size, config.image_size, 3)
    prompts = []
    for i in range(count):
        text = rng.integers(6, 262, config.text_tokens).tolist()
        frames = rng.integers(0, 256, shape, dtype=np.uint8) if has_frames else None
        prompts.append(VlaPrompt(f"p{i:04d}", build_prompt(config, text, has_frames), frames))
    return prompts


@contextmanager
def process(
    actor: Any, threads: int, *arguments: Any, **environment: str
) -> Iterator[Callable[..., Any]]:
    """An actor in a process of its own with `threads` CPU threads; yields `call(method,
    *arguments)`.
    """
    env = worker_environment(threads) | environment
    handle = actor.options(num_cpus=threads, runtime_env={"env_vars": env}).remote(*arguments)
    try:
        yield lambda method, *args: ray.get(getattr(handle, method).remote(*args))
    finally:
        ray.kill(handle)


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest of repeated measurements."""
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}
