"""`preflight`: would this run fit this cluster? Asked by `dpo` before it starts anything expensive.

With `--plan` the cluster is an imaginary one, and the answer has the time that a round would take
on it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from accelerate import init_empty_weights
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, Dinov2Config, LlamaConfig, PretrainedConfig, SiglipVisionConfig

from rapport.actors import timeline
from rapport.actors.cluster import ClusterError, cluster
from rapport.actors.probe import Node, all_reduce, probe_nodes
from rapport.pipeline.config import (
    DpoRecipeConfig,
    GdpoRecipeConfig,
    JudgedRecipeConfig,
    PolicyConfig,
    PreflightConfig,
)
from rapport.pipeline.estimate import (
    GIB,
    ModelSize,
    disk_bytes,
    engine_bytes,
    kv_sequences,
    learner_bytes,
    object_store_bytes,
)
from rapport.pipeline.plan import (
    UnitCosts,
    default_costs,
    place,
    plan_nodes,
    plan_round,
    with_bench,
)
from rapport.pipeline.rundir import PACKAGES, VLLM_NAMES, Run, RunError
from rapport.policies.motion import Layout
from rapport.policies.vla.actions import ActionSpace
from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.loading import tiny_config
from rapport.policies.vla.lora import add_lora
from rapport.policies.vla.model import FaceVLA
from rapport.policies.vla.pretrained import freeze_streams, pretrained_config
from rapport.policies.vla.text import build_text_tokenizer

PROBE_TIMEOUT_S = 60.0
# Private memory of processes that hold a model of next to no size, measured on CPU in the
# end-to-end tests; base = driver and Ray's own.
PROCESS_GIB = {"engine": 1.1, "learner": 0.5, "worker": 0.3, "base": 1.3}
FPS, AUDIO_BYTES_S = 25, 2 * 4 * 16_000
# The paper's checkpoints: a plan needs their sizes only, and neither weights nor a network.
PUBLISHED: dict[str, PretrainedConfig] = {
    "meta-llama/Llama-2-7b-hf": LlamaConfig(max_position_embeddings=4096),
    "facebook/dinov2-large": Dinov2Config(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16
    ),
    "google/siglip-so400m-patch14-224": SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        patch_size=14,
    ),
}
FASTER = {
    "rollout": "more rollout.workers",
    "render": "more render.workers, or fewer render.videos",
    "rate": "more raters.workers",
    "dpo": "more learners (learner.world_size)",
    "hand over": "policy.dtype=bfloat16",
    "judge": "more rollout.workers, or fewer evaluation.prompts",
}


@dataclass(frozen=True)
class Check:
    """One question and its answer; `remedy` says what to do unless it is ok."""

    name: str
    state: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""


def run(config: PreflightConfig, run: Run) -> None:
    if config.plan.nodes is not None:
        plan(config, run)
        return
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        print(f"  {where}", flush=True)
        preflight(config, run)


def preflight(config: DpoRecipeConfig, run: Run) -> None:
    """Print every check and its verdict; raises `RunError` when one failed."""
    started = time.time()
    nodes = probe_nodes(run.directory, PACKAGES + VLLM_NAMES, PROBE_TIMEOUT_S)
    checks = [
        *version_checks(nodes),
        *place_checks(config, nodes),
        *storage_checks(nodes),
        bytecode_check(nodes),
    ]
    try:
        size = model_size(config)
    except OSError as error:
        checks.append(
            Check(
                "policy",
                "failed",
                f"its checkpoints cannot be read: {str(error).splitlines()[0]}",
                "policy.llama, policy.dino and policy.siglip are local folders or hub names",
            )
        )
    else:
        checks += [*memory_checks(config, size, nodes), disk_check(config, size, run)]
    if not any(
        check.state == "failed" for check in checks
    ):  # learners that have no place cannot talk either
        checks.append(all_reduce_check(config))
    run.summary["timings_s"]["preflight"] = round(time.time() - started, 1)
    timeline.note(timeline.START, started, time.time())
    conclude("preflight", checks, run)


def plan(config: PreflightConfig, run: Run) -> None:
    """Print what the run would be like on the cluster of `config.plan`; raises `RunError` when it
    does not fit.
    """
    costs = default_costs(config.plan)
    for file in config.plan.bench:
        costs = with_bench(costs, file, config.rollout.dtype)
    try:
        size = model_size(config, PUBLISHED)
    except (OSError, ValueError) as error:  # not found; parts that do not go together
        raise RunError(
            f"plan: {str(error).splitlines()[0]}; policy.llama, policy.dino and policy.siglip "
            "are local "
            f"folders, hub names, or without a network {', '.join(PUBLISHED)}"
        ) from None
    conclude("plan", list(plan_checks(config, size, costs)), run)


def plan_checks(config: PreflightConfig, size: ModelSize, costs: UnitCosts) -> Iterator[Check]:
    """Placement, memory by ZeRO stage, rates, times, the bottleneck, and what the numbers rest on."""
    nodes = plan_nodes(config.plan)
    placed, left = place(demand(config)["dpo"], nodes)
    groups = "; ".join(f"node {i}: {_counts(group)}" for i, group in enumerate(placed, 1))
    yield Check(
        "placement",
        "failed" if left else "ok",
        groups + (f"; no place for {_counts(left)}" if left else ""),
        "more nodes (plan.nodes), or fewer workers" if left else "",
    )

    learner, rollout = config.learner, config.rollout
    crowd = max(group["learner"] + group["engine"] for group in placed) or 1
    host = config.plan.memory_gib / crowd  # without GPUs learners and engines share a node's memory
    sequences = sequences_per_learner(config)
    parts = {
        stage: learner_bytes(size, config.policy.dtype, stage, learner.world_size, sequences)
        for stage in (1, 2, 3)
    }
    need = {stage: sum(each.values()) / GIB for stage, each in parts.items()}
    room = config.plan.gpu_memory_gib * min(1, learner.gpus) if learner.gpus else host
    stages = ", ".join(f"{gib:.1f} GiB with ZeRO {stage}" for stage, gib in need.items())
    chosen = ", ".join(
        f"{name} {value / GIB:.1f}" for name, value in parts[learner.zero_stage].items()
    )
    yield Check(
        "learner memory",
        "ok" if need[learner.zero_stage] < 0.9 * room else "failed",
        f"{stages}, of {room:.0f}; learner.zero_stage={learner.zero_stage}: {chosen}",
        "a higher learner.zero_stage, more learners, policy.lora_rank or smaller batches",
    )
    served = (
        sum(
            engine_bytes(
                size, rollout.dtype, rollout.kv_cache_gib, rollout.tensor_parallel
            ).values()
        )
        / GIB
    )
    room = config.plan.gpu_memory_gib * min(1, rollout.gpus) if rollout.gpus else host
    yield Check(
        "engine memory",
        "ok" if served < 0.9 * room else "failed",
        f"{served:.1f} of {room:.0f} GiB a shard",
        "rollout.tensor_parallel, rollout.dtype=bfloat16 or a smaller rollout.kv_cache_gib",
    )

    expected = plan_round(config, size, costs)
    total = sum(expected.seconds.values())
    yield Check(
        "rollout rate",
        "ok",
        f"{expected.tokens_per_s:,.0f} action tokens/s, {rollout.workers} engines",
    )
    phases = ", ".join(f"{name} {seconds:,.1f}" for name, seconds in expected.seconds.items())
    yield Check("time per round", "ok", f"{total:,.0f} s: {phases}; start-up left out")
    slowest = expected.bottleneck
    yield Check(
        "bottleneck",
        "ok",
        f"{slowest}, {expected.seconds[slowest] / total:.0%} of a round: {FASTER[slowest]}",
    )
    grouped = {
        source: ", ".join(name for name, s in costs.sources.items() if s == source)
        for source in costs.sources.values()
    }
    yield Check(
        "unit costs", "ok", "\n".join(f"{names}: {source}" for source, names in grouped.items())
    )


def _counts(group: Mapping[str, int]) -> str:
    return (
        ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for what, count in group.items())
        or "empty"
    )


def conclude(title: str, checks: list[Check], run: Run) -> None:
    """Show and keep them; raises `RunError` when one failed."""
    run.summary[title] = [asdict(check) for check in checks]
    show(title, checks)
    failed = [check for check in checks if check.state == "failed"]
    if failed:
        lines = [f"  {check.name}: {check.found}; {check.remedy}" for check in failed]
        raise RunError(f"{title}: this run would not get through\n" + "\n".join(lines))


def show(title: str, checks: list[Check]) -> None:
    table = Table(title=title, show_header=False)
    for check in checks:
        remedy = f"\n-> {check.remedy}" if check.remedy and check.state != "ok" else ""
        table.add_row(check.name, check.state, check.found + remedy)
    Console(width=120).print(table)


def version_checks(nodes: list[Node]) -> Iterator[Check]:
    """The same packages everywhere, and a vLLM."""
    first = nodes[0]
    unlike = [
        f"{node.name} has {name} {node.versions[name]}, {first.name} {first.versions[name]}"
        for node in nodes[1:]
        for name in node.versions
        if node.versions[name] != first.versions[name]
    ]
    vllm = next((f"{name} {v}" for name in VLLM_NAMES if (v := first.versions[name])), None)
    if unlike:
        yield Check(
            "versions", "failed", "; ".join(unlike), "install the same lock file on every node"
        )
    elif vllm is None:
        yield Check(
            "versions", "failed", "no vLLM", "install infra/requirements/cpu.lock or cuda.lock"
        )
    else:
        yield Check(
            "versions",
            "ok",
            f"{len(nodes)} nodes alike: ray {first.versions['ray']}, "
            f"torch {first.versions['torch']}, {vllm}",
        )


def demand(
    config: JudgedRecipeConfig | GdpoRecipeConfig,
) -> dict[str, list[tuple[str, float, float]]]:
    """Phase -> `(what, CPUs, GPUs)` of every process that stands at once; all but learners stay all
    the time.
    """
    rollout, learner = config.rollout, config.learner
    learners = [("learner", learner.cpus, learner.gpus)] * learner.world_size
    if isinstance(config, GdpoRecipeConfig):
        return {"gdpo": [("engine", rollout.cpus, rollout.gpus)] * rollout.workers + learners}
    standing = [("engine", rollout.cpus, rollout.gpus * rollout.tensor_parallel)] * rollout.workers
    standing += [("rater", config.raters.cpus, 0.0)] * config.raters.workers
    standing += [("renderer", config.render.cpus, 0.0)] * config.render.workers
    return {"rollout": standing, "dpo": standing + learners}


def place_checks(config: JudgedRecipeConfig, nodes: list[Node]) -> Iterator[Check]:
    """What the phases ask of Ray against what the cluster has, and the largest piece against the
    largest node.
    """
    for index, kind in ((1, "CPU"), (2, "GPU")):
        total = sum(node.resources.get(kind, 0.0) for node in nodes)
        largest = max(node.resources.get(kind, 0.0) for node in nodes)
        sums = {
            phase: sum(piece[index] for piece in pieces) for phase, pieces in demand(config).items()
        }
        phase = max(sums, key=sums.get)
        if sums[phase] == 0:
            continue
        piece = max(demand(config)[phase], key=lambda p: p[index])
        found = f"{sums[phase]:g} of {total:g} {kind}s at most (in {phase}), the largest piece {piece[index]:g}"
        enough = sums[phase] <= total + 1e-6 and piece[index] <= largest
        yield Check(
            f"{kind}s",
            "ok" if enough else "failed",
            found,
            ""
            if enough
            else "fewer workers or smaller shares (the `workers`, `world_size` and `cpus` keys), "
            "or more nodes; cluster.preflight=false for a cluster that grows on demand",
        )
    for section in ("rollout", "learner", "render", "raters"):
        mark = getattr(config, section).nodes
        if mark is not None and not any(node.resources.get(mark) for node in nodes):
            yield Check(
                f"{section} nodes",
                "failed",
                f"no node has the resource {mark!r}",
                f"start some with --resources='{{\"{mark}\": 1}}', or leave {section}.nodes empty",
            )


def storage_checks(nodes: list[Node]) -> Iterator[Check]:
    blind = [node.name for node in nodes if not node.sees_run]
    yield Check(
        "run directory",
        "failed" if blind else "ok",
        f"not visible from {blind}" if blind else "every node reads it",
        "give --run-dir on storage that all nodes share" if blind else "",
    )
    tightest = min(nodes, key=lambda node: node.scratch)
    yield Check(
        "scratch disk",
        "warning" if tightest.scratch < 10 * GIB else "ok",
        f"{tightest.scratch / GIB:.0f} GiB free on {tightest.name}",
        "Ray spills objects there",
    )


def bytecode_check(nodes: list[Node]) -> Check:
    slow = [node.name for node in nodes if node.recompiles]
    return Check(
        "bytecode",
        "warning" if slow else "ok",
        f"none on {slow}, nor may Python write it" if slow else "there, or written with use",
        "every process compiles all it imports: unset PYTHONDONTWRITEBYTECODE, or run `python -m "
        "compileall` "
        "once on the environment",
    )


def memory_checks(config: DpoRecipeConfig, size: ModelSize, nodes: list[Node]) -> Iterator[Check]:
    """Estimates of `rapport.pipeline.estimate` against what the nodes have."""
    learner, rollout = config.learner, config.rollout
    trained = learner_bytes(
        size,
        config.policy.dtype,
        learner.zero_stage,
        learner.world_size,
        sequences_per_learner(config),
    )
    served = engine_bytes(size, rollout.dtype, rollout.kv_cache_gib, rollout.tensor_parallel)
    yield _fits(
        "learner",
        trained,
        learner.gpus,
        nodes,
        "a higher learner.zero_stage, more learners, "
        "policy.lora_rank, policy.dtype=bfloat16 or smaller batches",
    )
    yield _fits(
        "engine",
        served,
        rollout.gpus,
        nodes,
        "rollout.tensor_parallel, rollout.dtype=bfloat16 or a smaller rollout.kv_cache_gib",
    )
    groups = kv_sequences(size, rollout.dtype, rollout.kv_cache_gib, rollout.samples)
    yield Check(
        "KV cache",
        "ok" if groups >= 1 else "warning",
        f"holds {groups:.1f} groups of {rollout.samples} candidates at once",
        "with less than one, engines preempt; raise rollout.kv_cache_gib" if groups < 1 else "",
    )

    processes = {
        "engine": rollout.workers * rollout.tensor_parallel,
        "learner": learner.world_size,
        "worker": config.raters.workers + config.render.workers,
        "base": 1,
    }
    host = sum(count * PROCESS_GIB[kind] * GIB for kind, count in processes.items())
    host += 0 if learner.gpus else learner.world_size * sum(trained.values())
    host += 0 if rollout.gpus else rollout.workers * rollout.tensor_parallel * sum(served.values())
    total = sum(node.memory for node in nodes)
    yield Check(
        "host memory",
        "ok" if host < 0.9 * total else "failed",
        f"about {host / GIB:.1f} of {total / GIB:.0f} GiB",
        "fewer workers, or more nodes",
    )

    frame = config.corpus.frames * config.corpus.image_size**2 * 3
    in_flight = rollout.workers * rollout.in_flight * rollout.batch_prompts
    stored = sum(object_store_bytes(size, config.policy.dtype, in_flight, frame).values())
    smallest = min(nodes, key=lambda node: node.object_store)
    yield Check(
        "object store",
        "ok" if stored < 0.8 * smallest.object_store else "warning",
        f"about {stored / GIB:.2f} of {smallest.object_store / GIB:.1f} GiB on {smallest.name}",
        "Ray will spill to disk; start its nodes with a larger --object-store-memory",
    )


def sequences_per_learner(config: DpoRecipeConfig) -> int:
    """Of the larger of the batches of SFT and DPO."""
    return max(config.sft.batch_size, 2 * config.dpo.batch_size) // config.learner.world_size


def _fits(what: str, needs: dict[str, int], gpus: float, nodes: list[Node], remedy: str) -> Check:
    need = sum(needs.values())
    parts = ", ".join(f"{name} {value / GIB:.2f}" for name, value in needs.items())
    sizes = (
        [node.gpu_memory for node in nodes if node.gpu_memory]
        if gpus
        else [node.memory for node in nodes]
    )
    room = min(sizes, default=0) * (gpus if 0 < gpus < 1 else 1)
    return Check(
        f"{what} memory",
        "ok" if need < 0.9 * room else "failed",
        f"about {need / GIB:.2f} GiB each ({parts}) of {room / GIB:.0f}",
        remedy,
    )


def disk_check(config: DpoRecipeConfig, size: ModelSize, run: Run) -> Check:
    c = config.corpus
    clip = (
        round(c.seconds * AUDIO_BYTES_S)
        + c.frames * c.image_size**2 * 3
        + round(c.seconds * FPS) * 2 * 70 * 4
    )
    corpus = (c.train_clips + c.test_clips) * clip if c.kind == "synthetic" else 0
    need = sum(
        disk_bytes(size, config.policy.dtype, corpus, policies=2 + config.dpo.rounds).values()
    )
    free = shutil.disk_usage(run.directory).free
    return Check(
        "run disk",
        "ok" if need < 0.9 * free else "failed",
        f"about {need / GIB:.2f} of {free / GIB:.0f} GiB free",
        "another --run-dir",
    )


def all_reduce_check(config: DpoRecipeConfig) -> Check:
    c, megabytes = config.learner, 16
    try:
        seconds = all_reduce(c.world_size, c.cpus, c.gpus, megabytes, PROBE_TIMEOUT_S)
    except ClusterError as error:
        return Check("all-reduce", "failed", str(error), "see above")
    return Check(
        "all-reduce", "ok", f"{c.world_size} learners, {megabytes} MiB in {1000 * seconds:.0f} ms"
    )


def model_size(
    config: JudgedRecipeConfig, known: Mapping[str, PretrainedConfig] | None = None
) -> ModelSize:
    """Of the policy that the config describes, without its weights. Raises `OSError` for
    checkpoints not found.

    Args:
        known: checkpoints that are not looked for, by name.
    """
    policy = config.policy
    layout = Layout((("expr", policy.action.expr_dims), ("rot", 3), ("jaw", 3)), FPS, "builtin")
    space = ActionSpace(layout, policy.action.rate, config.corpus.seconds)
    if policy.size == "pretrained":
        parts = (
            (known or {}).get(name) or _published(name)
            for name in (policy.llama, policy.dino, policy.siglip)
        )
        model_config = pretrained_config(*parts, space, config.corpus.frames, policy.text_tokens)
    else:
        model_config = _tiny(policy, space, config.corpus.frames, config.corpus.image_size)
    with init_empty_weights():
        model = FaceVLA(model_config)
    if policy.lora_rank:
        add_lora(model, policy.lora_rank, alpha=1.0)
    if policy.freeze_vision:
        freeze_streams(model)
    text = model_config.text_config
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        kv_heads=text.num_key_value_heads,
        head_dim=text.hidden_size // text.num_attention_heads,
        prompt_tokens=model_config.prompt_length,
        action_tokens=model_config.action_tokens,
    )


def _published(name: str) -> PretrainedConfig:
    config = AutoConfig.from_pretrained(name)
    return getattr(config, "vision_config", config)  # SigLIP's is that of both towers


def _tiny(policy: PolicyConfig, space: ActionSpace, frames: int, image_size: int) -> FaceVLAConfig:
    tokenizer = build_text_tokenizer(["."], text_vocabulary=policy.vocabulary - policy.action.bins)
    config = tiny_config(
        tokenizer,
        space,
        frames=frames,
        image_size=image_size,
        text_tokens=policy.text_tokens,
        hidden=policy.hidden,
        layers=policy.layers,
        heads=policy.heads,
        kv_heads=policy.kv_heads,
        tower_hidden=policy.vision_hidden,
        tower_layers=policy.vision_layers,
    )
    config.text_config.vocab_size = policy.vocabulary
    return config
