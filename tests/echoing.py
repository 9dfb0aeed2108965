"""A small real server of live sessions, over real sockets, whose listener is worked out by hand.

What it does for chunk n is the sum of the means of the last `MEMORY` chunks: whoever goes on with a
session gets the same only if they say again what was said, and what was done.
"""

import asyncio
import threading
from contextlib import contextmanager, suppress

import numpy as np
import uvicorn
from fastapi import FastAPI, Header, Request, Response, WebSocket, WebSocketDisconnect

from rapport.pipeline.serve import wire
from rapport.pipeline.serve.wire import Kind, Part
from rapport.policies.motion import Layout

RATE = 16000
SAMPLES = 2560  # of a chunk: .16 s, four frames
FRAMES = 4
MEMORY = 4  # chunks
LAYOUT = Layout((("expr", 3), ("jaw", 3)), 25.0, "builtin")
ARKIT = np.linspace(0.0, 0.6, 61, dtype=np.float32)  # at 1


def done(means, number):
    """What the listener does for a chunk."""
    return np.float32(sum(means[max(number - MEMORY + 1, 0) : number + 1]))


class Echo:
    """A server.

    Args:
        script: (session, chunk) -> what happens in place of an answer: "cut", "move", "late",
            "drop", "late and dropped", "it failed", or another text = an error, after which the
            session is closed.
        busy: how many requests are refused at first.
        status: by which they are.
        token: that is wanted.
        sees: whether it reads a face in chunks of even numbers.

    Attributes:
        asked: the requests for sessions.
        said: what each session was told, parts and texts, in order.
    """

    def __init__(self, script=None, busy=0, token=None, sees=False, status=503):
        self.script = script or {}
        self.sees = sees
        self.busy = busy
        self.status = status
        self.token = token
        self.asked = []
        self.said = []
        self.app = FastAPI()
        self.app.post("/v1/sessions")(self.open)
        self.app.websocket("/v1/live")(self.live)
        self.connections = set()

    async def open(self, request: Request, authorization: str = Header("")):
        if self.token and authorization != f"Bearer {self.token}":
            return Response('{"detail": "no such token"}', 401)
        if self.busy:
            self.busy -= 1
            return Response('{"detail": "all is taken"}', self.status, {"Retry-After": "0.1"})
        self.asked.append(await request.json())
        self.said.append([])
        return {
            "id": "x",
            "ticket": str(len(self.asked) - 1),
            "expires_s": 60,
            "url": f"ws://127.0.0.1:{self.proxied}/v1/live",
            "policy": "echo",
            "seed": self.asked[-1].get("seed", 7),
            "rate": RATE,
            "chunk_samples": SAMPLES,
            "fps": LAYOUT.fps,
            "layout": {"groups": LAYOUT.groups, "fps": LAYOUT.fps, "topology": LAYOUT.topology},
            "delay_s": 0.16,
            "memory_s": MEMORY * SAMPLES / RATE,
            "recorded": False,
            "simulated": True,
        }

    async def live(self, socket: WebSocket):
        protocol, ticket = socket.scope["subprotocols"]
        assert protocol == wire.PROTOCOL and ticket.startswith(wire.TICKET)
        session = int(ticket.removeprefix(wire.TICKET))
        number = self.asked[session]["number"]
        await socket.accept(subprotocol=wire.PROTOCOL)
        await socket.send_text(wire.Ping(id=5).model_dump_json())
        ready = wire.Ready(id="x", number=number, wait_s=0.05)
        await socket.send_text(ready.model_dump_json())
        with suppress(WebSocketDisconnect, RuntimeError):
            await self.listen(socket, session, number)

    async def listen(self, socket, session, number):
        said = self.said[session]
        means = [0.0] * number  # of all chunks
        dropped = []
        went = 0
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") is not None:
                said.append(wire.said(message["text"]))
                if isinstance(said[-1], wire.Went):
                    went = said[-1].chunks
                if isinstance(said[-1], wire.End):
                    await socket.send_bytes(wire.packed(self.shown(means, number)))
                    await socket.close(wire.ENDED)
                    return
                continue
            parts = wire.unpacked(message["bytes"])
            said.append(parts)
            sound = next((part for part in parts if part.kind is Kind.SOUND), None)
            if sound is None:
                continue
            mean = float(np.frombuffer(sound.payload, "<i2").mean() / 32768)
            if went:
                means[number - went] = mean
                went -= 1
                continue
            assert sound.sample == number * SAMPLES
            means.append(mean)
            happens = self.script.get((session, number))
            flags = 0
            if happens == "cut":
                self.cut()
                return
            elif happens == "move":
                await socket.send_text(wire.Move().model_dump_json())
                await asyncio.sleep(0.2)
                return
            elif happens in ("late", "late and dropped"):
                means[-1] = 0.0
                flags = wire.LATE
            elif happens not in (None, "drop"):
                error = wire.Error(code="bad", message=happens)
                await socket.send_text(error.model_dump_json())
                await socket.close(wire.FAILED if happens == "it failed" else wire.FORBIDDEN)
                return
            act = np.array([done(means, number)], "<f4").tobytes()
            dropped.append(Part(Kind.ACT, number * SAMPLES, act, flags))
            if self.sees and number % 2 == 0:
                dropped.append(Part(Kind.SEEN, number * SAMPLES, f"face{number}".encode()))
            if happens not in ("drop", "late and dropped"):
                flags |= wire.DROPPED if len(dropped) > 1 else 0
                parts = [*self.shown(means, number, flags), *dropped]
                await socket.send_bytes(wire.packed(parts))
                dropped = []
            number += 1

    def shown(self, means, number, flags=0):
        """The frames of the chunk before, which are settled one chunk later."""
        values = np.full((FRAMES if number else 0, LAYOUT.dim), done(means, number - 1), "<f4")
        first = max(number - 1, 0) * SAMPLES
        arkit = values[:, :1] * ARKIT.astype("<f4")
        return [
            Part(Kind.SHOWN, first, values.tobytes(), flags),
            Part(Kind.ARKIT, first, arkit.tobytes(), flags),
        ]

    def cut(self):
        """Every connection is lost, without a word."""
        for writer in self.connections:
            writer.transport.abort()

    async def _pass(self, reader, writer):
        """A connection between a client and the server that can be cut."""
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self.connections |= {writer, back}

        async def copy(source, target):
            with suppress(OSError):
                while data := await source.read(1 << 16):
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(copy(reader, back), copy(there, writer))
        self.connections -= {writer, back}

    async def _run(self, started):
        config = uvicorn.Config(self.app, port=0, log_level="critical", lifespan="off")
        self.server = uvicorn.Server(config)
        serving = asyncio.create_task(self.server.serve())
        while not self.server.started:
            await asyncio.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        async with await asyncio.start_server(self._pass, "127.0.0.1", 0) as proxy:
            self.proxied = proxy.sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{self.port}"
            started.set()
            await serving
            self.cut()

    @contextmanager
    def serving(self):
        """The server runs, in a thread."""
        started = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._run(started)))
        thread.start()
        try:
            assert started.wait(30)
            yield self
        finally:
            self.server.should_exit = self.server.force_exit = True
            thread.join(30)
