"""Rollouts that overlap learning, one iteration ahead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class OneAhead(Generic[T]):
    """Hands out what was begun an iteration before, and begins the next.

    Staleness is bounded: what is handed out was sampled with the weights of the iteration before,
    never older ones; the first time, and after a restart, with the present ones."""

    def __init__(self) -> None:
        self._thread, self._next = ThreadPoolExecutor(1), None

    def take(self, work: Callable[..., T], state: dict, step: int, following: int | None) -> T:
        """`work(state, step)`, which may have been begun with the state before; begins `work(state,
        following)`.

        Args:
            following: the next step it will be asked for, None after the last.
        """
        begun: Future[T] | None = self._next
        found = work(state, step) if begun is None else begun.result()
        self._next = None if following is None else self._thread.submit(work, state, following)
        return found
