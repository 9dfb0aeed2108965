"""A round of `dpo` on paper: who runs where on an imaginary cluster, and for how long.

The time of a phase is its operations divided by what a device was measured to do in a second. A
token costs 24 layers hidden^2 operations forward and twice that backward (Kaplan et al. 2020, arXiv
2001.08361, table 1). Attention over the context, vision towers and head are left out: they are a
few per cent of a 7B model, but most of a tiny one.

A GPU that samples waits for its memory: each step reads all weights, and the keys and values of
every sequence. So its rate is bytes over bandwidth.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rapport.actors.settings import CandidateEngineConfig
from rapport.pipeline.estimate import DTYPE_BYTES, ModelSize, decoding_bytes, kv_sequences
from rapport.pipeline.plan_settings import PlanConfig
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import PreflightConfig
from rapport.rewards.ratings.pairs import contrast_count

FPS = 25
BACKWARD = 2  # times a forward pass
# Of new weights to the engines: assumed, for a copy into Ray's object store and one out of it.
HAND_OVER_BYTES_S = 1e9


class Piece(NamedTuple):
    """A process that Ray finds a place for, and what it asks for."""

    what: str
    cpus: float
    gpus: float

    @property
    def resources(self) -> dict[str, float]:
        """As Ray counts them."""
        return {"CPU": self.cpus, "GPU": self.gpus}


@dataclass(frozen=True)
class UnitCosts:
    """What one device does in a second; a device is a GPU, or a CPU core where there is none.

    Args:
        sampling: operations of an engine.
        memory: bytes that an engine reads; None = its operations alone say how fast it samples.
        training: operations of a learner.
        frames: that a CPU core renders and encodes.
        candidates: that a CPU core rates.
        sources: where each number is from.
    """

    sampling: float
    training: float
    frames: float
    candidates: float
    sources: Mapping[str, str]
    memory: float | None = None


HOST = "measured: one core of a Xeon, default sizes"
CPU = UnitCosts(
    sampling=3.8e9,
    training=2.4e10,
    frames=200.0,
    candidates=27.0,
    sources=dict.fromkeys(("sampling", "training", "frames", "candidates"), HOST),
)
PEAKS = {"a100": 312e12, "h100": 989e12}  # dense bfloat16, by the data sheets
BANDWIDTHS = {"a100": 2.0e12, "h100": 2.9e12}  # bytes a second: data sheet; measured (a copy)
MEMORY_SHARE = 0.7  # of the bandwidth: 0.55 to 0.77 measured, decoding in a CUDA graph
TRAINING_SHARE = 0.4  # of the peak: 0.32 to 0.45 measured on an H100


def default_costs(plan: PlanConfig) -> UnitCosts:
    """Measured for CPUs; for GPUs shares of what their memory and cores can do."""
    if not plan.gpus:
        return CPU
    peak = PEAKS[plan.device]
    bandwidth = BANDWIDTHS[plan.device]
    operations = (
        f"assumed: {TRAINING_SHARE:.0%} of {plan.device}'s {peak / 1e12:.0f} TFLOP/s "
        "(measured on one H100: 32 to 45 %)"
    )
    reading = (
        f"assumed: weights, keys and values over {MEMORY_SHARE:.0%} of {plan.device}'s "
        f"{bandwidth / 1e12:.1f} TB/s (measured on one H100 without vLLM: 55 to 77 %)"
    )
    return replace(
        CPU,
        sampling=TRAINING_SHARE * peak,
        memory=MEMORY_SHARE * bandwidth,
        training=TRAINING_SHARE * peak,
        sources={**CPU.sources, "sampling": reading, "training": operations},
    )


def with_bench(costs: UnitCosts, file: Path, dtype: str) -> UnitCosts:
    """The costs with those that a bench.json measured. Raises `RunError` when it has none."""
    try:
        bench = json.loads(file.read_text())
        name, value = _measured(bench, dtype)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"plan.bench: {file} gives no unit cost ({error!r}); it must be the bench.json of "
            "`bench rollout`, `bench dpo` or `bench render` of this version"
        ) from None
    sources = {**costs.sources, name: f"measured: {file}"}
    memory = None if name == "sampling" else costs.memory
    return replace(costs, **{name: value}, memory=memory, sources=sources)


def _measured(bench: Mapping[str, Any], dtype: str) -> tuple[str, float]:
    workload = bench["workload"]
    match bench["subject"]:
        case "rollout":
            tokens = bench[dtype]["vllm"]["tokens_per_s"]["median"]
            return "sampling", tokens * token_flops(workload["hidden"], workload["layers"])
        case "dpo":
            tokens = workload["prompt_tokens"] + 2 * workload["response_tokens"]
            flops = (1 + BACKWARD) * tokens * token_flops(workload["hidden"], workload["layers"])
            return "training", bench["ours"]["pairs_per_s"]["median"] * flops
        case "render":
            return "frames", bench["videos"]["frames_per_s"]["median"]
        case subject:
            raise ValueError(f"subject {subject}")


def token_flops(hidden: int, layers: int) -> float:
    """Operations of one token forward."""
    return 24.0 * layers * hidden**2


def place(
    pieces: Iterable[Piece], nodes: list[tuple[float, float]]
) -> tuple[list[Counter[str]], Counter[str]]:
    """What stands on each node, and what finds no place.

    The largest pieces come first, each to the first node that has room.

    Args:
        pieces: (what, CPUs, GPUs) of each process.
        nodes: (CPUs, GPUs) of each node.
    """
    free = list(nodes)
    placed = [Counter[str]() for _ in nodes]
    unplaced = Counter[str]()
    for what, cpus, gpus in sorted(pieces, key=lambda piece: (piece[2], piece[1]), reverse=True):
        for index, (free_cpus, free_gpus) in enumerate(free):
            if free_cpus >= cpus - 1e-6 and free_gpus >= gpus - 1e-6:
                placed[index][what] += 1
                free[index] = (free_cpus - cpus, free_gpus - gpus)
                break
        else:
            unplaced[what] += 1
    return placed, unplaced


def plan_nodes(plan: PlanConfig) -> list[tuple[float, float]]:
    """(CPUs, GPUs) of every node of a plan that says how many there are."""
    assert plan.nodes is not None
    cpus = plan.cpus if plan.cpus is not None else 16 * plan.gpus or 2
    return [(float(cpus), float(plan.gpus))] * plan.nodes


@dataclass(frozen=True)
class Round:
    """Expected rate of the fleet, and seconds of each phase of a round; phases follow one another.

    Args:
        tokens_per_s: action tokens, all engines together.
        seconds: by phase, in their order.
    """

    tokens_per_s: float
    seconds: Mapping[str, float]

    @property
    def bottleneck(self) -> str:
        """The longest phase."""
        return max(self.seconds, key=self.seconds.__getitem__)


def decoded_per_s(rollout: CandidateEngineConfig, size: ModelSize, bandwidth: float) -> float:
    """Action tokens of all engines, as fast as their memories give what a step reads.

    Args:
        rollout: the engines.
        size: of the policy.
        bandwidth: bytes a second, of all shards together.
    """
    cache = rollout.kv_cache_gib * rollout.tensor_parallel
    groups = kv_sequences(size, rollout.dtype, kv_cache_gib=cache, samples=rollout.samples)
    sequences = min(
        max(groups, 1 / rollout.samples) * rollout.samples,
        rollout.batch_prompts * rollout.samples,
        rollout.max_num_seqs,
    )
    step_bytes = rollout.workers * decoding_bytes(size, rollout.dtype, sequences)
    return rollout.workers * sequences * bandwidth / step_bytes


def plan_round(config: PreflightConfig, size: ModelSize, costs: UnitCosts) -> Round:
    """One round of roll out, render, rate, align, hand over and judge."""
    rollout = config.rollout
    dpo = config.dpo
    learner = config.learner
    cores = sum(cpus for cpus, _ in plan_nodes(config.plan))
    flops = token_flops(size.hidden, size.layers)

    def devices(processes: int, gpus: float, threads: int) -> float:
        return processes * gpus if gpus else min(processes * threads, cores)

    engines = devices(rollout.workers * rollout.tensor_parallel, rollout.gpus, rollout.threads)
    learners = devices(learner.world_size, learner.gpus, learner.threads)
    tokens_per_s = engines * costs.sampling / flops
    if costs.memory is not None:
        tokens_per_s = min(tokens_per_s, decoded_per_s(rollout, size, engines * costs.memory))
    trained_per_s = learners * costs.training / flops
    # What is perceived is read for each candidate, as fast as a learner goes forward.
    read_per_s = engines * costs.training / flops

    def sampling_s(prompts: int, samples: int) -> float:
        seconds = size.action_tokens / tokens_per_s + size.prompt_tokens / read_per_s
        return prompts * samples * seconds

    step_tokens = config.vla.action.expr_dims + 6  # of an action: expression, rotation, jaw
    counted = size.action_tokens if dpo.first_steps is None else dpo.first_steps * step_tokens
    pair_tokens = 2 * (size.prompt_tokens + min(counted, size.action_tokens))
    passes = dpo.epochs * (1 + BACKWARD) + 1  # the last one is the reference's
    rated = rollout.prompts if config.asks_raters else 0
    pairs = rated + contrast_count(rated, rollout.prompts, dpo.contrast)
    samples = rollout.samples if config.samples_candidates else 0
    candidates = rollout.prompts * (samples + 1)  # the recorded reaction too
    videos = min(config.render.videos, candidates)
    frames = 2 * videos * config.corpus.seconds * FPS  # speaker and listener
    return Round(
        tokens_per_s=tokens_per_s,
        seconds={
            "rollout": sampling_s(rollout.prompts, samples),
            "render": frames / (costs.frames * min(config.render.workers, cores)),
            "rate": rated * (samples + 1) / (costs.candidates * min(config.raters.workers, cores)),
            "dpo": pairs * passes * pair_tokens / trained_per_s,
            "hand over": size.parameters * DTYPE_BYTES[config.vla.dtype] / HAND_OVER_BYTES_S,
            "judge": sampling_s(config.evaluation.prompts, config.evaluation.samples),
        },
    )
