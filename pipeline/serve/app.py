"""The application of a replica: pages, REST, and the socket of live sessions (docs/serve.md)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from rapport.log import logger
from rapport.pipeline.serve import wire
from rapport.pipeline.serve.asyncapi import asyncapi
from rapport.pipeline.serve.doors import (
    BACKLOG_S,
    REFUSALS,
    Refused,
    address,
    guard,
    misunderstood,
    pace_of_bytes,
    pace_of_sound,
    refused,
)
from rapport.pipeline.serve.generations import router
from rapport.pipeline.serve.record import Recorder
from rapport.pipeline.serve.server import Server, as_prometheus
from rapport.pipeline.serve.session import Session, SessionRequest, Terms
from rapport.pipeline.serve.settings import MOVE_S, PAGE
from rapport.pipeline.serve.wire import WireError
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.head import gltf
from rapport.policies.head.arkit import arkit_layout
from rapport.policies.motion import Motion

TICK_S = 0.02
STATS_S = 5.0
BYTES_PER_S = 2 * 2 * AUDIO_RATE + 250_000  # two voices, and pictures or motion
MESSAGE_BYTES = 1024  # that a message counts as at least, as it takes time, too
MOST_WAITING = 1024  # messages to a client that reads none
REASON_BYTES = 123  # for which a frame that closes has room
CLOSE_S = 5.0  # in which a client reads the end of its session


class SocketChannel:
    """The way to a client over its socket; messages go out in the order in which they came.

    Args:
        socket: accepted.
        texts_only: whether the client reads texts only.
    """

    def __init__(self, socket: WebSocket, texts_only: bool) -> None:
        self.texts_only = texts_only
        self.stuck = False  # more waits than anybody leaves unread who is still there
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._out: asyncio.Queue[str | bytes | tuple[int, str]] = asyncio.Queue(MOST_WAITING)

    def send(self, message: str | bytes) -> None:
        """Queued."""
        self._put(message)

    def close(self, code: int, reason: str) -> None:
        """After all that is queued; a long reason is cut."""
        self._put((code, reason.encode()[:REASON_BYTES].decode(errors="ignore")))

    def _put(self, item: str | bytes | tuple[int, str]) -> None:
        with contextlib.suppress(RuntimeError):  # the server ends
            self._loop.call_soon_threadsafe(self._add, item)

    def _add(self, item: str | bytes | tuple[int, str]) -> None:
        try:
            self._out.put_nowait(item)
        except asyncio.QueueFull:
            self.stuck = True

    async def deliver(self) -> None:
        """Send what is queued until the socket is closed."""
        while True:
            match await self._out.get():
                case str(text):
                    await self._socket.send_text(text)
                case bytes(message):
                    await self._socket.send_bytes(message)
                case (code, reason):
                    await self._socket.close(code, reason)
                    return


def application(server: Server) -> FastAPI:
    """All that a replica answers."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        server.generations.start()
        yield
        server.close()

    shown = functools.cache(functools.partial(_head_of, server))
    app = FastAPI(title="Rapport", lifespan=life, docs_url=None, redoc_url=None, responses=REFUSALS)
    guard(app, server.rules)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, misunderstood)
    app.include_router(router(server.generations))

    @app.get("/v1/policies")
    def policies() -> dict[str, Any]:
        """What can be talked to."""
        listed = [
            {
                "name": voice.name,
                "kind": voice.policy.kind,
                "reads": list(voice.policy.reads),
                "camera": server.camera(voice),
                "takes_text": voice.policy.takes_text,
                "arkit": voice.rig is not None,
                "simulated": voice.simulated,
                "sessions": voice.sessions,
            }
            for voice in server.voices.values()
        ]
        return {"policies": listed, "demo": server.config.demo}

    @app.post("/v1/sessions", status_code=201)
    def sessions(asked: SessionRequest, request: Request) -> dict[str, Any]:
        """A ticket for a socket."""
        voice = server.check(asked)
        server.seats.require(address(request.scope))
        server.require_room(voice)
        # By name: replicas may have another first policy while they load others.
        reserved = server.reserved(asked.model_copy(update={"policy": voice.name}))
        scheme = "wss" if request.url.scheme == "https" else "ws"
        layout = voice.policy.layout
        return {
            "id": reserved.id,
            "ticket": server.tickets.issue(reserved),
            "expires_s": server.tickets.lasts_s,
            "url": f"{scheme}://{request.headers['host']}/v1/live",
            "policy": voice.name,
            "seed": asked.seed,
            "rate": AUDIO_RATE,
            "chunk_samples": voice.listener.chunk * AUDIO_RATE,
            "fps": layout.fps,
            "layout": json.loads(layout.to_json()),
            "delay_s": voice.delay[asked.lead],
            "memory_s": voice.listener.memory,
            "recorded": server.config.record is not None,
            "simulated": voice.simulated,
        }

    @app.websocket("/v1/live")
    async def live(socket: WebSocket) -> None:
        """A live session."""
        await _live(server, socket)

    @app.post("/v1/demo/kill", status_code=202)
    async def kill() -> dict[str, str]:
        """This replica ends at once, as if its machine were lost: to see sessions go on."""
        if not server.config.demo:
            raise Refused(404, "demo", "serve.demo=true allows this")
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGKILL)
        return {"replica": "ends"}

    @app.get("/healthz")
    def healthz() -> JSONResponse:
        """Whether the process lives and its engine steps."""
        return _judged(server.require_alive)

    @app.get("/readyz")
    def readyz() -> JSONResponse:
        """Whether every policy answers as at its start."""
        return _judged(server.require_ready)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        """Numbers of this replica, for Prometheus."""
        return as_prometheus(server.status())

    @app.get("/asyncapi.json")
    def described() -> dict[str, Any]:
        """The socket, for machines."""
        return asyncapi()

    @app.get(
        "/head.glb",
        response_class=Response,
        responses={200: {"content": {"model/gltf-binary": {}}}},
    )
    def head() -> Response:
        """The head that the page shows."""
        return Response(shown(), media_type="model/gltf-binary")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _judged(require: Any) -> JSONResponse:
    try:
        require()
    except RuntimeError as error:
        return JSONResponse({"ok": False, "why": str(error)}, 503)
    return JSONResponse({"ok": True})


