"""Actors that ask the driver for something only it has: the fleet that all trials of a sweep are
judged with.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray


@ray.remote(num_cpus=0)
class Mailbox:
    """Requests, which the driver takes one at a time, and its replies."""

    def __init__(self):
        self._requests: asyncio.Queue[tuple[asyncio.Future, Any]] = asyncio.Queue()
        self._taken: asyncio.Future | None = None

    async def ask(self, request: Any) -> Any:
        """The driver's reply; raises what the driver raised."""
        reply = asyncio.get_running_loop().create_future()
        await self._requests.put((reply, request))
        return await reply

    async def take(self, wait_s: float) -> list[Any]:
        """The next request, or nothing within `wait_s`; to be replied to before the next is taken."""
        try:
            self._taken, request = await asyncio.wait_for(self._requests.get(), wait_s)
        except TimeoutError:
            return []
        return [request]

    async def reply(self, answer: Any = None, error: Exception | None = None) -> None:
        if error is not None:
            self._taken.set_exception(error)
        elif not self._taken.cancelled():
            self._taken.set_result(answer)
