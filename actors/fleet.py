"""The rollout fleet: actors with one sampling engine each, fed by a stream, updated in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import Tensor

from rapport.actors import telemetry, timeline
from rapport.actors.cluster import on_nodes, reserve, worker_environment
from rapport.actors.engines import Engine
from rapport.actors.pool import Pool
from rapport.actors.precision import exact_float32
from rapport.actors.settings import FleetConfig
from rapport.policies.policy import Policy, Prompt, Reaction, weight_digest

# Every weight but those of later slots has a say in as many tokens; the digest covers all.
CANARY_TOKENS = 128

StartEngine = Callable[[], Engine]


class StaleWeightsError(RuntimeError):
    """An engine does not hold the weights it was given; nothing it samples can be trusted."""


@dataclass(frozen=True, eq=False)
class Canary:
    """A fixed prompt that every engine answers after a change of weights.

    Its log-probs must agree with a plain forward pass of the same weights.

    Args:
        prompt: the prompt.
        tolerance: largest gap allowed, nats.
        actions: how much of an answer is sampled.
    """

    prompt: Prompt
    tolerance: float
    actions: int = CANARY_TOKENS


class Gap(NamedTuple):
    """How far an engine's log-probs are from the learner's, nats, over a canary's actions."""

    largest: float
    mean: float
    p95: float


@dataclass(frozen=True, eq=False)
class Request:
    """A batch of prompts for one engine.

    Args:
        number: of the batch.
        prompts: what to answer.
        seeds: one each.
        samples: answers to each.
        actions: of an answer; None = all of it.
    """

    number: int
    prompts: Sequence[Prompt]
    seeds: Sequence[int]
    samples: int
    actions: int | None = None


class RolloutWorker(timeline.Worker):
    """Holds an engine; every reaction carries the version of the weights in it."""

    def __init__(self, start: StartEngine, threads: int) -> None:
        torch.set_num_threads(threads)
        exact_float32()
        self.engine = start()
        self.version = 0

    def describe(self) -> dict[str, Any]:
        """The engine's own words."""
        return self.engine.describe()

    def sample(self, request: Request) -> list[list[Reaction]]:
        """A group for each prompt."""
        groups = self.engine.sample(
            request.prompts, request.samples, request.seeds, request.actions
        )
        return [[self._of_these_weights(reaction) for reaction in group] for group in groups]

    def _of_these_weights(self, reaction: Reaction) -> Reaction:
        """Weights change between two requests only, so all chunks of a reaction are of the same."""
        versions = tuple(self.version for _ in reaction.versions)
        return replace(reaction, weight_version=self.version, versions=versions)

    def update(self, weights: Mapping[str, Tensor], version: int) -> str:
        """Replace the weights in place; returns the digest of what arrived."""
        self.engine.update(weights)
        self.version = version
        return weight_digest(weights)

    def adopt(
        self, weights: Mapping[str, Tensor] | None, version: int, canary: Request | None
    ) -> tuple[str | None, int, Reaction | None]:
        """Catch up with the others.

        Args:
            weights: theirs; None = those of the checkpoint.
            version: of the weights.
            canary: a question to prove it by.

        Returns:
            digest of the weights, their version, the answer to the canary.
        """
        digest = None if weights is None else self.update(weights, version)
        answer = None if canary is None else self.sample(canary)[0][0]
        return digest, self.version, answer


