"""What a run would be like on a cluster that is only imagined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from rapport.pipeline.estimate import GIB, ModelSize
from rapport.pipeline.plan import (
    UnitCosts,
    default_costs,
    place,
    plan_nodes,
    plan_round,
    with_bench,
)
from rapport.pipeline.rundir import Run, RunError
from rapport.pipeline.settings import PreflightConfig
from rapport.pipeline.steps.checks import (
    ENGINE_REMEDY,
    Check,
    conclude,
    demand,
    engine_need,
    learner_need,
)
from rapport.pipeline.steps.sizing import PUBLISHED, model_size
from rapport.wording import first_line

FASTER = {
    "rollout": "more rollout.workers",
    "render": "more render.workers, or fewer render.videos",
    "rate": "more raters.workers",
    "dpo": "more learners (learner.world_size)",
    "hand over": "vla.dtype=bfloat16",
    "judge": "more rollout.workers, or fewer evaluation.prompts",
}


def plan(run: Run, config: PreflightConfig) -> None:
    """Print what the run would be like on the cluster of `config.plan`.

    Raises:
        RunError: it does not fit.
    """
    costs = default_costs(config.plan)
    for file in config.plan.bench:
        costs = with_bench(costs, file, config.rollout.dtype)
    try:
        size = model_size(config, PUBLISHED)
    except (OSError, ValueError) as error:  # not found; parts that do not go together
        raise RunError(
            f"plan: {first_line(error)}; vla.llama, vla.dino and vla.siglip are local "
            f"folders, hub names, or without a network {', '.join(PUBLISHED)}"
        ) from None
    conclude("plan", list(plan_checks(config, size, costs)), run)


def plan_checks(config: PreflightConfig, size: ModelSize, costs: UnitCosts) -> Iterator[Check]:
    """Placement, memory by ZeRO stage, rates, times, the bottleneck, what the numbers rest on."""
    placed, left = place(demand(config)["dpo"], plan_nodes(config.plan))
    yield _placement(placed, left)
    # Without GPUs learners and engines share a node's memory.
    crowd = max(group["learner"] + group["engine"] for group in placed) or 1
    share = config.plan.memory_gib / crowd
    yield _learner_memory(config, size, share)
    yield _engine_memory(config, size, share)

    expected = plan_round(config, size, costs)
    total = sum(expected.seconds.values())
    yield Check(
        "rollout rate",
        "ok",
        f"{expected.tokens_per_s:,.0f} action tokens/s, {config.rollout.workers} engines",
    )
    phases = ", ".join(f"{name} {seconds:,.1f}" for name, seconds in expected.seconds.items())
    yield Check("time per round", "ok", f"{total:,.0f} s: {phases}; start-up left out")
    slowest = expected.bottleneck
    yield Check(
        "bottleneck",
        "ok",
        f"{slowest}, {expected.seconds[slowest] / total:.0%} of a round: {FASTER[slowest]}",
    )
    yield Check("unit costs", "ok", _sources(costs))


def _placement(placed: list[Counter[str]], left: Counter[str]) -> Check:
    groups = "; ".join(f"node {i}: {_counts(group)}" for i, group in enumerate(placed, 1))
    return Check(
        "placement",
        "failed" if left else "ok",
        groups + (f"; no place for {_counts(left)}" if left else ""),
        remedy="more nodes (plan.nodes), or fewer workers" if left else "",
    )


def _learner_memory(config: PreflightConfig, size: ModelSize, share: float) -> Check:
    """GiB by ZeRO stage, and what the chosen stage's are made of.

    Args:
        config: of the plan.
        size: of the policy.
        share: GiB of a node's memory for one process, where there are no GPUs.
    """
    learner = config.learner
    parts = {stage: learner_need(config, size, stage) for stage in (1, 2, 3)}
    need = {stage: sum(each.values()) / GIB for stage, each in parts.items()}
    room = config.plan.gpu_memory_gib * min(1, learner.gpus) if learner.gpus else share
    stages = ", ".join(f"{gib:.1f} GiB with ZeRO {stage}" for stage, gib in need.items())
    chosen = ", ".join(
        f"{name} {value / GIB:.1f}" for name, value in parts[learner.zero_stage].items()
    )
    return Check(
        "learner memory",
        "ok" if need[learner.zero_stage] < 0.9 * room else "failed",
        f"{stages}, of {room:.0f}; learner.zero_stage={learner.zero_stage}: {chosen}",
        remedy="a higher learner.zero_stage, more learners, vla.lora_rank, learner.micro_batch or "
        "learner.gradient_checkpointing",
    )


def _engine_memory(config: PreflightConfig, size: ModelSize, share: float) -> Check:
    rollout = config.rollout
    served = sum(engine_need(config, size).values()) / GIB
    room = config.plan.gpu_memory_gib * min(1, rollout.gpus) if rollout.gpus else share
    return Check(
        "engine memory",
        "ok" if served < 0.9 * room else "failed",
        f"{served:.1f} of {room:.0f} GiB a shard",
        remedy=ENGINE_REMEDY,
    )


def _sources(costs: UnitCosts) -> str:
    """Source -> what it says, a line each."""
    names_by_source: dict[str, list[str]] = {}
    for name, source in costs.sources.items():
        names_by_source.setdefault(source, []).append(name)
    return "\n".join(f"{', '.join(names)}: {source}" for source, names in names_by_source.items())


def _counts(group: Mapping[str, int]) -> str:
    counts = [f"{count} {what}{'s' if count > 1 else ''}" for what, count in group.items()]
    return ", ".join(counts) or "empty"
