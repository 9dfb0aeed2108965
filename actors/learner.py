"""DeepSpeed ZeRO learners under Ray Train: one long-lived train function per phase.

What is learnt is an `Objective`; how it is sharded, resumed and logged is here, and no maths. Where
learning needs rollouts, the learners ask the process that started them and wait, so the loop of the
algorithm stands in its recipe.
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
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Protocol, Self

import cloudpickle
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from rapport.actors import telemetry, timeline
from rapport.actors.cluster import ClusterError, on_nodes, worker_environment
from rapport.actors.lifeline import Lifeline
from rapport.actors.mailbox import open_mailbox
from rapport.actors.precision import exact_float32
from rapport.actors.settings import LearnerConfig
from rapport.log import logger

CHECKPOINT_TAG = "zero"
END_TIMEOUT_S = 120.0  # for processes of learners to end, or to start and end


class Objective(Protocol):
    """One learning phase: a module, batches and a loss.

    Picklable. What it returns depends on its arguments alone, so a phase can be resumed; what it
    makes of an experience is the one thing that it remembers.
    """

    @property
    def steps(self) -> int:
        """Optimiser steps."""

    @property
    def learning_rate(self) -> float:
        """At its peak."""

    @property
    def weight_decay(self) -> float:
        """Of AdamW."""

    @property
    def refresh_every(self) -> int | None:
        """Steps after which an experience is asked for; None = it never needs one."""

    def module(self) -> torch.nn.Module:
        """The trainable module with its initial weights, the same on every rank."""

    def checkpoint_gradients(self) -> None:
        """Have the module keep inputs of its blocks only, and compute the rest once more.

        Raises:
            NotImplementedError: it has no such blocks.
        """

    def prepare(self, forward: Callable[..., Any], rank: int, world_size: int) -> None:
        """Called once with the initial weights, before a checkpoint is loaded."""

    def refresh(
        self, forward: Callable[..., Any], experience: Any, rank: int, world_size: int
    ) -> None:
        """Take in what was sampled with the present weights, for the next steps. Collective."""

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """This rank's equal share of the global batch of `step`."""

    def loss(
        self, forward: Callable[..., Any], batch: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Mean loss over the share, and metrics that may be averaged over ranks."""

    def save(self, state: dict[str, torch.Tensor], directory: Path) -> dict[str, float]:
        """Write the full weights as a checkpoint that `load_policy` reads (rank 0 only).

        Returns what was lost on the way, as metrics.
        """


@dataclass(frozen=True, eq=False)
class Experience:
    """What was sampled with the weights of an iteration, and what it was worth.

    Args:
        data: what the objective learns from.
        metrics: logged with the iteration's first step.
    """

    data: Any
    metrics: dict[str, float]


@dataclass(frozen=True, eq=False)
class Iteration:
    """Learners that wait for an experience.

    Args:
        step: optimiser step that they are at.
        index: number of the iteration. A learner that was restarted asks for one again.
        weights: their present weights, whole, as `Objective.module` names them.
    """

    step: int
    index: int
    weights: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Milestones:
    """Policies that are written on the way, while learning goes on.

    Args:
        parts: equal parts of the steps; there is one after each but the last.
        reached: called with the folder of each as soon as it is there, in the caller's process.
    """

    parts: int
    reached: Callable[[Path], None]

    def steps(self, total: int) -> list[int]:
        """After which steps they are written."""
        return sorted(
            {round(total * part / self.parts) for part in range(1, self.parts)} - {0, total}
        )


class Learners:
    """A long-lived group of DeepSpeed learners beside this process; a context manager that ends it.

        with Learners(objective, config.learner, step.directory, log=..., say=...) as learners:
            for iteration in learners.iterations():      # none where nothing is asked for
                learners.learn(Experience(...))
        result = learners.result

    Args:
        objective: what is learnt.
        config: how many learners, and how they are sharded.
        directory: absolute, on storage every learner reaches; run again with the same one, it
            resumes.
        log: `(metrics, step)` of every step, called in this process.
        say: a line of progress now and then.
        milestones: policies to write on the way.
    """

    def __init__(
        self,
        objective: Objective,
        config: LearnerConfig,
        directory: Path,
        *,
        log: Callable[[dict[str, float], int], None],
        say: Callable[[str], None],
        milestones: Milestones | None = None,
    ) -> None:
        self.objective = objective
        self.config = config
        self.directory = directory
        self.log = log
        self.say = say
        self.milestones = milestones
        self.result: dict[str, Any] = {}
        self._stops = [] if milestones is None else milestones.steps(objective.steps)
        self._logged_step = 0
        self._said_at = 0.0
        every = objective.refresh_every
        if every and config.checkpoint_every % every:
            raise ValueError(
                f"checkpoint_every={config.checkpoint_every} must be a multiple of the {every} "
                "steps after which data is made anew: a learner cannot restart in between"
            )
        self._mailbox = open_mailbox()
        self._fitting: Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End learners that still learn, and wait for the thread that waits for them.

        It would ask a cluster that is gone after an error here, and Ray ends the process of whoever
        does, before anybody hears of the error.
        """
        if self._fitting is None or not self._fitting.is_alive():
            return
        ray.kill(self._mailbox)
        self._fitting.join(END_TIMEOUT_S)
        if self._fitting.is_alive():
            logger.warning(f"learners in {self.directory} did not end in {END_TIMEOUT_S:g} s")

    def iterations(self) -> Iterator[Iteration]:
        """Whenever the learners want to be given an experience; ends when they have learnt.

        Raises:
            ClusterError: learning takes longer than `learner.timeout_s`.
            Exception: what a learner raised, as it is.
        """
        outcome: Future[dict[str, Any]] = Future()
        asked_at = time.time()
        self._fitting = Thread(target=self._fit, args=(outcome,), daemon=True)
        self._fitting.start()
        deadline = time.monotonic() + self.config.timeout_s
        while not outcome.done():
            for request in ray.get(self._mailbox.take.remote(0.5), timeout=self.config.timeout_s):
                try:
                    weights = ray.get(request.weights[0], timeout=self.config.timeout_s)
                except ray.exceptions.ObjectLostError:
                    continue  # the learner died with its weights; the restarted one asks again
                yield Iteration(request.step, request.index, weights)
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"learning in {self.directory} took longer than "
                    f"learner.timeout_s={self.config.timeout_s:g} s"
                )
            self._pass_on_steps()
            self._pass_on_milestones()
        self._pass_on_steps()
        try:
            self.result = outcome.result()
        except Exception as error:
            raise _first_cause(error) from None
        self._pass_on_milestones()  # what was written after the last look
        timeline.note(timeline.START, asked_at, self.result["began"])
        timeline.note("learner", self.result["began"], self.result["ended"])

    def learn(self, experience: Experience) -> None:
        """Give the learners what they wait for."""
        ray.get(self._mailbox.reply.remote(experience), timeout=self.config.timeout_s)

    def _fit(self, outcome: Future[dict[str, Any]]) -> None:
        config = self.config
        resources = {"CPU": config.cpus} | on_nodes(config.nodes)
        if config.gpus:
            resources["GPU"] = config.gpus
        # Types are those of the older Ray Train, which is not the one that runs.
        train: Any = _train
        trainer: Any = TorchTrainer(
            train,
            train_loop_config={
                # As bytes: the controller would import everything only to hand it on.
                "objective": cloudpickle.dumps(self.objective),
                "config": config,
                "directory": str(self.directory),
                "milestones": list(self._stops),
                "mailbox": self._mailbox,
            },
            torch_config=TorchConfig(
                backend="nccl" if config.gpus else "gloo",
                # The others wait in a collective while the first one asks for rollouts.
                timeout_s=math.ceil(config.timeout_s),
            ),
            scaling_config=ScalingConfig(
                num_workers=config.world_size,
                use_gpu=config.gpus > 0,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(  # type: ignore[call-arg]
                name="learner",
                storage_path=str(self.directory),
                worker_runtime_env={"env_vars": worker_environment(config.threads, config.gpus)},
                failure_config=FailureConfig(  # type: ignore[call-arg]
                    max_failures=config.max_failures, controller_failure_limit=2
                ),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
                callbacks=[Lifeline(self._mailbox)],  # type: ignore[list-item]
            ),
        )
        try:
            outcome.set_result(trainer.fit().return_value)
        except Exception as error:  # raised again by outcome.result()
            outcome.set_exception(error)

    def _pass_on_steps(self) -> None:
        lines = _lines_after(self.directory / "steps.jsonl", self._logged_step)
        for line in lines:
            self._logged_step = int(line.pop("step"))
            self.log(line, self._logged_step)
        if lines and time.monotonic() - self._said_at > 10:
            self._said_at = time.monotonic()
            main = {name: value for name, value in lines[-1].items() if "/" not in name}
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in main.items())
            self.say(f"step {self._logged_step}/{self.objective.steps}  {numbers}")

    def _pass_on_milestones(self) -> None:
        if self.milestones is None:
            return
        while self._stops and _milestone(self.directory, self._stops[0]).is_dir():
            self.milestones.reached(_milestone(self.directory, self._stops.pop(0)))