def _head_of(server: Server) -> bytes:
    """The head as a glTF file, at rest."""
    layout = replace(arkit_layout(1), groups=(("rot", 3),), topology=server.head.topology)
    with TemporaryDirectory(prefix="rapport-head-") as folder:
        path = Path(folder) / "head.glb"
        gltf.write_glb(path, Motion(np.zeros((1, layout.dim), np.float32), layout), server.head)
        return path.read_bytes()


# -- The socket --


async def _live(server: Server, socket: WebSocket) -> None:
    """From the ticket to the end of a session."""
    protocols = socket.scope.get("subprotocols", [])
    ticket = next((name for name in protocols if name.startswith(wire.TICKET)), wire.TICKET)
    spoken = next((p for p in (wire.PROTOCOL, wire.PROTOCOL_OF_TEXTS) if p in protocols), None)
    try:
        if spoken is None:
            raise Refused(400, "protocol", f"subprotocols: {wire.PROTOCOL}, {wire.TICKET}TICKET")
        reserved = server.tickets.open(ticket.removeprefix(wire.TICKET))
        asked = reserved.request
        voice = server.check(asked)
        limits = server.config.limits
        with server.seats.taken(address(socket.scope)):
            with server.place(voice):
                await socket.accept(spoken)
            channel = SocketChannel(socket, spoken == wire.PROTOCOL_OF_TEXTS)
            session = Session(
                server.name_of(reserved),
                asked,
                voice,
                server.engine,
                channel,
                Terms(
                    pace_of_sound(AUDIO_RATE, limits.pace, goes_on=asked.number > 0),
                    grace=server.config.grace_s,
                    wait=server.wait(voice),
                ),
                server.eyes_for(voice),
            )
            server.opened(session)
            try:
                await _talk(server, session, channel, socket)
            finally:
                server.closed(session)
    except Refused as refused:
        await socket.send_denial_response(refused.response())


async def _talk(
    server: Server, session: Session, channel: SocketChannel, socket: WebSocket
) -> None:
    """A session until one side closes."""
    logger.info(f"session {session.name}: {session.voice.name}, from {session.request.number} on")
    recorder = Recorder.of(server.config.record, session)
    tasks = [
        asyncio.create_task(channel.deliver()),
        asyncio.create_task(_listen(server, session, channel, socket)),
        asyncio.create_task(_keep_time(server, session, channel)),
    ]
    try:
        # `deliver` ends with the socket, the others when the client is gone, or reads nothing.
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            await _account_for(ended, session, socket)
        if recorder is not None:
            await asyncio.to_thread(recorder.write)
        logger.info(
            f"session {session.name}: ended, {session.late} late, {session.dropped} dropped"
        )


async def _account_for(ended: BaseException | None, session: Session, socket: WebSocket) -> None:
    """How a task of a session ended: what was not to be expected is logged, and ends the socket."""
    if ended is None or isinstance(ended, (asyncio.CancelledError, WebSocketDisconnect)):
        return
    logger.error(f"session {session.name} failed", exc_info=ended)
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it is closed already
        await socket.close(wire.FAILED, "the server failed")


async def _listen(
    server: Server, session: Session, channel: SocketChannel, socket: WebSocket
) -> None:
    """What the client sends; returns when it is gone."""
    goes_on = session.request.number > 0
    pace = pace_of_bytes(
        BYTES_PER_S * server.config.limits.pace,
        told_s=session.voice.listener.memory + BACKLOG_S if goes_on else None,
    )
    while True:
        received = await socket.receive()
        if received["type"] == "websocket.disconnect":
            return
        message = received.get("bytes")
        if message is None:
            message = received.get("text") or ""
        if session.ended:
            continue  # what comes after the end is read, so that nothing piles up
        try:
            if not pace.take(max(len(message), MESSAGE_BYTES)):
                raise WireError("too much is sent", "pace", close=wire.FORBIDDEN)
            session.hear(message)
        except WireError as error:
            text = wire.Error(code=error.code, field=error.field, message=str(error))
            channel.send(text.model_dump_json())
            session.leave()
            channel.close(error.close, str(error))


async def _keep_time(server: Server, session: Session, channel: SocketChannel) -> None:
    """Silence where sound is late, how the session fares, its longest time, and the move.

    Returns where the client reads nothing of what it is sent, not even the end.
    """
    told = server.engine.clock()
    began = told - session.voice.border(session.request.number) / AUDIO_RATE  # elsewhere, perhaps
    moved: float | None = None
    ended: float | None = None
    while not channel.stuck:
        await asyncio.sleep(TICK_S)
        now = server.engine.clock()
        if session.ended:
            ended = ended or now
            if now - ended > CLOSE_S:
                return
            continue
        session.tick()
        if now - told > STATS_S:
            told = now
            session.fares(len(server.sessions))
        if now - began > 60 * server.config.limits.minutes:
            session.leave()
            channel.close(wire.FORBIDDEN, f"{server.config.limits.minutes:g} minutes are over")
        if server.leaving and moved is None:
            moved = now
            session.move()
        if moved is not None and now - moved > MOVE_S:
            session.leave()
            channel.close(wire.MOVED, "this replica goes away")
