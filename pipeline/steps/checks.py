"""Would this run get through on this cluster? `dpo` asks before it starts anything expensive.

Versions, places, storage and the way between learners are looked at for any policy; memory and disk
for the VLA, whose size a config tells.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

import ray
from rich.console import Console
from rich.table import Table

from rapport.actors import timeline
from rapport.actors.cluster import ClusterError, cluster
from rapport.actors.probe import Node, all_reduce, probe_nodes
from rapport.actors.settings import EngineConfig, LearnerConfig
from rapport.log import logger
from rapport.pipeline.data.corpora import look_at_prompts, moments_of
from rapport.pipeline.data.prompts import NAMES
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.estimate import (
    GIB,
    ModelSize,
    disk_bytes,
    engine_bytes,
    kv_sequences,
    learner_bytes,
    object_store_bytes,
)
from rapport.pipeline.plan import FPS, Piece
from rapport.pipeline.rundir import PACKAGES, VLLM_NAMES, RunError, Workspace
from rapport.pipeline.settings import DpoOfVla, Judged, Learning, Rewarded, Sampling
from rapport.pipeline.steps.corpus import perceived
from rapport.pipeline.steps.imitation_vla import published_parts
from rapport.pipeline.steps.sizing import model_size
from rapport.policies.head.asset import load_head
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Layout
from rapport.policies.policy import CheckpointError
from rapport.policies.vla.pretrained import check_parts
from rapport.wording import first_line

PROBE_TIMEOUT_S = 60.0
ALL_REDUCE_MIB = 16
SCRATCH_GIB = 10
# Private memory of processes that hold a model of next to no size, measured on CPU in the
# end-to-end tests; base = driver and Ray's own.
PROCESS_GIB = {"engine": 1.1, "learner": 0.5, "worker": 0.3, "base": 1.3}
BY_EXPRESSION = ("empathy", "appropriateness")  # criteria that ask what a face expresses
AUDIO_BYTES_S = 2 * 4 * 16_000  # two voices, float32 at 16 kHz
ENGINE_REMEDY = "rollout.tensor_parallel, rollout.dtype=bfloat16 or a smaller rollout.kv_cache_gib"
MOTION_BYTES_FRAME = 2 * 70 * 4  # two faces, about 70 float32 each


@dataclass(frozen=True)
class Check:
    """One question and its answer.

    Args:
        name: what was looked at.
        state: the verdict.
        found: the answer.
        remedy: what to do unless it is ok.
    """

    name: str
    state: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""


@contextmanager
def cluster_of(config: Learning | Sampling) -> Iterator[None]:
    """The cluster of a recipe; says so where it has GPUs of which the config asks for nothing."""
    with cluster(config.cluster.address, config.cluster.cpus):
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if gpus and not any(piece_shares(config)):
            logger.warning(
                f"  {gpus} GPU{'s' if gpus > 1 else ''} here, and no share is asked for: all is "
                f"computed on CPUs. For GPUs: {shares_of(gpus)}"
            )
        yield


def piece_shares(config: Learning | Sampling) -> list[float]:
    """GPUs that each learner and each engine asks for."""
    shares = [config.learner.gpus] if isinstance(config, Learning) else []
    return [*shares, config.rollout.gpus] if isinstance(config, Sampling) else shares


def shares_of(gpus: int) -> str:
    """Keys by which learners and engines use that many GPUs, side by side.

    A learner has a whole one, as NCCL lets no two share one, and their number divides the batches.
    """
    if gpus < 2:
        return "learner.world_size=1 learner.gpus=0.5 rollout.workers=1 rollout.gpus=0.5"
    learners = min(8, 2 ** (gpus // 2).bit_length() // 2)
    return (
        f"learner.world_size={learners} learner.gpus=1 rollout.workers={gpus - learners} "
        "rollout.gpus=1"
    )


def preflight(run: Workspace, config: Judged) -> None:
    """Look at the cluster before anything expensive starts, unless `cluster.preflight` is false.

    Raises:
        RunError: the run would not get through; says why and what to do.
    """
    if config.cluster.preflight:
        look_at_cluster(run, config)


def look_at_cluster(run: Workspace, config: Judged) -> None:
    """Print every check and its verdict.

    Raises:
        RunError: a check failed.
    """
    started = time.time()
    nodes = probe_nodes(run.directory, PACKAGES + VLLM_NAMES, PROBE_TIMEOUT_S)
    checks = [
        prompts_check(config),
        *version_checks(nodes, vllm=isinstance(config.rollout, EngineConfig)),
        *engine_checks(config, nodes),
        *place_checks(config, nodes),
        *storage_checks(nodes),
        bytecode_check(nodes),
    ]
    if isinstance(config, DpoOfVla):
        checks += size_checks(config, nodes, run)
    # Learners that have no place cannot talk to each other either.
    if not any(check.state == "failed" for check in checks):
        checks.append(all_reduce_check(config.learner))
    run.summary["timings_s"]["preflight"] = round(time.time() - started, 1)
    timeline.note(timeline.START, started, time.time())
    conclude("preflight", checks, run)


def conclude(title: str, checks: list[Check], run: Workspace) -> None:
    """Show and keep the checks.

    Raises:
        RunError: one failed.
    """
    run.summary[title] = [asdict(check) for check in checks]
    show(title, checks)
    failed = [check for check in checks if check.state == "failed"]
    if failed:
        lines = [f"  {check.name}: {check.found}; {check.remedy}" for check in failed]
        raise RunError(f"{title}: this run would not get through\n" + "\n".join(lines))


def show(title: str, checks: Iterable[Check]) -> None:
    """The checks as a table on the terminal."""
    table = Table(title=title, show_header=False)
    for check in checks:
        remedy = f"\n-> {check.remedy}" if check.remedy and check.state != "ok" else ""
        table.add_row(check.name, check.state, check.found + remedy)
    Console(width=120).print(table)


# -- Any policy --


def prompts_check(config: Judged) -> Check:
    """Whether anything that the policy perceives differs from clip to clip."""
    reads = perceived(config)
    try:
        look_at_prompts(config.corpus, config.head, reads)
    except CorpusError as error:
        found, _, remedy = str(error).partition("\n")
        return Check("prompts", "failed", found, remedy=remedy.strip())
    named = ", ".join(NAMES[name] for name in reads)
    return Check("prompts", "ok", f"the policy reads {named}; not all are alike")


def say_what_raters_miss(run: Workspace, head: HeadConfig, layout: Layout) -> None:
    """Say aloud, and in the summary, which criteria SIMULATED raters cannot give.

    Args:
        run: takes the summary.
        head: on which they watch.
        layout: of what they watch.
    """
    shown_on = load_head(head.path, head.topology).topology
    if shown_on == layout.topology:
        return
    warning = (
        f"SIMULATED raters see how heads turn, and no expression: motion is of {layout.topology}, "
        f"the head is {shown_on}. They give no {' and no '.join(BY_EXPRESSION)}. Give "
        "head.path=FILE of that head"
    )
    logger.warning(f"WARNING: {warning}")
    run.summary.setdefault("warnings", []).append(warning)


def version_checks(nodes: list[Node], *, vllm: bool = True) -> Iterator[Check]:
    """The same packages everywhere, and a vLLM where one is needed."""
    first = nodes[0]
    unlike = [
        f"{node.name} has {name} {node.versions[name]}, {first.name} {first.versions[name]}"
        for node in nodes[1:]
        for name in node.versions
        if node.versions[name] != first.versions[name]
    ]
    engines = [f"{name} {version}" for name in VLLM_NAMES if (version := first.versions[name])]
    if unlike:
        yield Check(
            "versions",
            "failed",
            "; ".join(unlike),
            remedy="install the same lock file on every node",
        )
    elif vllm and not engines:
        yield Check(
            "versions",
            "failed",
            "no vLLM",
            remedy="install infra/requirements/cpu.lock or cuda.lock",
        )
    else:
        names = [f"{name} {first.versions[name]}" for name in ("ray", "torch")] + engines[:1]
        yield Check("versions", "ok", f"{len(nodes)} nodes alike: {', '.join(names)}")


def engine_checks(config: Judged, nodes: list[Node]) -> Iterator[Check]:
    """Whether engines compute on what they are given: vLLM is built for GPUs or for CPUs."""
    version = nodes[0].versions["vllm"]
    fleet = config.rollout
    if not isinstance(fleet, EngineConfig) or fleet.engine != "vllm" or fleet.gpus:
        return
    if version is not None and "cpu" not in version:
        gpus = int(sum(node.resources.get("GPU", 0) for node in nodes))
        yield Check(
            "engines",
            "failed",
            f"vllm {version} computes on GPUs, and rollout.gpus=0",
            remedy=shares_of(gpus)
            if gpus
            else "install infra/requirements/cpu.lock, or rollout.engine=hf",
        )


def demand(config: Judged) -> dict[str, list[Piece]]:
    """Phase -> every process that stands at once; all but learners stay all the time.

    Args:
        config: of a recipe that aligns.
    """
    fleet = config.rollout
    learner = config.learner
    raters = config.raters
    render = config.render
    standing = [Piece("engine", fleet.cpus, fleet.gpus_per_actor)] * fleet.workers
    standing += [Piece("rater", raters.cpus, 0.0)] * raters.workers
    learners = [Piece("learner", learner.cpus, learner.gpus)] * learner.world_size
    if isinstance(config, Rewarded):
        return {"gdpo": standing + learners}
    standing += [Piece("renderer", render.cpus, 0.0)] * render.workers
    return {"rollout": standing, "dpo": standing + learners}


def place_checks(config: Judged, nodes: list[Node]) -> Iterator[Check]:
    """What the phases ask of Ray against what the cluster has.

    The largest piece is held against the largest node, too: a piece is never split.
    """
    pieces_by_phase = demand(config)
    for kind in ("CPU", "GPU"):
        there = [node.resources.get(kind, 0.0) for node in nodes]
        asked = {
            phase: [piece.resources[kind] for piece in pieces]
            for phase, pieces in pieces_by_phase.items()
        }
        phase = max(asked, key=lambda phase: sum(asked[phase]))
        needed = sum(asked[phase])
        if needed == 0:
            continue
        largest = max(asked[phase])
        enough = needed <= sum(there) + 1e-6 and largest <= max(there)
        yield Check(
            f"{kind}s",
            "ok" if enough else "failed",
            f"{needed:g} of {sum(there):g} {kind}s at most (in {phase}), the largest piece "
            f"{largest:g}",
            remedy=""
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
                remedy=f"start some with --resources='{{\"{mark}\": 1}}', or leave {section}.nodes "
                "empty",
            )


def storage_checks(nodes: list[Node]) -> Iterator[Check]:
    """Whether every node reads the run directory, and has room for what Ray spills."""
    blind = [node.name for node in nodes if not node.sees_run]
    yield Check(
        "run directory",
        "failed" if blind else "ok",
        f"not visible from {blind}" if blind else "every node reads it",
        remedy="give --run-dir on storage that all nodes share" if blind else "",
    )
    tightest = min(nodes, key=lambda node: node.scratch)
    yield Check(
        "scratch disk",
        "warning" if tightest.scratch < SCRATCH_GIB * GIB else "ok",
        f"{tightest.scratch / GIB:.0f} GiB free on {tightest.name}",
        remedy="Ray spills objects there",
    )


def bytecode_check(nodes: list[Node]) -> Check:
    """Whether processes find what they import compiled."""
    slow = [node.name for node in nodes if node.recompiles]
    return Check(
        "bytecode",
        "warning" if slow else "ok",
        f"none on {slow}, nor may Python write it" if slow else "there, or written with use",
        remedy="every process compiles all it imports: unset PYTHONDONTWRITEBYTECODE, or run "
        "`python -m compileall` once on the environment",
    )


def all_reduce_check(learner: LearnerConfig) -> Check:
    """Whether learners reach each other."""
    try:
        seconds = all_reduce(
            world_size=learner.world_size,
            cpus=learner.cpus,
            gpus=learner.gpus,
            megabytes=ALL_REDUCE_MIB,
            timeout_s=PROBE_TIMEOUT_S,
            nodes=learner.nodes,
        )
    except ClusterError as error:
        return Check("all-reduce", "failed", str(error), remedy="see above")
    return Check(
        "all-reduce",
        "ok",
        f"{learner.world_size} learners, {ALL_REDUCE_MIB} MiB in {1000 * seconds:.0f} ms",
    )


# -- The VLA --


def size_checks(config: DpoOfVla, nodes: list[Node], run: Workspace) -> list[Check]:
    """Memory and disk, by the size of the policy that the config describes."""
    try:
        if config.vla.size == "pretrained":
            check_parts(published_parts(config.vla))
        size = model_size(config)
    except (OSError, ValueError, CheckpointError) as error:
        return [
            Check(
                "policy",
                "failed",
                f"its checkpoints cannot be used: {first_line(error)}",
                remedy="vla.llama, vla.dino and vla.siglip are local folders or hub names",
            )
        ]
    return [*memory_checks(config, size, nodes), disk_check(config, size, run)]


def learner_need(config: DpoOfVla, size: ModelSize, zero_stage: int) -> dict[str, int]:
    """`learner_bytes` of a recipe at a stage of ZeRO."""
    return learner_bytes(
        size,
        config.vla.dtype,
        zero_stage=zero_stage,
        world_size=config.learner.world_size,
        sequences=sequences_per_learner(config),
        checkpointing=config.learner.gradient_checkpointing,
    )


def engine_need(config: DpoOfVla, size: ModelSize) -> dict[str, int]:
    """`engine_bytes` of a recipe."""
    rollout = config.rollout
    return engine_bytes(
        size,
        rollout.dtype,
        kv_cache_gib=rollout.kv_cache_gib,
        tensor_parallel=rollout.tensor_parallel,
    )


def memory_checks(config: DpoOfVla, size: ModelSize, nodes: list[Node]) -> Iterator[Check]:
    """Estimates of `rapport.pipeline.estimate` against what the nodes have."""
    learner = config.learner
    rollout = config.rollout
    trained = learner_need(config, size, learner.zero_stage)
    served = engine_need(config, size)
    yield _fits(
        "learner",
        trained,
        gpus=learner.gpus,
        nodes=nodes,
        remedy="a higher learner.zero_stage, more learners, vla.lora_rank, vla.dtype=bfloat16, "
        "learner.micro_batch or learner.gradient_checkpointing",
    )
    yield _fits(
        "engine",
        served,
        gpus=rollout.gpus,
        nodes=nodes,
        remedy=ENGINE_REMEDY,
    )
    groups = kv_sequences(
        size, rollout.dtype, kv_cache_gib=rollout.kv_cache_gib, samples=rollout.samples
    )
    yield Check(
        "KV cache",
        "ok" if groups >= 1 else "warning",
        f"holds {groups:.1f} groups of {rollout.samples} candidates at once",
        remedy="with less than one, engines preempt; raise rollout.kv_cache_gib"
        if groups < 1
        else "",
    )
    yield _host_memory(config, trained, served, nodes=nodes)

    shown = config.corpus.frames * (config.corpus.seconds + config.vla.history)
    frame = round(shown * config.corpus.image_size**2 * 3)
    in_flight = rollout.workers * rollout.in_flight * rollout.batch_prompts
    stored = object_store_bytes(
        size, config.vla.dtype, prompts_in_flight=in_flight, prompt_bytes=frame
    )
    total = sum(stored.values())
    smallest = min(nodes, key=lambda node: node.object_store)
    yield Check(
        "object store",
        "ok" if total < 0.8 * smallest.object_store else "warning",
        f"about {total / GIB:.2f} of {smallest.object_store / GIB:.1f} GiB on {smallest.name}",
        remedy="Ray will spill to disk; start its nodes with a larger --object-store-memory",
    )


def _host_memory(
    config: DpoOfVla, trained: dict[str, int], served: dict[str, int], nodes: list[Node]
) -> Check:
    """The processes of all nodes; what stands on GPUs is left out.

    Args:
        config: of the recipe.
        trained: bytes of a learner.
        served: bytes of a shard of an engine.
        nodes: of the cluster.
    """
    shards = config.rollout.workers * config.rollout.tensor_parallel
    processes = {
        "engine": shards,
        "learner": config.learner.world_size,
        "worker": config.raters.workers + config.render.workers,
        "base": 1,
    }
    host = sum(count * PROCESS_GIB[kind] * GIB for kind, count in processes.items())
    host += 0 if config.learner.gpus else config.learner.world_size * sum(trained.values())
    host += 0 if config.rollout.gpus else shards * sum(served.values())
    total = sum(node.memory for node in nodes)
    return Check(
        "host memory",
        "ok" if host < 0.9 * total else "failed",
        f"about {host / GIB:.1f} of {total / GIB:.0f} GiB",
        remedy="fewer workers, or more nodes",
    )


def sequences_per_learner(config: DpoOfVla) -> int:
    """That go through at once, of the larger of the batches of SFT and DPO."""
    learner = config.learner
    clips = config.sft.batch_size // learner.world_size
    pairs = config.dpo.batch_size // learner.world_size
    at_once = learner.micro_batch or max(clips, pairs)
    return max(min(clips, at_once), 2 * min(pairs, at_once))


def _fits(
    what: str, needs: dict[str, int], *, gpus: float, nodes: list[Node], remedy: str
) -> Check:
    need = sum(needs.values())
    parts = ", ".join(f"{name} {value / GIB:.2f}" for name, value in needs.items())
    if gpus:
        sizes = [node.gpu_memory for node in nodes if node.gpu_memory]
    else:
        sizes = [node.memory for node in nodes]
    room = min(sizes, default=0) * (gpus if 0 < gpus < 1 else 1)
    return Check(
        f"{what} memory",
        "ok" if need < 0.9 * room else "failed",
        f"about {need / GIB:.2f} GiB each ({parts}) of {room / GIB:.0f}",
        remedy=remedy,
    )


def disk_check(config: DpoOfVla, size: ModelSize, run: Workspace) -> Check:
    """What the run directory grows to against what is free there."""
    corpus = config.corpus
    seconds = corpus.seconds + corpus.past
    clip = (
        round(seconds * AUDIO_BYTES_S)
        + round(seconds * corpus.frames) * corpus.image_size**2 * 3
        + round(seconds * FPS) * MOTION_BYTES_FRAME
    )
    clips = 0
    if corpus.kind == "synthetic":
        clips = corpus.listeners * sum(moments_of(corpus).values())
    policies = 2 + config.dpo.rounds
    need = sum(
        disk_bytes(size, config.vla.dtype, corpus_bytes=clips * clip, policies=policies).values()
    )
    free = shutil.disk_usage(run.directory).free
    return Check(
        "run disk",
        "ok" if need < 0.9 * free else "failed",
        f"about {need / GIB:.2f} of {free / GIB:.0f} GiB free",
        remedy="another --run-dir",
    )
