"""Actors ask the driver for what only it has.

The trials of a sweep run in their own processes, and the driver has the one fleet they are all
judged with.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray


def open_mailbox() -> Any:
    """A mailbox in a process of its own; its calls are asked as `mailbox.ask.remote(...)`."""
    return ray.remote(num_cpus=0)(Mailbox).remote()


class Mailbox:
    """Requests, which the driver takes one at a time, and its replies."""

    def __init__(self) -> None:
        self._requests: asyncio.Queue[tuple[asyncio.Future[Any], Any]] = asyncio.Queue()
        self._taken: asyncio.Future[Any]

    async def ask(self, request: Any) -> Any:
        """The driver's reply; raises what the driver raised."""
        reply = asyncio.get_running_loop().create_future()
        await self._requests.put((reply, request))
        return await reply

    async def take(self, wait_s: float) -> list[Any]:
        """The next request, or nothing within `wait_s`; reply to it before taking another."""
        try:
            self._taken, request = await asyncio.wait_for(self._requests.get(), wait_s)
        except TimeoutError:
            return []
        return [request]

    async def until_gone(self) -> None:
        """Fails once there is no mailbox any more; it has no other end."""
        await asyncio.get_running_loop().create_future()

    async def reply(self, answer: Any = None, error: Exception | None = None) -> None:
        """Answer the request that was taken last, or raise `error` where it was asked."""
        if error is not None:
            self._taken.set_exception(error)
        elif not self._taken.cancelled():
            self._taken.set_result(answer)
