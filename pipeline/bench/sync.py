"""Seconds to give the fleet new weights, and as a multiple of copying the same bytes once per
engine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from rapport.actors.engines import TokenEngine, engine_environment
from rapport.actors.fleet import Canary, Fleet
from rapport.pipeline.bench.workload import random_policy, random_prompts, seconds, spread
from rapport.pipeline.settings import BenchConfig
from rapport.policies.vla.policy import TokenSampler, VlaPolicy


def measure(config: BenchConfig, say: Callable[[str], None]) -> dict[str, Any]:
    rollout = config.rollout
    with tempfile.TemporaryDirectory() as scratch:
        sizes = random_policy(config, Path(scratch))
        policy = VlaPolicy.load(Path(scratch))
        policy.sampler = TokenSampler(rollout.temperature)
        canary = random_prompts(sizes, 1, config.seed)[0]
        with Fleet(
            partial(TokenEngine, scratch, rollout),
            rollout,
            losses=config.cluster.lost_workers,
            environment=engine_environment(rollout),
            policy=policy,
            canary=Canary(canary, rollout.canary_tolerance, min(128, sizes.action_tokens)),
        ) as fleet:
            fleet.ready()
            state = {name: tensor.detach() for name, tensor in policy.weights().items()}
            copies, whole, given = [], [], []
            for _ in range(config.bench.repeats + 1):
                with torch.no_grad():
                    for parameter in policy.model.parameters():
                        parameter.add_(1e-4)
                copies.append(
                    seconds(
                        lambda: [
                            {n: t.clone() for n, t in state.items()} for _ in range(rollout.workers)
                        ]
                    )
                )
                whole.append(seconds(lambda: fleet.update(policy.weights(), policy)))
                given.append(seconds(lambda: fleet.each("update", ray.put(state), fleet.version)))
    bytes_ = sum(t.numel() * t.element_size() for t in state.values())
    # The first update of an engine compiles and imports what the others find done.
    update, plain, hand_over = (spread(values[1:]) for values in (whole, copies, given))
    say(
        f"{bytes_ / 1e6:.1f} MB to {rollout.workers} engines: {update['median']:.2f} s with "
        "digest and canary, "
        f"{hand_over['median']:.2f} s without; a plain copy takes {1000 * plain['median']:.1f} ms"
    )
    return {
        "megabytes": bytes_ / 1e6,
        "workers": rollout.workers,
        "update_s": update,
        "hand_over_s": hand_over,
        "plain_copy_s": plain,
        "ratio": update["median"] / plain["median"],
        "ratio_without_checks": hand_over["median"] / plain["median"],
    }
