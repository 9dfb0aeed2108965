"""DeepSpeed ZeRO learners under Ray Train: one long-lived train function per phase.

What is learned is a `Task`; how it is sharded, resumed and logged is here, and no maths.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cloudpickle
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from rapport.actors import telemetry, timeline
from rapport.actors.cluster import ClusterError, on_nodes, worker_environment

CHECKPOINT_TAG = "zero"


class Task(Protocol):
    """One learning phase. Picklable; everything it returns depends on its arguments alone, so it
    can be resumed.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    refresh_every: (
        int | None
    )  # steps after which data is made anew; None = it does not depend on the weights

    def module(self) -> torch.nn.Module:
        """The trainable module with its initial weights, the same on every rank."""

    def prepare(self, forward: Callable[..., Any], rank: int, world_size: int) -> None:
        """Called once with the initial weights, before a checkpoint is loaded (reference
        log-probs).
        """

    def refresh(
        self,
        forward: Callable[..., Any],
        state: dict[str, torch.Tensor],
        step: int,
        rank: int,
        world_size: int,
    ) -> dict[str, float]:
        """Make the data of the next `refresh_every` steps with the present weights (rollouts);
        metrics of rank 0.

        `state` is the module's whole, on rank 0 only. A learner restarts at such a step, so it is
        never half done."""

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """This rank's equal share of the global batch of `step`."""

    def loss(
        self, forward: Callable[..., Any], batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Mean loss over the share, and metrics that may be averaged over ranks."""

    def save(self, state: dict[str, torch.Tensor], directory: Path) -> None:
        """Write the full weights as a checkpoint that transformers and vLLM load (rank 0 only)."""


@dataclass(frozen=True)
class LearnerOptions:
    """How a phase is run; fields as in `rapport.pipeline.config.LearnerConfig`."""

    world_size: int
    cpus: float
    gpus: float
    threads: int
    zero_stage: int
    gradient_clipping: float
    max_failures: int
    checkpoint_every: int
    timeout_s: float
    nodes: str | None = None


@dataclass(frozen=True)
class Milestones:
    """Policies that are written on the way, while learning goes on.

    Args:
        parts: equal parts of the steps; there is one after each but the last.
        reached: called with the folder of each as soon as it is there, in the process that called
            `fit`.
    """

    parts: int
    reached: Callable[[Path], None]

    def steps(self, total: int) -> list[int]:
        return sorted(
            {round(total * part / self.parts) for part in range(1, self.parts)} - {0, total}
        )


def fit(
    task: Task,
    options: LearnerOptions,
    directory: Path,
    log: Callable[[dict[str, float], int], None],
    say: Callable[[str], None],
    milestones: Milestones | None = None,
) -> dict[str, Any]:
    """Train `task`, write `directory/policy`, and return `final` metrics, `steps`,
    `seconds_per_step` and `engine`.

    Args:
        directory: absolute, on storage every learner reaches; run again with the same one, it
            resumes.
        log: `(metrics, step)` of every step, called in this process.
        say: a line of progress now and then.
    """
    stops = [] if milestones is None else milestones.steps(task.steps)
    if task.refresh_every and options.checkpoint_every % task.refresh_every:
        raise ValueError(
            f"checkpoint_every={options.checkpoint_every} must be a multiple of the "
            f"{task.refresh_every} "
            "steps after which data is made anew: a learner cannot restart in between"
        )
    trainer = TorchTrainer(
        _train,
        # As bytes: the controller would import everything the task needs, only to hand it on.
        train_loop_config={
            "task": cloudpickle.dumps(task),
            "options": options,
            "directory": str(directory),
            "milestones": stops,
        },
        torch_config=TorchConfig(backend="nccl" if options.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=options.world_size,
            use_gpu=options.gpus > 0,
            resources_per_worker={"CPU": options.cpus}
            | ({"GPU": options.gpus} if options.gpus else {})
            | on_nodes(options.nodes),
        ),
        run_config=RunConfig(
            name="learner",
            storage_path=str(directory),
            worker_runtime_env={"env_vars": worker_environment(options.threads)},
            failure_config=FailureConfig(
                max_failures=options.max_failures, controller_failure_limit=2
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    outcome: dict[str, Any] = {}
    asked = time.time()

    def run() -> None:
        try:
            outcome["result"] = trainer.fit().return_value
        except Exception as error:  # handed to the waiting thread, raised there
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    deadline, seen, said = time.monotonic() + options.timeout_s, 0, 0.0
    while thread.is_alive():
        thread.join(0.5)
        if time.monotonic() > deadline:
            raise ClusterError(
                f"learning in {directory} took longer than "
                f"learner.timeout_s={options.timeout_s:g} s"
            )
        lines = _lines_after(directory / "steps.jsonl", seen)
        for line in lines:
            seen = line.pop("step")
            log(line, seen)
        if lines and time.monotonic() - said > 10:
            said = time.monotonic()
            main = {name: value for name, value in lines[-1].items() if "/" not in name}
            say(f"step {seen}/{task.steps}  " + "  ".join(f"{k} {v:.4g}" for k, v in main.items()))
        while stops and _milestone(directory, stops[0]).is_dir():
            milestones.reached(_milestone(directory, stops.pop(0)))
    if "error" in outcome:
        raise _first_cause(outcome["error"])
    for step in stops:  # written after the last look
        milestones.reached(_milestone(directory, step))
    result = outcome["result"]
    timeline.note(timeline.START, asked, result["began"])
    timeline.note("learner", result["began"], result["ended"])
    return result


def _train(config: dict[str, Any]) -> dict[str, Any]:
    options, directory = config["options"], Path(config["directory"])
    with without("sklearn"):  # transformers imports it to draft tokens with another model
        task = cloudpickle.loads(config["task"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(options.threads)
    engine = start_engine(task, options)
    forward, started = engine.__call__, time.time()
    task.prepare(forward, rank, world_size)
    start = _load(engine)
    steps_file = directory / "steps.jsonl"
    if rank == 0:
        _truncate(steps_file, start)
    metrics: dict[str, float] = {}
    began = last = time.monotonic()
    for step in range(start, task.steps):
        news: dict[str, float] = {}
        if task.refresh_every and step % task.refresh_every == 0:
            news = task.refresh(forward, full_state_dict(engine), step, rank, world_size)
        ready = time.monotonic()
        metrics = train_step(engine, task, step, rank, world_size)
        if rank == 0:
            now = time.monotonic()
            telemetry.record_step(directory.name, metrics, now - ready, now - last)
            last = now
            with steps_file.open("a") as lines:
                lines.write(json.dumps({"step": step + 1} | news | metrics) + "\n")
        if (step + 1) % options.checkpoint_every == 0 and step + 1 < task.steps:
            _report(engine, step + 1, metrics)
        if step + 1 in config["milestones"]:
            _publish(engine, task, _milestone(directory, step + 1), rank)
    seconds_per_step = (time.monotonic() - began) / max(1, task.steps - start)
    state = full_state_dict(engine)
    if rank == 0:
        task.save(state, directory / "policy")
    dist.barrier()
    return {
        "final": metrics,
        "steps": task.steps,
        "began": started,
        "ended": time.time(),
        "seconds_per_step": seconds_per_step,
        "engine": {
            "name": "deepspeed",
            "zero_stage": engine.zero_optimization_stage(),
            "world_size": world_size,
            "optimizer": type(engine.optimizer.optimizer).__name__,
            "device": str(engine.device),
        },
    }


@contextlib.contextmanager
def without(module: str) -> Iterator[None]:
    """Imports find no `module` that is not there yet: of use where a library imports it for what
    nobody calls.

    Each such import is two seconds of every learner's start.
    """
    loaded = module in sys.modules
    if not loaded:
        sys.modules[module] = None
    try:
        yield
    finally:
        if not loaded:
            del sys.modules[module]


def start_engine(task: Task, options: LearnerOptions) -> Any:
    """A DeepSpeed engine over the task's module in the present process group. Collective."""
    with contextlib.redirect_stdout(io.StringIO()):
        with without("mlflow"):  # deepspeed imports it to tune itself
            import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # Otherwise compiled for most of a minute on first use; only inference would call it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        module = task.module()
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=task.learning_rate, weight_decay=task.weight_decay, betas=(0.9, 0.95)
        )
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,  # batches come ready-made; only their ratio to itself is used
                "gradient_accumulation_steps": 1,
                "gradient_clipping": options.gradient_clipping,
                "zero_optimization": {"stage": options.zero_stage},
                "bf16": {"enabled": parameters[0].dtype == torch.bfloat16},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,  # torch's AdamW: no C++ build, same numbers
                "steps_per_print": 10**9,
            },
        )
    return engine


