"""ReactFace on one core: frames a second, how late live windows are, room for how many sessions.

Weights, faces and voices are at random: speed does not depend on them. What it is compared with
encodes again, for every window, all that was heard before it, as the authors' evaluation does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from rapport.log import logger
from rapport.pipeline.bench.workload import FPS, median_and_range, seconds
from rapport.pipeline.bench_settings import ReactFaceBench
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.flow.config import PAPER_GROUPS
from rapport.policies.flow.encoders import LogMel
from rapport.policies.live import Chunk
from rapport.policies.motion import Layout, Motion
from rapport.policies.reactface.config import Size, reactface_config
from rapport.policies.reactface.live import LiveReactFace
from rapport.policies.reactface.model import ReactFace, Scene, initialised
from rapport.policies.reactface.policy import ReactFacePolicy

SIZES: tuple[Size, ...] = ("tiny", "paper")
WINDOWS = 94  # of REACT's clips, 30 s
BATCH = 8  # clips at once
SESSIONS = (1, 20)


def measure(config: ReactFaceBench) -> dict[str, Any]:
    """Whole clips, and sessions window by window, of both sizes."""
    torch.set_num_threads(config.bench.threads)
    layout = Layout(PAPER_GROUPS, FPS, "flame2020")
    result: dict[str, Any] = {"threads": config.bench.threads}
    for size in SIZES:
        model = initialised(reactface_config(size, layout, LogMel().dim), config.seed).eval()
        measured = _clips(config, model) | _sessions(config, model)
        result[size] = {"parameters": sum(p.numel() for p in model.parameters())} | measured
        one, *_, many = SESSIONS
        live = measured["sessions"]
        logger.info(
            f"[reactface] {size}: {measured['frames_per_second']['1']:.0f} frames/s of a clip, "
            f"{measured['frames_per_second'][str(BATCH)]:.0f} of {BATCH} at once, "
            f"{measured['speed_up']:.0f} times what encoding anew for each window takes; live p50 "
            f"{live[str(one)]['p50_ms']:.1f}, p99 {live[str(one)]['p99_ms']:.1f} ms a window, "
            f"{many} sessions {live[str(many)]['p50_ms']:.0f}, {live[str(many)]['p99_ms']:.0f} ms "
            f"of {live['chunk_ms']:.0f}"
        )
    return result


def _scene(model: ReactFace, batch: int, windows: int) -> tuple[Scene, torch.Tensor]:
    sizes = model.sizes
    frames = windows * sizes.window
    motion = torch.randn(batch, frames, sizes.layout.dim)
    voice = torch.randn(batch, frames, sizes.audio_dim)
    noise = torch.randn(batch, 1, windows, sizes.latent)
    return Scene(motion, voice, torch.ones(batch, 2, dtype=torch.bool)), noise


@torch.no_grad()
def _clips(config: ReactFaceBench, model: ReactFace) -> dict[str, Any]:
    """Whole clips at once, and the last window of one with all before it encoded anew."""
    frames = WINDOWS * model.sizes.window
    repeats = config.bench.repeats
    times, speeds = {}, {}
    for batch in (1, BATCH):
        work = partial(model.react, *_scene(model, batch, WINDOWS))
        work()
        times[str(batch)] = median_and_range([seconds(work) for _ in range(repeats)])
        speeds[str(batch)] = batch * frames / times[str(batch)]["median"]
    # Encoding grows with what was heard: on average half a clip, once a window.
    half, _ = _scene(model, 1, WINDOWS // 2)
    again = median_and_range([seconds(partial(model.encode, half)) for _ in range(repeats + 1)])
    anew = WINDOWS * again["median"] + times["1"]["median"]
    return {
        "clip_s": times,
        "frames_per_second": speeds,
        "anew_s": anew,
        "speed_up": anew / times["1"]["median"],
    }


def _sessions(config: ReactFaceBench, model: ReactFace) -> dict[str, Any]:
    """Milliseconds of a window, of so many sessions in one pass."""
    listener = LiveReactFace(ReactFacePolicy(model))
    layout = model.sizes.layout
    rng = np.random.default_rng(config.seed)
    motion = rng.normal(size=(model.sizes.window, layout.dim)).astype(np.float32)
    voice = rng.normal(size=round(listener.chunk * AUDIO_RATE)).astype(np.float32) / 10
    chunk = Chunk(motion=Motion(motion, layout), audio=voice)
    found: dict[str, Any] = {"chunk_ms": 1000 * listener.chunk}
    for count in SESSIONS:
        states = [listener.start(seed) for seed in range(count)]
        took = []
        for _ in range(config.bench.windows):
            states, time = _timed_step(listener, states, [chunk] * count)
            took.append(1000 * time)
        settled = took[model.sizes.span :]  # the first ones look back less far
        p50, p99 = np.percentile(settled, [50, 99])
        found[str(count)] = {"p50_ms": float(p50), "p99_ms": float(p99)}
    return {"sessions": found}


def _timed_step(
    listener: LiveReactFace, states: list[Any], chunks: list[Chunk]
) -> tuple[list[Any], float]:
    after: list[Any] = []
    time = seconds(lambda: after.extend(listener.step(states, chunks)[1]))
    return after, time
