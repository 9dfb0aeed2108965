"""A pool of equal actors that work through a stream with back-pressure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import ray

from actors.cluster import ClusterError

Item = TypeVar("Item")


def stream(
    actors: list[Any], method: str, items: Iterable[Item], in_flight: int, timeout_s: float
) -> Iterator[tuple[Item, Any]]:
    """Yield `(item, actor.method(item))` as the answers come, at most `in_flight` calls waiting per actor.

    Items are pulled only when an actor has room, so the source may be longer than memory.

    Raises:
        ClusterError: no answer came for `timeout_s`.
        Exception: the first one any actor raised, as it is.
    """
    source = iter(items)
    free = deque(actor for _ in range(in_flight) for actor in actors)
    running: dict[ray.ObjectRef, tuple[Any, Item]] = {}
    exhausted = False
    while True:
        while free and not exhausted:
            try:
                item = next(source)
            except StopIteration:
                exhausted = True
                break
            actor = free.popleft()
            running[getattr(actor, method).remote(item)] = (actor, item)
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1, timeout=timeout_s)
        if not done:
            raise ClusterError(
                f"{method}: no answer from {len(actors)} actors for {timeout_s:g} s, {len(running)} calls open"
            )
        actor, item = running.pop(done[0])
        result = ray.get(done[0])
        free.append(actor)
        yield item, result