def train_step(engine: Any, task: Task, step: int, rank: int, world_size: int) -> dict[str, float]:
    """One optimiser step; metrics averaged over the ranks. Collective."""
    for group in engine.optimizer.param_groups:
        group["lr"] = task.learning_rate * schedule(step, task.steps)
    batch = {
        name: value.to(engine.device) if isinstance(value, torch.Tensor) else value
        for name, value in task.batch(step, rank, world_size).items()
    }
    loss, metrics = task.loss(engine.__call__, batch)
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"loss is {loss.item()} at step {step} on rank {rank}; lower the learning rate"
        )
    engine.backward(loss)
    engine.step()
    names = ["loss", *metrics]
    values = torch.stack([loss.detach().float(), *(m.detach().float() for m in metrics.values())])
    dist.all_reduce(values)
    averaged = dict(zip(names, (values / world_size).tolist(), strict=True))
    averaged["learning_rate"] = task.learning_rate * schedule(step, task.steps)
    averaged["gradient_norm"] = float(engine.get_global_grad_norm() or 0.0)
    return averaged


def schedule(step: int, steps: int, warmup: float = 0.05, floor: float = 0.1) -> float:
    """Linear warm-up over `warmup` of the steps, then cosine down to `floor`; a factor of the peak
    rate.
    """
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def full_state_dict(engine: Any) -> dict[str, torch.Tensor]:
    """The whole module's weights on the CPU of rank 0 (empty elsewhere), at any ZeRO stage.
    Collective.
    """
    import deepspeed

    state = {}
    rank = dist.get_rank()
    sharded = engine.zero_optimization_stage() == 3
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
            if rank == 0:
                state[name] = parameter.detach().cpu().clone()
    if rank == 0:
        parameters = {name for name, _ in engine.module.named_parameters(remove_duplicate=False)}
        state |= {
            name: buffer.detach().cpu().clone()
            for name, buffer in engine.module.state_dict().items()
            if name not in parameters
        }
    return state