class Fleet(Pool):
    """N engines in reserved places. Use as a context manager: leaving it frees their places.

    An engine that replaces a lost one starts wherever there is room, as the place may have gone
    with its node. It serves once it holds the current weights and passed the canary.

    Args:
        start: makes an engine, in the actor's process.
        config: how many there are and what they ask for.
        losses: lost engines that are replaced.
        environment: of the engines' processes.
        policy: holds the weights of the checkpoint; for the canary.
        canary: None where engines are the learners' own code.
    """

    def __init__(
        self,
        start: StartEngine,
        config: FleetConfig,
        *,
        losses: int,
        environment: Mapping[str, str] | None = None,
        policy: Policy | None = None,
        canary: Canary | None = None,
    ) -> None:
        self.config = config
        self.version = 0
        self._policy = policy
        self._canary = canary
        self._weights: ray.ObjectRef | None = None  # given since the checkpoint
        self._digest: str | None = None
        share = {"CPU": config.cpus}
        if config.gpus_per_actor:
            share["GPU"] = config.gpus_per_actor
        marked = on_nodes(config.nodes)
        self._groups = reserve(
            [share | marked] * config.workers, "rollout fleet", config.start_timeout_s
        )
        variables = worker_environment(config.threads, config.gpus) | dict(environment or {})
        actor = {
            "num_cpus": share["CPU"],
            "num_gpus": share.get("GPU", 0),
            "resources": marked,
            "runtime_env": {"env_vars": variables},
        }
        places = dict(enumerate(self._groups))

        worker = ray.remote(RolloutWorker)

        def start_actor(index: int) -> Any:
            place: Any
            if index in places:
                place = PlacementGroupSchedulingStrategy(places.pop(index))
            else:
                remove_placement_group(self._groups[index])
                # Not in the placement group of whoever asks: it has no room for an engine.
                place = "DEFAULT"
            options = actor | {"scheduling_strategy": place}
            return worker.options(**options).remote(start, config.threads)

        super().__init__(
            name="rollout fleet",
            kind="engine",
            start=start_actor,
            workers=config.workers,
            in_flight=config.in_flight,
            timeout_s=config.timeout_s,
            losses=losses,
        )

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for group in self._groups:
            remove_placement_group(group)

    def ready(self) -> dict[str, Any]:
        """Wait for the engines, check the canary, say what runs."""
        with timeline.noted(timeline.START):
            info = self.each("describe", timeout_s=self.config.start_timeout_s)
            described = info[0] | {"workers": self.config.workers}
            if self._canary is not None:
                gap = self._check_canary()
                described |= {
                    "canary_gap": gap.largest,
                    "canary_gap_mean": gap.mean,
                    "canary_gap_p95": gap.p95,
                }
            return described

    def sample(
        self, prompts: Iterable[Prompt], samples: int, seeds: Iterable[int]
    ) -> Iterator[list[list[Reaction]]]:
        """Groups of reactions, a batch of prompts at a time, in the order the engines finish.

        Args:
            prompts: pulled only when an engine has room, so there may be more than memory holds.
            samples: of a group.
            seeds: one for each prompt.
        """
        for _, groups in self._answers(prompts, samples, seeds):
            yield groups

    def groups(
        self, prompts: Sequence[Prompt], samples: int, seeds: Sequence[int]
    ) -> list[list[Reaction]]:
        """A group for each prompt, in their order, whoever finishes first."""
        answers = sorted(self._answers(prompts, samples, seeds), key=lambda answer: answer[0])
        return [group for _, groups in answers for group in groups]

    def _answers(
        self, prompts: Iterable[Prompt], samples: int, seeds: Iterable[int]
    ) -> Iterator[tuple[int, list[list[Reaction]]]]:
        requests = _requests(prompts, samples, seeds, size=self.config.batch_prompts)
        for request, groups in self.answers(requests):
            yield request.number, groups

    def answers(
        self, requests: Iterable[Request]
    ) -> Iterator[tuple[Request, list[list[Reaction]]]]:
        """Each request with a group for each of its prompts, in the order the engines finish.

        Args:
            requests: pulled only when an engine has room.
        """
        for request, groups in self.stream("sample", requests):
            reactions = [reaction for group in groups for reaction in group]
            actions = sum(_count(reaction) for reaction in reactions)
            telemetry.record(telemetry.TOKENS, actions, pool=self.name)
            stale = [r.prompt_id for r in reactions if r.weight_version != self.version]
            if stale:
                raise StaleWeightsError(
                    f"{len(stale)} reactions of another weight version than {self.version}, "
                    f"first of {stale[0]}"
                )
            yield request, groups

    def update(self, weights: Mapping[str, Tensor], policy: Policy | None = None) -> float:
        """Give every engine these weights, check digest and canary; returns the log-prob gap.

        Args:
            weights: as `Policy.weights` gives them.
            policy: holds them; for the canary.
        """
        plain = {name: tensor.detach().cpu() for name, tensor in weights.items()}
        self.version += 1
        self._policy = policy
        self._weights = ray.put(plain)
        self._digest = weight_digest(plain)
        telemetry.record(telemetry.WEIGHT_VERSION_LAG, 1, pool=self.name)
        for digest in self.each("update", self._weights, self.version):
            self._check_digest(digest)
        gap = 0.0 if self._canary is None else self._check_canary().largest
        telemetry.record(telemetry.WEIGHT_VERSION_LAG, 0, pool=self.name)
        return gap

    def boot(self, actor: Any) -> ray.ObjectRef:
        """A replacement catches up before it serves."""
        return actor.adopt.remote(self._weights, self.version, self._question)

    def admit(self, answer: tuple[str | None, int, Reaction | None]) -> bool:
        """Whether it holds the current weights; they may have changed while it started."""
        digest, version, reaction = answer
        if version != self.version:
            return False
        self._check_digest(digest)
        if reaction is not None:
            self._check_gap(reaction)
        return True

    @property
    def _question(self) -> Request | None:
        if self._canary is None:
            return None
        return Request(
            number=0,
            prompts=[self._canary.prompt],
            seeds=[0],
            samples=1,
            actions=self._canary.actions,
        )

    def _check_canary(self) -> Gap:
        """The worst engine's."""
        answers = self.each("sample", self._question)
        return max(self._check_gap(groups[0][0]) for groups in answers)

    def _check_digest(self, digest: str | None) -> None:
        if digest != self._digest:
            raise StaleWeightsError(
                f"weights changed on the way to an engine: digest {digest}, not {self._digest}"
            )

    def _check_gap(self, reaction: Reaction) -> Gap:
        if self._canary is None or self._policy is None:
            raise ValueError("a canary is checked against the policy whose weights engines hold")
        gaps = self._policy.log_prob_gaps(self._canary.prompt, reaction)
        gap = Gap(float(gaps.max()), float(gaps.mean()), p95=float(np.quantile(gaps, 0.95)))
        telemetry.record(telemetry.LOG_PROB_GAP, gap.largest, pool=self.name)
        tolerance = self._canary.tolerance
        if not gap.largest <= tolerance:
            raise StaleWeightsError(
                f"canary: engine and learner disagree by {gap.largest:.3g} nats on a fixed prompt "
                f"(mean {gap.mean:.3g}, 95 % {gap.p95:.3g}; "
                f"rollout.canary_tolerance={tolerance:g}); the engines do not hold version "
                f"{self.version}, or their dtype rounds its log-probs so much"
            )
        return gap


def _requests(
    prompts: Iterable[Prompt], samples: int, seeds: Iterable[int], size: int
) -> Iterator[Request]:
    batch: list[Prompt] = []
    batch_seeds: list[int] = []
    number = 0
    for prompt, seed in zip(prompts, seeds, strict=True):
        batch.append(prompt)
        batch_seeds.append(seed)
        if len(batch) == size:
            yield Request(number, batch, batch_seeds, samples=samples)
            number += 1
            batch = []
            batch_seeds = []
    if batch:
        yield Request(number, batch, batch_seeds, samples=samples)


def _count(reaction: Reaction) -> int:
    """Actions of a reaction: tokens, or latents."""
    return len(reaction.actions)
