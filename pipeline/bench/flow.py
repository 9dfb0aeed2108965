"""AR-Flow at paper size on one core: frames a second, cached against uncached, and what a group of rollouts costs.

A window of 200 frames with all four conditions, weights and features at random: speed does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pipeline.bench.workload import seconds, spread
from pipeline.config import BenchConfig
from policies.flow.conditions import Conditions
from policies.flow.config import PAPER_GROUPS, flow_config, vae_config
from policies.flow.model import ARFlow, initialised
from policies.flow.sampling import draw_noise, generate
from policies.flow.sde import rollout
from policies.motion import Layout

STEPS, ROLLOUT_STEPS, SIGMA = 10, 4, 0.5  # GDPO-Listener, section 4.1
GROUP_SIZES = (1, 2, 4, 8, 16)
T5_XXL, WAV2VEC2_LARGE = 4096, 1024  # widths


def measure(config: BenchConfig, say: Callable[[str], None]) -> dict[str, Any]:
    torch.set_num_threads(config.bench.threads)
    vae = vae_config("paper", Layout(PAPER_GROUPS, 25, "flame2020"))
    model = initialised(flow_config("paper", vae, T5_XXL, WAV2VEC2_LARGE), config.seed).eval()
    sizes = model.config
    noise = torch.randn(1, sizes.frames, WAV2VEC2_LARGE)
    conditions = Conditions(torch.randn(1, T5_XXL), noise, torch.randn(1, sizes.window, sizes.latent_dim), noise)

    def repeated(work: Callable[[], Any]) -> dict[str, float]:
        work()
        return spread([seconds(work) for _ in range(config.bench.repeats)])

    start = draw_noise([config.seed], 1, sizes.window, sizes.latent_dim)
    guided = torch.full((1, sizes.window), 2.0)
    ways = {"offline": {}, "streaming": {"streaming": True}, "guided": {"omega": guided}}
    cached = {name: repeated(lambda way=way: generate(model, conditions, start, STEPS, **way))
              for name, way in ways.items()}
    frames_per_second = {name: sizes.frames / time["median"] for name, time in cached.items()}
    uncached = sizes.window * STEPS * repeated(lambda: _uncached_step(model, conditions, start))["median"]
    speed_up = uncached / cached["offline"]["median"]
    say(f"{STEPS} steps: " + ", ".join(f"{fps:.0f} frames/s {name}" for name, fps in frames_per_second.items())
        + f"; keeping prefix and history is {speed_up:.1f} times as fast")

    groups = {}
    for size in GROUP_SIZES:
        drawn = draw_noise([config.seed], size, sizes.window, ROLLOUT_STEPS + 1, sizes.latent_dim)
        groups[str(size)] = repeated(lambda drawn=drawn: rollout(model, conditions, drawn, SIGMA))
    relative = {size: time["median"] / groups["1"]["median"] for size, time in groups.items()}
    say("a group of rollouts against a single one: " + ", ".join(f"G={g} {r:.2f}x" for g, r in relative.items()))
    return {"parameters": sum(p.numel() for p in model.parameters()), "threads": config.bench.threads,
            "generate_s": cached, "frames_per_second": frames_per_second, "uncached_s": uncached, "speed_up": speed_up,
            "rollout_s": groups, "rollout_relative": relative}


@torch.no_grad()
def _uncached_step(model: ARFlow, conditions: Conditions, start: torch.Tensor) -> None:
    """One denoise step of the latent in the middle of the window, prefix and history computed anew."""
    middle = model.config.window // 2
    model(model.encode_prefix(conditions), start[:, :, :middle], start[:, :, middle : middle + 1], torch.zeros(1),
          torch.tensor([middle]))
