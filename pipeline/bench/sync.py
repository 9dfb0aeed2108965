"""Seconds to give a fleet new weights, and to copy the same bytes once for each engine."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from rapport.actors.engines import TokenEngine, canary_tolerance, engine_environment
from rapport.actors.fleet import CANARY_TOKENS, Canary, Fleet
from rapport.log import logger
from rapport.pipeline.bench.workload import (
    median_and_range,
    random_prompts,
    sampled_policy,
    seconds,
)
from rapport.pipeline.bench_settings import SyncBench
from rapport.policies.vla.policy import TokenSampler, VlaPolicy


def measure(config: SyncBench) -> dict[str, Any]:
    """Updates with digest and canary, updates without, and plain copies."""
    rollout = config.rollout
    plain: list[float] = []
    checked: list[float] = []
    unchecked: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        sizes = sampled_policy(config, Path(scratch))
        policy = VlaPolicy.load(Path(scratch))
        policy.sampler = TokenSampler(rollout.temperature)
        canary = Canary(
            prompt=random_prompts(sizes, count=1, seed=config.seed)[0],
            tolerance=canary_tolerance(rollout),
            actions=min(CANARY_TOKENS, sizes.action_tokens),
        )
        with Fleet(
            partial(TokenEngine, scratch, rollout),
            rollout,
            losses=config.cluster.lost_workers,
            environment=engine_environment(rollout),
            policy=policy,
            canary=canary,
        ) as fleet:
            fleet.ready()
            weights = {name: tensor.detach() for name, tensor in policy.weights().items()}
            for _ in range(config.bench.repeats + 1):
                _change(policy)
                plain.append(seconds(partial(_copy, weights, rollout.workers)))
                checked.append(seconds(lambda: fleet.update(policy.weights(), policy)))
                unchecked.append(
                    seconds(lambda: fleet.each("update", ray.put(weights), fleet.version))
                )
    # The first update of an engine compiles and imports what the others find done.
    copy = median_and_range(plain[1:])
    update = median_and_range(checked[1:])
    hand_over = median_and_range(unchecked[1:])
    megabytes = sum(t.numel() * t.element_size() for t in weights.values()) / 1e6
    logger.info(
        f"[sync] {megabytes:.1f} MB to {rollout.workers} engines: {update['median']:.2f} s with "
        f"digest and canary, {hand_over['median']:.2f} s without; a plain copy takes "
        f"{1000 * copy['median']:.1f} ms"
    )
    return {
        "megabytes": megabytes,
        "workers": rollout.workers,
        "update_s": update,
        "hand_over_s": hand_over,
        "plain_copy_s": copy,
        "ratio": update["median"] / copy["median"],
        "ratio_without_checks": hand_over["median"] / copy["median"],
    }


@torch.no_grad()
def _change(policy: VlaPolicy) -> None:
    for parameter in policy.model.parameters():
        parameter.add_(1e-4)


def _copy(weights: dict[str, Tensor], times: int) -> None:
    # Kept until all are there, as engines keep theirs.
    copies = []
    for _ in range(times):
        copies.append({name: tensor.clone() for name, tensor in weights.items()})
