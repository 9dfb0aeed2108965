"""The rollout fleet: actors with one sampling engine each, fed by a stream, updated in place."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rapport.actors import telemetry, timeline
from rapport.actors.cluster import on_nodes, reserve, worker_environment
from rapport.actors.pool import Pool
from rapport.policies.vla.trajectory import Prompt, Trajectory

CANARY_TOKENS = (
    128  # every weight but those of later slots has a say in them; the digest covers all
)


class StaleWeightsError(RuntimeError):
    """An engine does not hold the weights it was given; nothing it samples can be trusted."""


@dataclass(frozen=True)
class FleetOptions:
    """Fields as in `rapport.pipeline.config.RolloutConfig`."""

    engine: str
    workers: int
    cpus: float
    gpus: float
    threads: int
    tensor_parallel: int
    dtype: str
    kv_cache_gib: float
    batch_prompts: int
    in_flight: int
    temperature: float
    canary_tolerance: float
    start_timeout_s: float
    timeout_s: float
    nodes: str | None = None


@dataclass(frozen=True)
class Request:
    """`samples` candidates for each prompt of a batch; seeds follow from `seed` and the prompt id
    alone.

    Args:
        tokens: of a candidate; None = the whole horizon.
    """

    prompts: list[Prompt]
    samples: int
    seed: int
    tokens: int | None = None


@ray.remote
class RolloutWorker(timeline.Worker):
    """Holds an engine; every trajectory carries the version of the weights in it."""

    def __init__(self, checkpoint: str, options: FleetOptions):
        torch.set_num_threads(options.threads)
        if options.engine == "vllm":
            from rapport.policies.vla.vllm_engine import VllmEngine as Engine
        else:
            from rapport.policies.vla.hf_engine import HfEngine as Engine
        self.engine = Engine(
            Path(checkpoint),
            options.dtype,
            options.temperature,
            options.kv_cache_gib,
            options.tensor_parallel,
        )
        self.version = 0

    def describe(self) -> dict[str, Any]:
        return self.engine.describe()

    def generate(self, request: Request) -> list[Trajectory]:
        seeds = [prompt_seed(request.seed, p.prompt_id) for p in request.prompts]
        sampled = self.engine.sample(request.prompts, request.samples, seeds, request.tokens)
        return [
            Trajectory(prompt.prompt_id, k, tokens, log_probs, self.version, seed)
            for prompt, seed, candidates in zip(request.prompts, seeds, sampled, strict=True)
            for k, (tokens, log_probs) in enumerate(candidates)
        ]

    def update(self, state: dict[str, torch.Tensor], version: int) -> str:
        """Replace the weights in place; returns the digest of what arrived."""
        from rapport.policies.vla.loading import weight_digest

        self.engine.update(state)
        self.version = version
        return weight_digest(state)

    def adopt(
        self, state: dict[str, torch.Tensor] | None, version: int, canary: Request
    ) -> tuple[str | None, Any]:
        """Catch up with the others: their weights (None = those of the checkpoint), and an answer
        to the canary.
        """
        digest = None if state is None else self.update(state, version)
        return digest, self.generate(canary)[0]


def engine_environment(options: FleetOptions) -> dict[str, str]:
    """Environment of an engine's process."""
    return (
        worker_environment(options.threads)
        | {
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(options.kv_cache_gib))),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        | (
            {}
            if options.gpus
            else {
                "TORCHDYNAMO_DISABLE": "1",  # 12 s of C++ compilation for one small function of the sampler
            }
        )
    )


def prompt_seed(seed: int, prompt_id: str) -> int:
    """The same for a prompt whichever engine, batch or order it is sampled in."""
    return zlib.crc32(f"{seed}/{prompt_id}".encode())


