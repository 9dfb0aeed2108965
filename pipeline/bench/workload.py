"""What benches run on: random policies and prompts of a given size, and processes of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray

from rapport.actors.cluster import worker_environment
from rapport.pipeline.bench_settings import LiveBench, NetworkConfig, RolloutBench, SyncBench
from rapport.policies.motion import Layout
from rapport.policies.vla.actions import ActionSpace, ActionTokenizer
from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.loading import (
    SequenceSizes,
    build_tiny,
    network_sizes,
    save_checkpoint,
    sequence_sizes,
    tiny_config,
)
from rapport.policies.vla.prompt import picture_shape, voice_shape
from rapport.policies.vla.text import build_text_tokenizer
from rapport.policies.vla.vla_prompt import VlaPrompt

FPS = 25.0
BINS = 256  # of an action


def action_space(expr_dims: int, rate: float, seconds: float) -> ActionSpace:
    """Actions of expression, head rotation and jaw."""
    layout = Layout((("expr", expr_dims), ("rot", 3), ("jaw", 3)), FPS, "builtin")
    return ActionSpace(layout, rate, seconds)


def sampled_policy(
    config: LiveBench | RolloutBench | SyncBench, folder: Path, *, slot_embeddings: bool = True
) -> FaceVLAConfig:
    """Save the policy that is sampled from.

    Args:
        config: of the bench.
        folder: to save it in.
        slot_embeddings: as in `TinySizes`.
    """
    action = config.vla.action
    return random_policy(
        folder,
        config.vla,
        action_space(action.expr_dims, action.rate, config.corpus.seconds),
        vocabulary=config.vla.vocabulary,
        seed=config.seed,
        sequence=sequence_sizes(config.vla, config.corpus.frames),
        image_size=config.corpus.image_size,
        slot_embeddings=slot_embeddings,
    )


def random_policy(
    folder: Path,
    network: NetworkConfig,
    space: ActionSpace,
    *,
    vocabulary: int,
    seed: int,
    sequence: SequenceSizes,
    **sizes: Any,
) -> FaceVLAConfig:
    """Save a policy with random weights.

    Args:
        folder: to save it in.
        network: its sizes.
        space: of its actions, each between -1 and 1.
        vocabulary: action ids included.
        seed: of the weights.
        sequence: how it perceives and acts.
        sizes: others, as in `TinySizes`.
    """
    tokenizer = build_text_tokenizer(["hello there"], text_vocabulary=vocabulary - BINS)
    tiny = tiny_config(
        tokenizer,
        space,
        sequence,
        **network_sizes(network),
        **sizes,
    )
    model = build_tiny(tiny, seed=seed)
    high = np.ones(space.dims, np.float32)
    actions = ActionTokenizer(space, -high, high, first_token=model.config.action_token_start)
    save_checkpoint(model, tokenizer, actions, path=folder)
    return model.config


def random_prompts(
    config: FaceVLAConfig, count: int, seed: int, *, filmed: bool = True
) -> list[VlaPrompt]:
    """Prompts full of pictures, sound and text; ids beyond the special tokens and the bytes.

    Args:
        config: of the policy.
        count: how many.
        seed: of all of it.
        filmed: whether they have frames and voice.
    """
    rng = np.random.default_rng(seed)
    first = config.action_token_start
    present = np.full((config.items, 2), filmed)
    present[:, 1] &= config.voice_tokens > 0
    prompts = []
    for number in range(count):
        frames = rng.integers(0, 256, (config.items, *picture_shape(config)), dtype=np.uint8)
        voice = rng.integers(0, 256, (config.items, *voice_shape(config)), dtype=np.uint8)
        prompt = VlaPrompt(
            f"p{number:04d}",
            frames=frames if filmed else None,
            voice=voice if filmed else None,
            present=present,
            heard=rng.integers(6, 262, (config.chunks, config.text_tokens)),
            said=rng.integers(6, 262, (config.chunks, config.chunk_text)),
            own=first + rng.integers(0, config.action_bins, len(config.pose_dims)),
            rest=np.zeros(config.action_dims),
        )
        prompts.append(prompt)
    return prompts


@contextmanager
def process(
    actor: Any,
    *arguments: Any,
    threads: int = 1,
    gpus: float = 0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Callable[..., Any]]:
    """An actor in a process of its own; yields `call(method, *arguments)`.

    Args:
        actor: class whose instance lives there.
        arguments: of its constructor.
        threads: CPU threads that it has.
        gpus: share of a GPU; 0 = it sees none.
        environment: variables of the process besides.
    """
    variables = worker_environment(threads, gpus) | dict(environment or {})
    options = {"num_cpus": threads, "num_gpus": gpus, "runtime_env": {"env_vars": variables}}
    handle = ray.remote(actor).options(**options).remote(*arguments)
    try:
        yield lambda method, *inputs: ray.get(getattr(handle, method).remote(*inputs))
    finally:
        ray.kill(handle)


def seconds(work: Callable[[], Any]) -> float:
    """What a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_and_range(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest of repeated measurements."""
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}
