"""AR-Flow at paper size on one core: frames a second, cached against uncached, what a group of
rollouts costs, and how much memory learning from one takes.

A window of 200 frames with all four conditions, weights and features at random: speed does not
depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch

from rapport.pipeline.bench.workload import seconds, spread
from rapport.pipeline.settings import BenchConfig
from rapport.policies.flow.conditions import Conditions
from rapport.policies.flow.config import PAPER_GROUPS, flow_config, vae_config
from rapport.policies.flow.model import ARFlow, initialised
from rapport.policies.flow.sampling import draw_noise, generate
from rapport.policies.flow.sde import replay_velocities, rollout
from rapport.policies.motion import Layout

STEPS, ROLLOUT_STEPS, SIGMA = 10, 4, 0.5  # GDPO-Listener, section 4.1
GROUP_SIZES = (1, 2, 4, 8, 16)
# Of a replay: latents, denoise steps of each, chunk (None = all at once; the paper's is 50).
REPLAYS = ((25, 4, None), (25, 16, None), (25, 4, 50), (25, 16, 50), (25, 64, 50), (100, 4, 50))
REPLAYED = 4  # rollouts, the paper's G
T5_XXL, WAV2VEC2_LARGE = 4096, 1024  # widths


def measure(config: BenchConfig, say: Callable[[str], None]) -> dict[str, Any]:
    torch.set_num_threads(config.bench.threads)
    model, conditions = paper_size(config.seed)
    sizes = model.config

    def repeated(work: Callable[[], Any]) -> dict[str, float]:
        work()
        return spread([seconds(work) for _ in range(config.bench.repeats)])

    start = draw_noise([config.seed], 1, sizes.window, sizes.latent_dim)
    guided = torch.full((1, sizes.window), 2.0)
    ways = {"offline": {}, "streaming": {"streaming": True}, "guided": {"omega": guided}}
    cached = {
        name: repeated(lambda way=way: generate(model, conditions, start, STEPS, **way))
        for name, way in ways.items()
    }
    frames_per_second = {name: sizes.frames / time["median"] for name, time in cached.items()}
    uncached = (
        sizes.window * STEPS * repeated(lambda: _uncached_step(model, conditions, start))["median"]
    )
    speed_up = uncached / cached["offline"]["median"]
    say(
        f"{STEPS} steps: "
        + ", ".join(f"{fps:.0f} frames/s {name}" for name, fps in frames_per_second.items())
        + f"; keeping prefix and history is {speed_up:.1f} times as fast"
    )

    groups = {}
    for size in GROUP_SIZES:
        drawn = draw_noise([config.seed], size, sizes.window, ROLLOUT_STEPS + 1, sizes.latent_dim)
        groups[str(size)] = repeated(lambda drawn=drawn: rollout(model, conditions, drawn, SIGMA))
    relative = {size: time["median"] / groups["1"]["median"] for size, time in groups.items()}
    say(
        "a group of rollouts against a single one: "
        + ", ".join(f"G={g} {r:.2f}x" for g, r in relative.items())
    )
    replays = {
        f"{latents} latents, {steps} steps, {f'{chunk} at a time' if chunk else 'all at once'}": replay_memory(
            latents, steps, chunk, config.seed, config.bench.threads
        )
        for latents, steps, chunk in REPLAYS
    }
    say(
        f"memory of the replay of {REPLAYED} rollouts, MiB: "
        + "; ".join(f"{k} {v:.0f}" for k, v in replays.items())
    )
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": config.bench.threads,
        "generate_s": cached,
        "frames_per_second": frames_per_second,
        "uncached_s": uncached,
        "speed_up": speed_up,
        "rollout_s": groups,
        "rollout_relative": relative,
        "replay_mib": replays,
    }


def paper_size(seed: int, window: int = 25) -> tuple[ARFlow, Conditions]:
    vae = vae_config("paper", Layout(PAPER_GROUPS, 25, "flame2020"))
    model = initialised(flow_config("paper", vae, T5_XXL, WAV2VEC2_LARGE, window), seed).eval()
    audio = torch.randn(1, model.config.frames, WAV2VEC2_LARGE)
    return model, Conditions(
        torch.randn(1, T5_XXL), audio, torch.randn(1, window, vae.latent_dim), audio
    )


def replay_memory(latents: int, steps: int, chunk: int | None, seed: int, threads: int) -> float:
    """MiB by which a fresh process grows in forward and backward pass of a replay; weights,
    gradients apart.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_replay, latents, steps, chunk, seed, threads).result()


def _replay(latents: int, steps: int, chunk: int | None, seed: int, threads: int) -> float:
    torch.set_num_threads(threads)
    model, conditions = paper_size(seed, latents)
    states = torch.randn(1, REPLAYED, latents, steps + 1, model.config.latent_dim)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = getrusage(RUSAGE_SELF).ru_maxrss  # KiB
    replay_velocities(model, conditions, states, chunk=chunk).square().mean().backward()
    return (getrusage(RUSAGE_SELF).ru_maxrss - before) / 1024


@torch.no_grad()
def _uncached_step(model: ARFlow, conditions: Conditions, start: torch.Tensor) -> None:
    """One denoise step of the latent in the middle of the window, prefix and history computed anew."""
    middle = model.config.window // 2
    model(
        model.encode_prefix(conditions),
        start[:, :, :middle],
        start[:, :, middle : middle + 1],
        torch.zeros(1),
        torch.tensor([middle]),
    )
