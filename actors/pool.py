"""A pool of equal actors that works through a stream with back-pressure.

It outlives the loss of some of them.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from rapport.actors import telemetry, timeline
from rapport.actors.cluster import ClusterError
from rapport.log import logger

Item = TypeVar("Item")
# The actor's process or node is gone, or its answer with it.
LOST = (RayActorError, ObjectLostError)


class Pool:
    """N actors, each a `timeline.Worker`; a context manager that ends them.

    The open calls of a lost actor are given to those that are free, and another actor starts in
    its place; answers that have come are not asked for again. So every item of a stream is answered
    once, whichever actor dies.

    Args:
        name: for messages, e.g. "rollout fleet".
        kind: of work, on the timeline.
        start: makes actor number i; called again when it is lost.
        workers: how many actors.
        in_flight: open calls per actor.
        timeout_s: longest time without any answer.
        losses: lost actors that are replaced; one more ends the run, as something must be killing
            them.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        start: Callable[[int], Any],
        workers: int,
        in_flight: int,
        timeout_s: float,
        losses: int,
    ):
        self.name = name
        self.kind = kind
        self.in_flight = in_flight
        self.timeout_s = timeout_s
        self.losses = losses
        self.lost = 0
        self._start = start
        self._actors = [start(i) for i in range(workers)]
        self._serving = set(range(workers))
        self._booting: dict[ray.ObjectRef, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def boot(self, actor: Any) -> ray.ObjectRef:
        """The call after whose answer a replacement may serve: it lives.

        Where a node was lost there may be no room for it, and work that it is given would wait.
        """
        return actor.__ray_ready__.remote()

    def admit(self, answer: Any) -> bool:
        """Whether a replacement may serve after this answer to its boot; False = boot again."""
        return True

    def stream(self, method: str, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
        """Yield `(item, actor.method(item))` as the answers come.

        Items are pulled only when an actor has room, so the source may be longer than memory.

        Raises:
            ClusterError: no answer came for `timeout_s`, or too many actors were lost.
            Exception: the first one that any actor raised, as it is.
        """
        source = iter(items)
        waiting: deque[Item] = deque()  # the items of lost actors, before new ones of the source
        running: dict[ray.ObjectRef, tuple[int, Any, Item]] = {}
        while True:
            ended = False
            while (index := self._idlest(running)) is not None:
                if not waiting:
                    waiting.extend(itertools.islice(source, 1))
                if not waiting:
                    ended = True
                    break
                item = waiting.popleft()
                actor = self._actors[index]
                running[actor.timed.remote(method, item)] = (index, actor, item)
            telemetry.record(telemetry.QUEUE_DEPTH, len(running), pool=self.name)
            if ended and not running:
                return
            done, _ = ray.wait([*running, *self._booting], num_returns=1, timeout=self.timeout_s)
            if not done:
                raise ClusterError(
                    f"{self.name}: {method}: no answer from {len(self._actors)} actors for "
                    f"{self.timeout_s:g} s, {len(running)} calls open"
                )
            if done[0] in self._booting:
                self._finish_boot(done[0])
                continue
            index, actor, item = running.pop(done[0])
            try:
                result = self._answer(method, done[0])
            except LOST as error:
                waiting.append(item)
                self._replace(index, actor, error)
                continue
            yield item, result

    def each(self, method: str, *arguments: Any, timeout_s: float | None = None) -> list[Any]:
        """The answers of all serving actors, without those of actors that are lost meanwhile.

        Raises:
            ClusterError: an answer is missing after `timeout_s`, or all actors were lost.
            Exception: the first one that any actor raised, as it is.
        """
        timeout_s = timeout_s or self.timeout_s
        deadline = time.monotonic() + timeout_s
        answers: list[Any] = []
        running = self._asked(method, *arguments)
        asked = len(running)
        # Where none is left, the first that starts in another's place is asked.
        while running or (self._booting and not answers):
            left_s = max(0.0, deadline - time.monotonic())
            waited_for = list(running or self._booting)
            done, _ = ray.wait(waited_for, num_returns=1, timeout=left_s)
            if not done:
                raise ClusterError(
                    f"{self.name}: {method}: {len(waited_for)} of {asked} answers missing after "
                    f"{timeout_s:g} s"
                )
            if done[0] in self._booting:
                self._finish_boot(done[0])
                running = self._asked(method, *arguments)
                continue
            index, actor = running.pop(done[0])
            try:
                answers.append(self._answer(method, done[0]))
            except LOST as error:
                self._replace(index, actor, error)
        if not answers:
            raise ClusterError(f"{self.name}: {method}: no worker was left to answer")
        return answers

    def _asked(self, method: str, *arguments: Any) -> dict[ray.ObjectRef, tuple[int, Any]]:
        return {
            self._actors[i].timed.remote(method, *arguments): (i, self._actors[i])
            for i in self._serving
        }

    def _answer(self, method: str, reference: ray.ObjectRef) -> Any:
        try:
            answer, began, ended = ray.get(reference)
        except RayTaskError as error:
            raise error.cause from error  # what was said there, without Ray's account of it
        timeline.note(self.kind, began, ended)
        telemetry.record(telemetry.CALL_SECONDS, ended - began, kind=self.kind, method=method)
        return answer

    def _idlest(self, running: dict[ray.ObjectRef, tuple[int, Any, Any]]) -> int | None:
        """The serving actor with the fewest open calls, if it has room."""
        # Calls of an actor that was lost meanwhile do not count for the one in its place.
        calls = Counter(
            index for index, actor, _ in running.values() if self._actors[index] is actor
        )
        index = min(self._serving, key=lambda i: (calls[i], i), default=None)
        return index if index is not None and calls[index] < self.in_flight else None

    def _replace(self, index: int, actor: Any, error: Exception) -> None:
        if self._actors[index] is not actor:
            return  # another failed call already replaced this actor
        if getattr(error, "actor_init_failed", False):
            raise error  # it never started, and says why
        self.lost += 1
        telemetry.record(telemetry.LOST_WORKERS, 1, pool=self.name)
        if self.lost > self.losses:
            raise ClusterError(
                f"{self.name}: {self.lost} workers were lost, more than "
                f"cluster.lost_workers={self.losses}; out of memory, perhaps. "
                f"The last one: {error}"
            ) from error
        logger.warning(
            f"[{self.name}] worker {index} was lost; the others do its work, another starts in "
            "its place"
        )
        ray.kill(actor)  # it may live on where only the connection was lost
        self._serving.discard(index)
        self._actors[index] = self._start(index)
        self._boot(index)

    def _boot(self, index: int) -> None:
        self._booting[self.boot(self._actors[index])] = index

    def _finish_boot(self, reference: ray.ObjectRef) -> None:
        index = self._booting.pop(reference)
        try:
            answer = ray.get(reference)
        except LOST as error:
            self._replace(index, self._actors[index], error)
            return
        if self.admit(answer):
            self._serving.add(index)
        else:
            self._boot(index)
