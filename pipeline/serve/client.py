"""A client of live sessions (docs/serve.md): says chunks, gets what the listener does.

    async with Client("http://127.0.0.1:8000") as client:
        chunks = recording.chunks(client.session.chunk_s, ["speaker_audio"])
        async for answer in client.converse(in_real_time(chunks, client)):
            show(answer.motion)

A client that loses its session, or is told to move, goes on with another one by itself: its answers
come without a gap, and later.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import httpx
import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from rapport.pipeline.serve import wire
from rapport.pipeline.serve.wire import Kind, Part, WireError
from rapport.policies.head.livelink import CHANNELS
from rapport.policies.live import Chunk
from rapport.policies.motion import Layout, LayoutError, Motion

REPLY_S = 10  # in which a server answers a request, a handshake, and says that a session is ready
SILENT_S = 15  # after so long without a message a connection is lost; servers ping every 5 s
ACK_S = 0.5
FIRST_PAUSE_S = 0.1  # before another try; each next one is twice as long
LONGEST_PAUSE_S = 2.0
QUALITY = 90  # of JPEG
_LATER = (429, 502, 503, 504)  # answers after which another try may do
# Whoever tries again after these meets the same.
_FINAL = {1002, wire.MISUNDERSTOOD, wire.FORBIDDEN, wire.TOO_LARGE}


class ClientError(RuntimeError):
    """A session cannot be had, or cannot go on; the message says why."""


class _LostError(Exception):
    """A session, or a try to open one, failed in a way that another try may not.

    Args:
        why: it failed.
        pause_s: that the server asks to wait; None = it does not say.
    """

    def __init__(self, why: str, pause_s: float | None = None) -> None:
        super().__init__(why)
        self.pause_s = pause_s


@dataclass(frozen=True)
class Wanted:
    """What a session is asked for; None leaves it to the server.

    Args:
        policy: that listens.
        seed: of its noise.
        text: what it is told to be like.
        lead: frames of a latent that AR-Flow hears before it moves.
        outputs: "motion" and "arkit". What the policy did ("act") always comes, to go on with.
    """

    policy: str | None = None
    seed: int | None = None
    text: str | None = None
    lead: int | None = None
    outputs: tuple[str, ...] = ("motion", "arkit")


class Session(BaseModel):
    """What a server says of a session that it opened; fields as in docs/serve.md."""

    model_config = ConfigDict(frozen=True)

    id: str
    ticket: str
    url: str
    policy: str
    seed: int
    rate: int
    chunk_samples: float
    fps: float
    layout: dict[str, Any]
    delay_s: float
    memory_s: float
    recorded: bool
    simulated: bool

    @property
    def chunk_s(self) -> float:
        """Seconds of a chunk."""
        return self.chunk_samples / self.rate

    def border(self, chunk: int) -> int:
        """Number of the first sample of a chunk."""
        return round(chunk * self.chunk_samples)

    def chunk_at(self, border: int) -> int:
        """Number of the chunk that begins with a sample."""
        return round(border / self.chunk_samples)

    @property
    def remembered(self) -> int:
        """Chunks of the past that still matter."""
        return math.ceil(self.memory_s / self.chunk_s)


@dataclass(frozen=True, eq=False)
class Answer:
    """What the listener does, as far as it is settled by a chunk.

    Args:
        chunk: number of the chunk that is answered; None of what remained at the end.
        sample: where the first frame belongs, in samples from the beginning; frames may be none.
        motion: None where it was not asked for.
        arkit: (frames, 61) weights and radians in the order of `livelink.CHANNELS`; None where it
            was not asked for.
        act: what the policy did, as it came: float32 latents or int32 tokens; empty at the end.
        late: silence was heard in place of this chunk, which came late.
        dropped: answers before this one were dropped, as this client acknowledged too little.
        after_s: seconds from the sending of the chunk to its answer; NaN where it was not sent.
    """

    chunk: int | None
    sample: int
    motion: Motion | None
    arkit: np.ndarray | None
    act: bytes
    late: bool
    dropped: bool
    after_s: float


@dataclass(eq=False)
class _Said:
    """A chunk that was said.

    Args:
        parts: its sound, after what else there is of it.
        told: the text that the listener was told just before it, in a tuple; None = nothing new.
        sent: when, seconds of the event loop.
    """

    parts: list[Part]
    told: tuple[str | None] | None = None
    sent: float = math.nan


class Client:
    """A live session, and those that follow where it is lost.

    Args:
        server: URL of the server, such as http://127.0.0.1:8000.
        wanted: what is asked for.
        token: that the server wants to see; None = none.
        patience_s: for how long a session is tried to be opened, or opened again. Servers take a
            minute of sound that was not answered meanwhile.

    Attributes:
        session: the present one.
        name: of it, as in the server's log; the replica's begins it.
        sessions: how many were opened.
        begins: when sample 0 is to be recorded, seconds of the event loop.
        shown: the newest sample that was taken by whoever iterates over the answers. Servers are
            told of it twice a second, and drop answers that are shown two seconds late.
        stats: what the server said last of how the session fares.
    """

    session: Session
    name: str

    def __init__(
        self,
        server: str,
        wanted: Wanted | None = None,
        *,
        token: str | None = None,
        patience_s: float = 30.0,
    ) -> None:
        self.sessions = 0
        self.begins = math.nan
        self.shown = 0
        self._acked = 0
        self._taken = 0  # chunks whose answers were
        self.stats: wire.Stats | None = None
        self._server = server.rstrip("/")
        self._wanted = wanted or Wanted()
        self._token = token
        self._patience_s = patience_s
        self._gives_up: float | None = None  # when to stop trying; None = all is well
        self._pause_s = FIRST_PAUSE_S
        self._said: dict[int, _Said] = {}
        self._acts: dict[int, Part] = {}
        self._next = 0  # chunk to be said
        self._answered = 0  # chunks, from the beginning
        self._text = self._wanted.text  # at the first chunk that was not answered
        self._told: tuple[str | None] | None = None  # before the next chunk
        self._liveliness: wire.Liveliness | None = None
        self._ends = False
        self._over = False
        self._socket: ClientConnection | None = None
        self._answers: asyncio.Queue[Answer | Exception | None] = asyncio.Queue()
        self._room = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Open a session.

        Raises:
            ClientError: there is none to be had within `patience_s`, or the server refuses.
        """
        socket = await self._connected()
        self._tasks = [asyncio.create_task(self._live(socket)), asyncio.create_task(self._ack())]
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def say(self, chunk: Chunk) -> None:
        """Say the next chunk. All but its words go up; without sound it is silent.

        Raises:
            ValueError: it is no whole chunk.
            LayoutError: its motion is in another layout than the policy's.
        """
        said = _Said(self._parts(chunk), self._told)
        number = self._next
        self._next += 1
        if number < self._answered:
            return  # it is so late that silence was heard in its place
        self._told = None
        self._said[number] = said
        await self._send_chunk(self._socket, said)

    async def tell(self, text: str | None) -> None:
        """What the listener is to be like from the next chunk on; None = nothing."""
        self._told = (text,)

    async def liven(self, value: float) -> None:
        """How large motion is shown: 0 = still, 1 = as it is, at most 2."""
        self._liveliness = wire.Liveliness(value=value)
        await _send(self._socket, self._liveliness)

    async def end(self) -> None:
        """Nothing more is said. The remaining frames are the last answer."""
        self._ends = True
        await _send(self._socket, wire.End())

    async def converse(
        self, chunks: AsyncIterator[Chunk], ahead: int | None = None
    ) -> AsyncIterator[Answer]:
        """Say chunks as they come, then end; gives the answers.

        Args:
            chunks: what is said.
            ahead: how many chunks may wait for their answer to be taken before the next one is
                said: 1 speaks as fast as answers are taken. None = as fast as chunks come.

        Raises:
            ClientError: the session cannot go on.
        """
        speaking = asyncio.create_task(self._speak(chunks, ahead))
        try:
            async for answer in self:
                yield answer
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Answer:
        """The next answer.

        Raises:
            ClientError: the session cannot go on.
        """
        answer = await self._answers.get()
        if answer is None:
            raise StopAsyncIteration
        if isinstance(answer, Exception):
            raise answer
        heard = self._next if answer.chunk is None else answer.chunk + 1
        self.shown = max(self.shown, self.session.border(heard))
        self._taken = heard
        self._room.set()
        return answer

    async def _speak(self, chunks: AsyncIterator[Chunk], ahead: int | None) -> None:
        try:
            async for chunk in chunks:
                while ahead is not None and self._next - self._taken >= ahead:
                    self._room.clear()
                    await self._room.wait()
                await self.say(chunk)
            await self.end()
        except Exception as error:
            self._answers.put_nowait(error)

    async def _live(self, socket: ClientConnection) -> None:
        """Session after session, until the end."""
        try:
            while True:
                try:
                    async with socket:
                        await self._go_on(socket)
                        await self._listen(socket)
                    break
                except _LostError as error:
                    self._socket = None
                    socket = await self._connected(error)
            self._answers.put_nowait(None)
        except Exception as error:
            self._answers.put_nowait(error)
        finally:
            self._socket = None

    async def _connected(self, error: _LostError | None = None) -> ClientConnection:
        """A socket whose session is ready.

        Args:
            error: by which the one before was lost.

        Raises:
            ClientError: the server refuses, or there was no answer for `patience_s`.
        """
        if self._gives_up is None:
            self._gives_up = _now() + self._patience_s
            self._pause_s = FIRST_PAUSE_S
            error = None  # the first try comes at once
        while True:
            if error is not None:
                await self._rest(error)
            try:
                return await self._ready(await self._opened())
            except _LostError as lost:
                error = lost

    async def _rest(self, error: _LostError) -> None:
        """Wait before the next try; raise `ClientError` where there is no time left for one."""
        wait = error.pause_s
        if wait is None:  # not all clients of a lost server come back at once
            wait = self._pause_s * random.uniform(0.5, 1)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if self._gives_up is None or _now() + wait > self._gives_up:
            raise ClientError(
                f"no session at {self._server} within {self._patience_s:g} s: {error}"
            ) from error
        await asyncio.sleep(wait)

    async def _opened(self) -> Session:
        """A session that goes on with the first chunk that was not answered."""
        wanted = {
            "policy": self._wanted.policy if self.sessions == 0 else self.session.policy,
            "seed": self._wanted.seed if self.sessions == 0 else self.session.seed,
            "text": self._text,
            "lead": self._wanted.lead,
        }
        asked: dict[str, Any] = {"outputs": [*self._wanted.outputs, "act"]}
        asked["number"] = self._answered
        asked |= {name: value for name, value in wanted.items() if value is not None}
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        # To load certificates takes tens of milliseconds, and plain http has no use for them.
        secure = self._server.startswith("https:")
        try:
            async with httpx.AsyncClient(verify=secure, timeout=REPLY_S) as http:
                url = f"{self._server}/v1/sessions"
                reply = await http.post(url, json=asked, headers=headers)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ClientError(f"{self._server} is no URL of a server: {error}") from error
        except httpx.HTTPError as error:
            raise _LostError(str(error) or type(error).__name__) from error
        if reply.status_code in _LATER:
            raise _LostError(_said_of(reply), _seconds(reply.headers.get("Retry-After")))
        if reply.is_error:
            raise ClientError(f"{self._server} opens no session: {_said_of(reply)}")
        try:
            session = Session.model_validate_json(reply.content)
            Layout(**session.layout)
        except (ValidationError, TypeError, LayoutError) as error:
            raise ClientError(f"{self._server} opened a session of another kind: {error}") from None
        if self.sessions and _form(session) != _form(self.session):
            raise ClientError(
                f"{self._server} cannot go on with the session: it now serves {session.policy} in "
                f"{session.layout}, chunks of {session.chunk_samples} samples"
            )
        return session

    async def _ready(self, session: Session) -> ClientConnection:
        """A session's socket, once the server says that it is ready."""
        protocols = [Subprotocol(wire.PROTOCOL), Subprotocol(wire.TICKET + session.ticket)]
        try:
            socket = await connect(
                session.url,
                subprotocols=protocols,
                compression=None,
                max_size=wire.MOST_BYTES,
                open_timeout=REPLY_S,
                close_timeout=1,
                ping_interval=None,  # the protocol has pings of its own
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status not in _LATER:
                raise ClientError(f"{session.url} refuses the socket: status {status}") from error
            pause = _seconds(error.response.headers.get("Retry-After"))
            raise _LostError(f"{session.url} is full", pause) from error
        except (OSError, InvalidHandshake, EOFError, TimeoutError) as error:
            raise _LostError(f"{session.url}: {error or type(error).__name__}") from error
        try:
            async with asyncio.timeout(REPLY_S):
                ready = await self._receive(socket)
                while isinstance(ready, wire.Ping):
                    ready = await self._receive(socket)
        except BaseException as error:
            await socket.close()
            if isinstance(error, TimeoutError):
                raise _LostError(f"{session.url}: the session did not become ready") from error
            raise
        if not isinstance(ready, wire.Ready) or ready.number != self._answered:
            await socket.close()
            raise ClientError(f"{session.url} begins with {ready}, not with chunk {self._answered}")
        if self.sessions == 0:
            self.begins = asyncio.get_running_loop().time() + ready.wait_s
        self.session = session
        self.name = ready.id
        self.sessions += 1
        return socket

    async def _go_on(self, socket: ClientConnection) -> None:
        """Send what a new session has to know, and all that was not answered."""
        most = self.session.remembered
        past: list[int] = []
        number = self._answered - 1
        while number in self._acts and number in self._said and len(past) < most:
            past.append(number)
            number -= 1
        if past:
            await _send(socket, wire.Went(chunks=len(past)))
        for number in reversed(past):
            await _send_parts(socket, [*self._said[number].parts, self._acts[number]])
        if self._liveliness is not None:
            await _send(socket, self._liveliness)
        number = self._answered
        while number < self._next:
            await self._send_chunk(socket, self._said[number])
            number += 1
        self._socket = socket  # what is said from now on goes there
        if self._ends:
            await _send(socket, wire.End())

    async def _listen(self, socket: ClientConnection) -> None:
        """Take what comes, until the server closes at the end."""
        while True:
            message = await self._receive(socket)
            if message is None:
                return
            if isinstance(message, list):
                self._take(message)
            elif isinstance(message, wire.Stats):
                self.stats = message
            elif isinstance(message, wire.Move):
                raise _LostError("told to move")

    async def _receive(self, socket: ClientConnection) -> wire.Text | list[Part] | None:
        """The next message, pings answered; None = the server closed at the end.

        Raises:
            ClientError: the server closed as it would again, or cannot be understood.
            _LostError: the connection is lost.
        """
        said = ""  # why the server closes
        while True:
            try:
                async with asyncio.timeout(SILENT_S):
                    raw = await socket.recv()
            except TimeoutError:
                raise _LostError(f"nothing came for {SILENT_S} s") from None
            except ConnectionClosed as closed:
                if self._over or (self._ends and _code(closed) == wire.ENDED):
                    return None
                if _code(closed) in _FINAL:
                    raise ClientError(f"the server closed the session: {said or closed}") from None
                raise _LostError(said or str(closed)) from None
            try:
                message = wire.answered(raw) if isinstance(raw, str) else wire.unpacked(raw)
            except WireError as error:
                raise ClientError(f"the server said what cannot be understood: {error}") from error
            if isinstance(message, wire.Error):
                said = message.message
            elif isinstance(message, wire.Ping):
                await _send(socket, wire.Pong(id=message.id))
                return message
            else:
                return [message] if isinstance(message, Part) else message

    def _take(self, parts: list[Part]) -> None:
        """Note what was answered, and hand it on."""
        acts = [part for part in parts if part.kind is Kind.ACT]
        numbers = [self.session.chunk_at(part.sample) for part in acts]
        flags = parts[0].flags
        self._over = self._ends and not acts
        chunk = numbers[-1] if numbers else None
        after = math.nan
        if chunk is not None:
            said = self._said.get(chunk)
            after = math.nan if said is None else _now() - said.sent
        for number, part in zip(numbers, acts, strict=True):
            self._acts[number] = part
            if part.flags & wire.LATE or number not in self._said:
                said = self._said.get(number)
                told = None if said is None else said.told
                self._said[number] = _Said(self._parts(Chunk(), number), told)
        self._remember([part for part in parts if part.kind is Kind.SEEN])
        self._forget(max(numbers, default=-1) + 1)
        self._gives_up = None
        shown = {part.kind: part for part in parts if part.kind in (Kind.SHOWN, Kind.ARKIT)}
        layout = Layout(**self.session.layout)
        motion = arkit = None
        if Kind.SHOWN in shown:
            motion = Motion(_frames(shown[Kind.SHOWN], layout.dim), layout)
        if Kind.ARKIT in shown:
            arkit = _frames(shown[Kind.ARKIT], len(CHANNELS))
        self._answers.put_nowait(
            Answer(
                chunk=chunk,
                sample=next(iter(shown.values()), parts[0]).sample,
                motion=motion,
                arkit=arkit,
                act=acts[-1].payload if acts else b"",
                late=bool(flags & wire.LATE),
                dropped=bool(flags & wire.DROPPED),
                after_s=after,
            )
        )

    def _remember(self, seen: list[Part]) -> None:
        """What was read off pictures belongs to its chunk, as if it had been sent as motion."""
        for part in seen:
            said = self._said.get(self.session.chunk_at(part.sample))
            if said is not None:
                voices = [each for each in said.parts if each.kind is not Kind.PICTURE]
                said.parts = [Part(Kind.MOTION, part.sample, part.payload), *voices]

    def _forget(self, answered: int) -> None:
        """All before chunk `answered` was answered: what is too long ago is not kept."""
        for number in range(self._answered, answered):
            said = self._said.get(number)
            if said is not None and said.told is not None:
                self._text = said.told[0]
        self._answered = max(self._answered, answered)
        oldest = self._answered - self.session.remembered
        for kept in (self._said, self._acts):
            for number in [number for number in kept if number < oldest]:
                del kept[number]

    def _parts(self, chunk: Chunk, number: int | None = None) -> list[Part]:
        """A chunk as it is sent; it is complete with its sound, which comes last."""
        number = self._next if number is None else number
        first = self.session.border(number)
        samples = self.session.border(number + 1) - first
        silence = np.zeros(samples, np.float32)
        parts = []
        if chunk.frames is not None and chunk.taken is not None:
            for frame, taken in zip(chunk.frames, chunk.taken, strict=True):
                moment = first + max(round(float(taken) * self.session.rate), 0)
                parts.append(Part(Kind.PICTURE, moment, _jpeg(frame)))
        if chunk.motion is not None:
            motion = chunk.motion.subset(Layout(**self.session.layout))
            parts.append(Part(Kind.MOTION, first, motion.values.astype("<f4").tobytes()))
        voices = {Kind.OWN_SOUND: chunk.own_audio, Kind.SOUND: chunk.audio}
        if chunk.own_audio is None:
            del voices[Kind.OWN_SOUND]
        for kind, sound in voices.items():
            sound = silence if sound is None else sound
            if sound.shape != (samples,):
                raise ValueError(
                    f"{kind.name.lower()} of shape {sound.shape}: chunk {number} has ({samples},)"
                )
            whole = np.rint(sound * 32768).clip(-32768, 32767).astype("<i2")
            parts.append(Part(kind, first, whole.tobytes()))
        return parts

    async def _send_chunk(self, socket: ClientConnection | None, said: _Said) -> None:
        # Whoever took an answer late would else seem not to have taken it when the next is made.
        if self.shown > self._acked:
            await self._acknowledge(socket)
        if socket is not None and said.told is not None:
            await _send(socket, wire.Told(text=said.told[0]))
        said.sent = _now()
        await _send_parts(socket, said.parts)

    async def _ack(self) -> None:
        while True:
            await asyncio.sleep(ACK_S)
            await self._acknowledge(self._socket)

    async def _acknowledge(self, socket: ClientConnection | None) -> None:
        self._acked = self.shown
        await _send(socket, wire.Ack(sample=self.shown))


async def in_real_time(chunks: Iterable[Chunk], client: Client) -> AsyncIterator[Chunk]:
    """Chunks of a recording, each when its last sample would just have been recorded.

    They are read in a thread: to decode a film takes longer than an event loop may stand still.
    """
    clock = asyncio.get_running_loop()
    read = iter(chunks)
    due = client.begins
    while (chunk := await asyncio.to_thread(next, read, None)) is not None:
        due += client.session.chunk_s
        await asyncio.sleep(max(due - clock.time(), 0))
        yield chunk


async def _send(socket: ClientConnection | None, message: wire.Text | list[Part]) -> None:
    """Send, where there is a socket. Whoever listens to it notices that it is lost."""
    if socket is None:
        return
    raw = wire.packed(message) if isinstance(message, list) else message.model_dump_json()
    with suppress(ConnectionClosed):
        await socket.send(raw)


async def _send_parts(socket: ClientConnection | None, parts: list[Part]) -> None:
    """Send parts in their order, in as few messages as may be."""
    message: list[Part] = []
    for part in parts:
        if message and len(wire.packed([*message, part])) > wire.MOST_BYTES:
            await _send(socket, message)
            message = []
        message.append(part)
    await _send(socket, message)


def _jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _form(session: Session) -> tuple[Any, ...]:
    """What must be the same where a session goes on."""
    return session.policy, session.rate, session.chunk_samples, session.layout


def _frames(part: Part, width: int) -> np.ndarray:
    """An array (frames, width) float32."""
    if len(part.payload) % (4 * width):
        raise ClientError(
            f"the server sent {len(part.payload)} bytes of {part.kind.name.lower()}, no frames of "
            f"{width} numbers"
        )
    return np.frombuffer(part.payload, "<f4").astype(np.float32).reshape(-1, width)


def _code(closed: ConnectionClosed) -> int:
    """By which a server closed; 1006 where it did not."""
    return 1006 if closed.rcvd is None else closed.rcvd.code


def _seconds(retry_after: str | None) -> float | None:
    try:
        return None if retry_after is None else max(float(retry_after), 0.0)
    except ValueError:
        return None  # a date


def _said_of(reply: httpx.Response) -> str:
    """What a server says of a refusal."""
    with suppress(ValueError, KeyError, TypeError):
        said = json.loads(reply.content)
        return f"status {reply.status_code}, {said.get('message') or said['detail']}"
    return f"status {reply.status_code}"