def fit(
    objective: Objective,
    config: LearnerConfig,
    directory: Path,
    log: Callable[[dict[str, float], int], None],
    say: Callable[[str], None],
    milestones: Milestones | None = None,
) -> dict[str, Any]:
    """Train an objective that needs no experience, and write `directory/policy`.

    Returns `final` metrics, `steps`, `seconds_per_step` and `engine`. Arguments are those of
    `Learners`.
    """
    with Learners(
        objective, config, directory, log=log, say=say, milestones=milestones
    ) as learners:
        for iteration in learners.iterations():
            raise RuntimeError(
                f"step {iteration.step} asks for an experience, and nobody gives one"
            )
    return learners.result


@dataclass(frozen=True, eq=False)
class _Request:
    """What the learner of rank 0 puts into the mailbox.

    The weights are a reference in a list, so that they stay in the object store until somebody
    looks.
    """

    step: int
    index: int
    weights: list[ray.ObjectRef]


def _experience(
    mailbox: Any, state: dict[str, torch.Tensor], *, step: int, index: int, timeout_s: float
) -> Experience:
    """What the driver makes of the present weights. Collective."""
    answer: list[Any] = [None]
    if dist.get_rank() == 0:
        request = _Request(step, index, [ray.put(state)])
        answer = [ray.get(mailbox.ask.remote(request), timeout=timeout_s)]
    dist.broadcast_object_list(answer)
    return answer[0]


