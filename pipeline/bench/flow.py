"""AR-Flow at paper size on one core: speed, what a group of rollouts costs, memory of learning.

Frames a second are measured cached and uncached, memory is what learning from a group of rollouts
takes. A window of 200 frames with all four conditions, weights and features at random: speed does
not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch

from rapport.log import logger
from rapport.pipeline.bench.workload import FPS, median_and_range, seconds
from rapport.pipeline.bench_settings import FlowBench
from rapport.policies.flow.conditions import Conditions
from rapport.policies.flow.config import PAPER_GROUPS, flow_config, vae_config
from rapport.policies.flow.model import ARFlow, initialised
from rapport.policies.flow.rollouts import NoisyWindow, PaperSde, replay_means, rollout
from rapport.policies.flow.sampling import draw_noise, generate, generate_long, ode
from rapport.policies.motion import Layout

EVALUATIONS = 10
SIGMA = 0.5
EXPLORATION = NoisyWindow("midpoint", EVALUATIONS, SIGMA)
GROUP_SIZES = (1, 2, 4, 8, 16)
REPLAYED = 4  # rollouts, the paper's G
T5_XXL = 4096  # wide
WAV2VEC2_LARGE = 1024  # wide


@dataclass(frozen=True)
class Replay:
    """How much of a rollout by the paper's SDE is learnt from at once.

    Args:
        latents: of the window.
        steps: denoise steps of each.
        chunk: steps replayed at once; None = all of them. The paper's is 50.
    """

    latents: int
    steps: int
    chunk: int | None

    def __str__(self) -> str:
        at_once = "all at once" if self.chunk is None else f"{self.chunk} at a time"
        return f"{self.latents} latents, {self.steps} steps, {at_once}"


REPLAYS = (
    Replay(25, 4, None),
    Replay(25, 16, None),
    Replay(25, 4, 50),
    Replay(25, 16, 50),
    Replay(25, 64, 50),
    Replay(100, 4, 50),
)


def measure(config: FlowBench) -> dict[str, Any]:
    """Frames a second, groups of rollouts, memory of replays."""
    threads = config.bench.threads
    torch.set_num_threads(threads)
    model, conditions = paper_size(config.seed)
    result: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "threads": threads,
    }
    result |= _generation(config, model, conditions)
    result |= _groups(config, model, conditions)
    replays = {str(replay): replay_memory(replay, config.seed, threads) for replay in REPLAYS}
    shown = "; ".join(f"{name} {mib:.0f}" for name, mib in replays.items())
    logger.info(f"[flow] memory of the replay of {REPLAYED} rollouts, MiB: {shown}")
    return result | {"replay_mib": replays}


def _generation(config: FlowBench, model: ARFlow, conditions: Conditions) -> dict[str, Any]:
    """By the ODE, as it is done and with nothing kept."""
    sizes = model.config
    noise = draw_noise([config.seed], 1, sizes.window, sizes.latent_dim)
    denoise = ode("midpoint", EVALUATIONS)
    offline = partial(generate, model, conditions, noise, denoise)
    ways: dict[str, Callable[[], Any]] = {
        "offline": offline,
        "streaming": partial(generate_long, model, conditions, noise, denoise),
        "guided": partial(offline, omega=torch.full((1, sizes.window), 2.0)),
    }
    cached = {name: _repeated(work, config.bench.repeats) for name, work in ways.items()}
    step = _repeated(partial(_uncached_step, model, conditions, noise), config.bench.repeats)
    uncached = sizes.window * EVALUATIONS * step["median"]
    frames_per_second = {name: sizes.frames / time["median"] for name, time in cached.items()}
    speed_up = uncached / cached["offline"]["median"]
    shown = ", ".join(f"{fps:.0f} frames/s {name}" for name, fps in frames_per_second.items())
    logger.info(
        f"[flow] {EVALUATIONS} evaluations: {shown}; keeping prefix and history is "
        f"{speed_up:.1f} times as fast"
    )
    return {
        "generate_s": cached,
        "frames_per_second": frames_per_second,
        "uncached_s": uncached,
        "speed_up": speed_up,
    }


def _groups(config: FlowBench, model: ARFlow, conditions: Conditions) -> dict[str, Any]:
    """With a noisy step, for groups of several sizes."""
    sizes = model.config
    groups = {}
    for size in GROUP_SIZES:
        noise = draw_noise([config.seed], size, sizes.window, 2, sizes.latent_dim)
        first = EXPLORATION.first([config.seed])
        work = partial(rollout, model, conditions, noise, EXPLORATION, first)
        groups[str(size)] = _repeated(work, config.bench.repeats)
    relative = {size: time["median"] / groups["1"]["median"] for size, time in groups.items()}
    shown = ", ".join(f"G={size} {ratio:.2f}x" for size, ratio in relative.items())
    logger.info(f"[flow] a group of rollouts against a single one: {shown}")
    return {"rollout_s": groups, "rollout_relative": relative}


def _repeated(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Seconds, after a warm-up."""
    work()
    return median_and_range([seconds(work) for _ in range(repeats)])


def paper_size(seed: int, window: int = 25) -> tuple[ARFlow, Conditions]:
    """AR-Flow of 19.3 M parameters, and conditions of a window of as many latents."""
    vae = vae_config("paper", Layout(PAPER_GROUPS, FPS, "flame2020"))
    model = initialised(
        flow_config("paper", vae, T5_XXL, audio_dim=WAV2VEC2_LARGE, window=window), seed
    ).eval()
    audio = torch.randn(1, model.config.frames, WAV2VEC2_LARGE)
    text = torch.randn(1, T5_XXL)
    motion = torch.randn(1, window, vae.latent_dim)
    return model, Conditions(text, audio, motion, audio)


def replay_memory(replay: Replay, seed: int, threads: int) -> float:
    """MiB by which forward and backward pass of a replay make a fresh process grow.

    Weights and gradients are there before.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        return executor.submit(_growth, replay, seed, threads).result()


def _growth(replay: Replay, seed: int, threads: int) -> float:
    torch.set_num_threads(threads)
    model, conditions = paper_size(seed, replay.latents)
    sde = PaperSde(replay.steps, SIGMA)
    shape = (1, REPLAYED, replay.latents, replay.steps + 2, model.config.latent_dim)
    states = torch.randn(shape)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = getrusage(RUSAGE_SELF).ru_maxrss  # KiB
    first = torch.zeros(1, dtype=torch.int64)
    means = replay_means(model, conditions, states, sde, first, chunk=replay.chunk)
    means.square().mean().backward()
    return (getrusage(RUSAGE_SELF).ru_maxrss - before) / 1024


@torch.no_grad()
def _uncached_step(model: ARFlow, conditions: Conditions, start: torch.Tensor) -> None:
    """One denoise step of the middle latent of a window, prefix and history computed anew."""
    middle = model.config.window // 2
    model(
        model.encode_prefix(conditions),
        start[:, :, :middle],
        start[:, :, middle : middle + 1],
        torch.zeros(1),
        torch.tensor([middle]),
    )