def _load(engine: Any) -> int:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path, client = engine.load_checkpoint(folder, tag=CHECKPOINT_TAG)
        if path is None:
            raise RuntimeError(
                f"checkpoint {folder} cannot be read; remove the learner folder to start the "
                "phase anew"
            )
        return client["step"]


def _report(engine: Any, step: int, metrics: dict[str, float]) -> None:
    folder = tempfile.mkdtemp(prefix="rapport-checkpoint-")
    with contextlib.redirect_stdout(io.StringIO()):
        engine.save_checkpoint(folder, tag=CHECKPOINT_TAG, client_state={"step": step})
    ray.train.report(
        metrics,
        checkpoint=Checkpoint.from_directory(folder),
        checkpoint_dir_name=f"step_{step:06d}",
    )
    shutil.rmtree(folder, ignore_errors=True)


def _milestone(directory: Path, step: int) -> Path:
    return directory / f"policy-{step:06d}"


def _publish(engine: Any, task: Task, folder: Path, rank: int) -> None:
    """The weights of now as a checkpoint that is there as a whole or not at all. Collective."""
    state = full_state_dict(engine)
    if rank == 0 and not folder.is_dir():  # a learner that was restarted comes by once more
        partial = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        task.save(state, partial)
        partial.rename(folder)


def _truncate(file: Path, step: int) -> None:
    """Drop lines of steps that a resumed learner will do again, and one that a killed learner left
    unfinished.
    """
    if file.is_file():
        kept = [line for line in _whole_lines(file) if json.loads(line)["step"] <= step]
        file.write_text("".join(line + "\n" for line in kept))


def _lines_after(file: Path, step: int) -> list[dict[str, float]]:
    """Whole lines of later steps; the last one may still be being written."""
    if not file.is_file():
        return []
    return [line for line in map(json.loads, _whole_lines(file)) if line["step"] > step]


def _whole_lines(file: Path) -> list[str]:
    return file.read_text().rpartition("\n")[0].splitlines()


def _first_cause(error: BaseException) -> BaseException:
    """The worker's own exception, not the controller's wrapping."""
    failures = getattr(error, "worker_failures", None)
    return next(iter(failures.values())) if failures else error