class Fleet(Pool):
    """N engines in reserved places. Use as a context manager: leaving it ends the engines and frees
    their places.

    An engine that replaces a lost one starts wherever there is room, as the place may have gone
    with its node. It serves once it holds the current weights and passed the canary.

    Args:
        checkpoint: policy folder every node can read.
        policy: what is in it, a torch FaceVLA.
        canary: a fixed prompt; after every weight update each engine samples the first
            `CANARY_TOKENS` of an answer, and their log-probs must agree with a plain forward pass
            of the same weights.
        losses: lost engines that are replaced.
    """

    def __init__(
        self, checkpoint: Path, policy: Any, options: FleetOptions, canary: Prompt, losses: int
    ):
        self.options, self.version = options, 0
        self._policy, self._canary = (
            policy,
            Request([canary], 1, 0, min(CANARY_TOKENS, policy.config.action_tokens)),
        )
        self._state, self._digest = None, None  # of the weights given since the checkpoint
        share = {"CPU": options.cpus} | (
            {"GPU": options.gpus * options.tensor_parallel} if options.gpus else {}
        )
        marked = on_nodes(options.nodes)
        self._groups = reserve(
            [share | marked] * options.workers, "rollout fleet", options.start_timeout_s
        )
        environment = engine_environment(options)
        worker = {
            "num_cpus": share["CPU"],
            "num_gpus": share.get("GPU", 0),
            "resources": marked,
            "runtime_env": {"env_vars": environment},
        }
        places = dict(enumerate(self._groups))

        def start(index: int) -> Any:
            if index in places:
                place = PlacementGroupSchedulingStrategy(places.pop(index))
                return RolloutWorker.options(scheduling_strategy=place, **worker).remote(
                    str(checkpoint), options
                )
            remove_placement_group(self._groups[index])
            # Where a learner owns the fleet: not in its placement group, which has no room for more
            # than the learner.
            return RolloutWorker.options(scheduling_strategy="DEFAULT", **worker).remote(
                str(checkpoint), options
            )

        super().__init__(
            "rollout fleet",
            "engine",
            start,
            options.workers,
            options.in_flight,
            options.timeout_s,
            losses,
        )

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for group in self._groups:
            remove_placement_group(group)

    def ready(self) -> dict[str, Any]:
        """Wait for the engines, check the canary, say what runs."""
        with timeline.noted(timeline.START):
            info = self.each("describe", timeout_s=self.options.start_timeout_s)
            return info[0] | {"workers": self.options.workers, "canary_gap": self._check_canary()}

    def generate(
        self, prompts: Iterable[Prompt], samples: int, seed: int
    ) -> Iterator[list[Trajectory]]:
        """Trajectories, a batch of prompts at a time, in the order the engines finish."""
        requests = (
            Request(batch, samples, seed) for batch in _batches(prompts, self.options.batch_prompts)
        )
        for _, trajectories in self.stream("generate", requests):
            telemetry.record(
                telemetry.TOKENS, sum(len(t.tokens) for t in trajectories), pool=self.name
            )
            stale = [t.prompt_id for t in trajectories if t.weight_version != self.version]
            if stale:
                raise StaleWeightsError(
                    f"{len(stale)} trajectories of another weight version than {self.version}, "
                    f"first of {stale[0]}"
                )
            yield trajectories

    def update(self, policy: Any) -> float:
        """Give every engine the weights of `policy`, check digest and canary, and return the
        log-prob gap.
        """
        from rapport.policies.vla.loading import weight_digest

        state = {name: tensor.detach().cpu() for name, tensor in policy.state_dict().items()}
        self.version += 1
        self._policy, self._state, self._digest = policy, ray.put(state), weight_digest(state)
        telemetry.record(telemetry.WEIGHT_VERSION_LAG, 1, pool=self.name)
        for digest in self.each("update", self._state, self.version):
            self._check_digest(digest)
        gap = self._check_canary()
        telemetry.record(telemetry.WEIGHT_VERSION_LAG, 0, pool=self.name)
        return gap

    def boot(self, actor: Any) -> ray.ObjectRef:
        return actor.adopt.remote(self._state, self.version, self._canary)

    def admit(self, answer: tuple[str | None, Trajectory]) -> bool:
        digest, trajectory = answer
        if trajectory.weight_version != self.version:
            return False  # the weights changed while it started
        self._check_digest(digest)
        self._check_gap(trajectory)
        return True

    def _check_canary(self) -> float:
        return max(
            self._check_gap(trajectory) for (trajectory,) in self.each("generate", self._canary)
        )

    def _check_digest(self, digest: str | None) -> None:
        if digest != self._digest:
            raise StaleWeightsError(
                f"weights changed on the way to an engine: digest {digest}, not {self._digest}"
            )

    def _check_gap(self, trajectory: Trajectory) -> float:
        gap = log_prob_gap(
            self._policy, self._canary.prompts[0], trajectory, self.options.temperature
        )
        telemetry.record(telemetry.LOG_PROB_GAP, gap, pool=self.name)
        tolerance = self.options.canary_tolerance if self.options.dtype == "float32" else 0.1
        if not gap <= tolerance:
            raise StaleWeightsError(
                f"canary: engine and learner disagree by {gap:.3g} nats on a fixed prompt "
                f"(rollout.canary_tolerance={tolerance:g}); the engines do not hold version "
                f"{self.version}"
            )
        return gap


def log_prob_gap(policy: Any, prompt: Prompt, trajectory: Trajectory, temperature: float) -> float:
    """Largest |difference| of token log-probs between the engine and a plain forward pass, nats."""
    frames = None if prompt.frames is None else torch.as_tensor(prompt.frames)[None]
    tokens = torch.as_tensor(trajectory.tokens.astype(np.int64))
    with torch.inference_mode():
        logits = policy.action_logits(torch.as_tensor(prompt.ids)[None], frames, tokens[None])
    log_probs = torch.log_softmax(logits[0].float() / temperature, dim=-1)
    expected = log_probs.gather(-1, (tokens - policy.config.action_token_start)[:, None])[
        :, 0
    ].numpy()
    return float(np.abs(expected - trajectory.log_probs).max())


def _batches(items: Iterable[Prompt], size: int) -> Iterator[list[Prompt]]:
    batch: list[Prompt] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