def _train(config: dict[str, Any]) -> dict[str, Any]:
    settings: LearnerConfig = config["config"]
    directory = Path(config["directory"])
    with without("sklearn"):  # transformers imports it to draft tokens with another model
        objective: Objective = cloudpickle.loads(config["objective"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    world_size = context.get_world_size()
    torch.set_num_threads(settings.threads)
    exact_float32()
    engine = start_engine(objective, settings)
    forward = engine.__call__
    started = time.time()
    objective.prepare(forward, rank, world_size)
    start = _load(engine)
    steps_file = directory / "steps.jsonl"
    if rank == 0:
        _truncate(steps_file, start)
    metrics: dict[str, float] = {}
    began = last = time.monotonic()
    for step in range(start, objective.steps):
        news: dict[str, float] = {}
        if objective.refresh_every and step % objective.refresh_every == 0:
            experience = _experience(
                config["mailbox"],
                full_state_dict(engine),
                step=step,
                index=step // objective.refresh_every,
                timeout_s=settings.timeout_s,
            )
            objective.refresh(forward, experience.data, rank, world_size=world_size)
            news = experience.metrics
        ready = time.monotonic()
        metrics = train_step(
            engine,
            objective,
            step,
            rank=rank,
            world_size=world_size,
            micro_batch=settings.micro_batch,
        )
        if rank == 0:
            now = time.monotonic()
            telemetry.record_step(directory.name, metrics, now - ready, since_last_s=now - last)
            last = now
            with steps_file.open("a") as lines:
                lines.write(json.dumps({"step": step + 1} | news | metrics) + "\n")
        # Before the checkpoint: who goes on from there does not come by here again.
        if step + 1 in config["milestones"]:
            _publish(engine, objective, _milestone(directory, step + 1), rank=rank)
        if (step + 1) % settings.checkpoint_every == 0 and step + 1 < objective.steps:
            _report(engine, step + 1, metrics)
    seconds_per_step = (time.monotonic() - began) / max(1, objective.steps - start)
    state = full_state_dict(engine)
    if rank == 0:
        metrics |= objective.save(state, directory / "policy")
    dist.barrier()
    return {
        "final": metrics,
        "steps": objective.steps,
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
    """For a while, imports find no `module`, unless it is there already.

    It saves two seconds of every learner's start where a library imports it for what nobody calls.
    """
    loaded = module in sys.modules
    if not loaded:
        sys.modules[module] = None  # type: ignore[assignment]  # an import of it then fails
    try:
        yield
    finally:
        if not loaded:
            del sys.modules[module]


def start_engine(objective: Objective, config: LearnerConfig) -> Any:
    """A DeepSpeed engine over the task's module in the present process group. Collective."""
    with contextlib.redirect_stdout(io.StringIO()):
        with without("mlflow"):  # deepspeed imports it to tune itself
            import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # Otherwise compiled for most of a minute on first use; only inference would call it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        module = objective.module()
        if config.gradient_checkpointing:
            objective.checkpoint_gradients()
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=objective.learning_rate,
            weight_decay=objective.weight_decay,
            betas=(0.9, 0.95),
        )
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config={
                # Batches come ready-made; only the ratio of this number to itself is used.
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": config.gradient_clipping,
                "zero_optimization": {"stage": config.zero_stage},
                "bf16": {"enabled": parameters[0].dtype == torch.bfloat16},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,  # torch's AdamW: no C++ build, same numbers
                "steps_per_print": 10**9,
            },
        )
    return engine


def train_step(
    engine: Any,
    objective: Objective,
    step: int,
    *,
    rank: int,
    world_size: int,
    micro_batch: int | None = None,
) -> dict[str, float]:
    """One optimiser step, collective; metrics are means over rows and ranks, NAME_max the largest.

    Args:
        engine: of `start_engine`.
        objective: what is learnt.
        step: its number.
        rank: of this learner.
        world_size: learners.
        micro_batch: rows that go through at once, whose gradients are added up; None = all.

    Raises:
        FloatingPointError: the loss is no number.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = objective.learning_rate * schedule(step, objective.steps)
    batch = {
        name: value.to(engine.device) if isinstance(value, torch.Tensor) else value
        for name, value in objective.batch(step, rank, world_size).items()
    }
    means: dict[str, torch.Tensor] = {}
    largest: dict[str, torch.Tensor] = {}
    pieces = list(split_rows(batch, micro_batch))
    for index, (piece, share) in enumerate(pieces):
        engine.set_gradient_accumulation_boundary(index + 1 == len(pieces))
        loss, metrics = objective.loss(engine.__call__, piece)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {step} on rank {rank}; lower the learning rate"
            )
        engine.backward(share * loss)
        for name, tensor in {"loss": loss, **metrics}.items():
            value = tensor.detach().float()
            if name.endswith("_max"):
                largest[name] = torch.maximum(largest.get(name, value), value)
            else:
                means[name] = means.get(name, 0) + share / world_size * value
    engine.step()
    reached = _over_ranks(means, dist.ReduceOp.SUM) | _over_ranks(largest, dist.ReduceOp.MAX)
    reached["learning_rate"] = objective.learning_rate * schedule(step, objective.steps)
    reached["gradient_norm"] = float(engine.get_global_grad_norm() or 0.0)
    return reached


def _over_ranks(metrics: Mapping[str, torch.Tensor], reduction: Any) -> dict[str, float]:
    if not metrics:
        return {}
    values = torch.stack(list(metrics.values()))
    dist.all_reduce(values, reduction)
    return dict(zip(metrics, values.tolist(), strict=True))


def split_rows(batch: dict[str, Any], size: int | None) -> Iterator[tuple[dict[str, Any], float]]:
    """A batch in pieces of at most `size` rows, each with its share of all rows.

    Losses are means over rows, so that their sum by these shares is the loss of the batch.

    Args:
        batch: tensors, lists and dicts of them, whose first axis is that of rows; the rest (a
            number, None) belongs to every piece.
        size: None = one piece.
    """
    counts = set(_row_counts(batch))
    if size is None:
        yield batch, 1.0
        return
    if len(counts) != 1:
        raise ValueError(f"learner.micro_batch: rows of a batch cannot be told, {counts}")
    (rows,) = counts
    for first in range(0, rows, size):
        rows_of_piece = slice(first, min(first + size, rows))
        piece = {name: _cut(value, rows_of_piece) for name, value in batch.items()}
        yield piece, (rows_of_piece.stop - first) / rows


def _row_counts(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        for part in value.values():
            yield from _row_counts(part)
    elif isinstance(value, (torch.Tensor, list)):
        yield len(value)


def _cut(value: Any, rows: slice) -> Any:
    if isinstance(value, dict):
        return {name: _cut(part, rows) for name, part in value.items()}
    return value[rows] if isinstance(value, (torch.Tensor, list)) else value


def schedule(step: int, steps: int, warmup: float = 0.05, floor: float = 0.1) -> float:
    """A factor of the peak rate: linear warm-up, then cosine down to `floor`."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def full_state_dict(engine: Any) -> dict[str, torch.Tensor]:
    """The whole module's weights on the CPU of rank 0, at any ZeRO stage; empty elsewhere.

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


def milestone_step(folder: Path) -> int:
    """After how many steps the policy in the folder of a milestone was written."""
    return int(folder.name.rpartition("-")[2])


def _publish(engine: Any, objective: Objective, folder: Path, rank: int) -> None:
    """The weights of now as a checkpoint that is there as a whole or not at all. Collective."""
    state = full_state_dict(engine)
    if rank == 0 and not folder.is_dir():  # a learner that was restarted comes by once more
        partial = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(partial, ignore_errors=True)
        objective.save(state, partial)
        partial.rename(folder)


def _truncate(file: Path, step: int) -> None:
    """Drop lines of steps that a resumed learner will do again, and an unfinished one.

    A learner that is killed while it writes leaves that.
    """
    if file.is_file():
        kept = [line for line in whole_lines(file) if json.loads(line)["step"] <= step]
        file.write_text("".join(line + "\n" for line in kept))


def _lines_after(file: Path, step: int) -> list[dict[str, float]]:
    """Whole lines of later steps; the last one may still be being written."""
    if not file.is_file():
        return []
    # Line i is step i + 1: those before need not be parsed again.
    return [json.loads(line) for line in whole_lines(file)[step:]]


def whole_lines(file: Path) -> list[str]:
    """Without the last one where it is still being written."""
    return file.read_text().rpartition("\n")[0].splitlines()


def _first_cause(error: BaseException) -> BaseException:
    """The worker's own exception, not the controller's wrapping."""
    failures = getattr(error, "worker_failures", None)
    return next(iter(failures.values())) if failures else error
