"""Who may come in: tokens, tickets, origins, and how much of it.

All of it is of one process. A replica counts its own requests and sessions, and remembers the
tickets that it opened itself; what another one counts or opened it cannot know.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from rapport.pipeline.serve.wire import MOST_BYTES
from rapport.settings import is_loopback

GUARDED = "/v1/"  # what a token and a pace are asked for; the page and the probes stand before it
UPLOADS = "/v1/generations"  # where a body may be a recording
FORGET_S = 60.0  # how often the paces of clients that have rested are forgotten
BACKLOG_S = 60.0  # of sound that was not answered, which a session that goes on sends at once

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
        "media-src 'self' blob:; worker-src 'self' blob:; style-src 'self'; script-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(self)",
    "Cache-Control": "no-cache",
}

Clock = Callable[[], float]  # seconds


class Refused(HTTPException):
    """Somebody may not come in, or not now.

    FastAPI answers it by its status and `{"detail": {"code", "field", "message"}}`.

    Args:
        status: of HTTP.
        code: a word for machines.
        message: what is wrong, and what would be right.
        field: of what was sent, where one is to blame.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, {"code": code, "field": field, "message": message}, headers)
        self.code = code
        self.field = field
        self.message = message

    def __str__(self) -> str:
        return self.message

    def response(self) -> JSONResponse:
        """As an answer of HTTP, before a socket is accepted too (`send_denial_response`)."""
        headers = {**(self.headers or {}), **SECURITY_HEADERS}
        return JSONResponse({"detail": self.detail}, self.status_code, headers)


class Reason(BaseModel):
    """Why something was refused: what a `Refused` says."""

    code: str
    field: str
    message: str


class Refusal(BaseModel):
    """An answer to what was refused."""

    detail: Reason


# Of every path, for OpenAPI.
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Refusal, "description": "refused"},
    503: {"model": Refusal, "description": "everything is taken, or the replica goes away"},
}


def full(message: str, wait_s: float) -> Refused:
    """Everything is taken; `wait_s` later something may be free."""
    retry = {"Retry-After": str(math.ceil(wait_s))}
    return Refused(503, "full", message, headers=retry)


@dataclass(frozen=True)
class Rules:
    """What is asked of whoever comes.

    Args:
        token: bearer token; None = nobody is asked for one.
        origins: of pages that stand elsewhere and may come in, as browsers write them:
            `https://studio.example`. A page of this server always may.
        requests: a minute, below `/v1/`, of an address.
        body: bytes of a request.
        upload: bytes of a request with a recording.
    """

    token: str | None = None
    origins: frozenset[str] = frozenset()
    requests: int = 120
    body: int = MOST_BYTES
    upload: int = 64 * 1024 * 1024

    def knows(self, headers: Headers) -> bool:
        """Whether a request has the token, compared in constant time; without one, all have."""
        if self.token is None:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        same = secrets.compare_digest(token.strip().encode(), self.token.encode())
        return same and scheme.lower() == "bearer"

    def require_host(self, headers: Headers) -> None:
        """Raise `Refused` where there is no token, and a browser thinks that it is elsewhere.

        A page of a stranger may give its own name the address 127.0.0.1 and then count as a page of
        this server (DNS rebinding). It cannot change what browsers say in `Host`.
        """
        if self.token is None and not is_loopback(_name(headers.get("host", ""))):
            raise Refused(
                421,
                "host",
                f"{headers.get('host')!r} is not this machine: open http://127.0.0.1, or set "
                "the environment variable RAPPORT_TOKEN",
                field="Host",
            )

    def require_origin(self, headers: Headers) -> None:
        """Raise `Refused` where a page comes that is neither of this server nor on the list."""
        origin = headers.get("origin")
        if origin is None or origin in self.origins:
            return  # no browser, or a page that may
        if _place(origin) != headers.get("host", "").lower():
            raise Refused(
                403,
                "origin",
                f"pages of {origin} may not come in: serve.origins lists those that may",
                field="Origin",
            )


def address(scope: Scope) -> str:
    """Where a request comes from: the client, or a proxy in front."""
    client = scope.get("client")
    return client[0] if client else ""


def _name(host: str) -> str:
    """Of `name:port`."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str | None:
    """`name:port` of an origin; None for what is none, as `null`."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


class Pace:
    """How much may pass: so much a second, and some of it at once.

    Args:
        rate: units a second.
        burst: units at once, after a rest.
        clock: seconds that only grow.
    """

    def __init__(self, rate: float, burst: float, clock: Clock = time.monotonic) -> None:
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._left = burst
        self._seen = clock()

    def take(self, amount: float) -> bool:
        """Whether so much may pass now; if not, nothing was taken."""
        self._fill()
        if amount > self._left:
            return False
        self._left -= amount
        return True

    def wait(self, amount: float) -> float:
        """Seconds until so much may pass; infinite for what never may."""
        self._fill()
        if amount > self.burst:
            return math.inf
        return max(amount - self._left, 0.0) / self.rate

    @property
    def rested(self) -> bool:
        """Whether it is as if nothing had ever passed."""
        self._fill()
        return self._left == self.burst

    def _fill(self) -> None:
        now = self._clock()
        self._left = min(self._left + (now - self._seen) * self.rate, self.burst)
        self._seen = now


def pace_of_sound(
    rate: int, times: float = 1.2, clock: Clock = time.monotonic, *, goes_on: bool = False
) -> Pace:
    """Of live sound, in samples: a little faster than it is said, and 2 s at once.

    Args:
        rate: samples a second.
        times: as fast as it is said.
        clock: seconds that only grow.
        goes_on: whether the session began elsewhere: all that was not answered there comes at once.
    """
    return Pace(times * rate, (BACKLOG_S if goes_on else 2.0) * rate, clock)


def pace_of_bytes(
    needed: float, clock: Clock = time.monotonic, *, told_s: float | None = None
) -> Pace:
    """Of a socket, in bytes: half more than it needs, and 3 s and a largest message at once.

    Args:
        needed: bytes a second of a client that sends all that it may.
        clock: seconds that only grow.
        told_s: what a session that began elsewhere is told at once, in place of 3 s.
    """
    at_once = 3.0 if told_s is None else told_s
    return Pace(1.5 * needed, at_once * needed + MOST_BYTES, clock)


class Seats:
    """Sessions that a client has open, whom its address stands for.

    Args:
        most: of one client, at the same time.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken: Counter[str] = Counter()

    def require(self, client: str) -> None:
        """Raise `Refused` where a client has all that it may have."""
        if self._taken[client] >= self.most:
            retry = {"Retry-After": "10"}
            message = f"{self.most} sessions are open already: close one"
            raise Refused(429, "sessions", message, headers=retry)

    @contextmanager
    def taken(self, client: str) -> Iterator[None]:
        """One seat, as long as the block lasts; raises as `require`."""
        self.require(client)
        self._taken[client] += 1
        try:
            yield
        finally:
            self._taken[client] -= 1
            self._taken += Counter()  # forgets those who have none


Asked = TypeVar("Asked", bound=BaseModel)


class _Sealed(BaseModel, Generic[Asked]):
    """What is in a ticket."""

    until: float
    nonce: str
    asked: Asked


class Tickets(Generic[Asked]):
    """Tickets for sockets: a session's parameters, signed (HMAC-SHA256), for one opening.

    Nothing is stored: every replica with the same secret opens them. That a ticket was opened
    before is known to the replica that opened it, and to no other.

    Args:
        kind: model of the parameters.
        secret: at least 16 bytes, the same on all replicas.
        lasts_s: seconds until a ticket expires.
        clock: seconds that replicas agree about.

    Raises:
        ValueError: a secret that can be guessed.
    """

    def __init__(
        self, kind: type[Asked], secret: bytes, lasts_s: float = 60, clock: Clock = time.time
    ) -> None:
        if len(secret) < 16:
            raise ValueError(f"a secret of {len(secret)} bytes can be guessed: take 32 random ones")
        self.lasts_s = lasts_s
        self._model = _Sealed[kind]  # type: ignore[valid-type]
        self._secret = secret
        self._clock = clock
        self._opened: dict[str, float] = {}  # nonce -> when its ticket expires

    def issue(self, asked: Asked) -> str:
        """A ticket, in letters that may stand in a subprotocol."""
        until = self._clock() + self.lasts_s
        sealed = self._model(until=until, nonce=secrets.token_urlsafe(12), asked=asked)
        said = sealed.model_dump_json().encode()
        return f"{_letters(said)}.{_letters(self._signature(said))}"

    def open(self, ticket: str) -> Asked:
        """The parameters in a ticket, which is used up by this.

        Raises:
            Refused: `ticket_tampered`: this server did not issue it. `ticket_expired`.
                `ticket_reused`: it was opened before.
        """
        said, signature = _halves(ticket)
        if not hmac.compare_digest(signature, self._signature(said)):
            raise _tampered()
        sealed = self._model.model_validate_json(said)
        now = self._clock()
        if now >= sealed.until:
            message = f"the ticket expired, it lasts {self.lasts_s:g} s: ask for another one"
            raise Refused(401, "ticket_expired", message, field="ticket")
        self._opened = {nonce: until for nonce, until in self._opened.items() if until > now}
        if sealed.nonce in self._opened:
            message = "the ticket was used already, it opens one socket: ask for another one"
            raise Refused(401, "ticket_reused", message, field="ticket")
        self._opened[sealed.nonce] = sealed.until
        return sealed.asked

    def _signature(self, said: bytes) -> bytes:
        return hmac.digest(self._secret, said, hashlib.sha256)


def _letters(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _halves(ticket: str) -> tuple[bytes, bytes]:
    """What a ticket says, and its signature."""
    said, _, signature = ticket.partition(".")
    try:
        halves = _bytes(said), _bytes(signature)
    except ValueError:
        raise _tampered() from None
    # Base64 has several spellings of the same bytes; a ticket has one.
    if ticket != ".".join(map(_letters, halves)):
        raise _tampered()
    return halves


def _bytes(letters: str) -> bytes:
    padded = letters + "=" * (-len(letters) % 4)
    return base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)


def _tampered() -> Refused:
    message = "the ticket is not one of this server: ask for another one"
    return Refused(401, "ticket_tampered", message, field="ticket")


class Doors:
    """What every request passes before anything of it is read, and every answer after.

    Sockets pass the same, but for the token: their ticket says that somebody had it.

    Args:
        app: what is behind.
        rules: what is asked.
        clock: seconds that only grow.
    """

    def __init__(self, app: ASGIApp, rules: Rules, clock: Clock = time.monotonic) -> None:
        self.app = app
        self.rules = rules
        self._clock = clock
        self._paces: dict[str, Pace] = {}
        self._forgot = clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            self._look(scope)
        except Refused as refused:
            if scope["type"] == "http":
                await refused.response()(scope, receive, send)
            else:
                await WebSocket(scope, receive, send).send_denial_response(refused.response())
            return
        if scope["type"] == "http":
            receive = _counted(receive, self._most(scope))
            send = _secured(send)
        await self.app(scope, receive, send)

    def _look(self, scope: Scope) -> None:
        """Raise `Refused` where somebody may not come in."""
        self._forget()
        headers = Headers(scope=scope)
        self.rules.require_host(headers)
        self.rules.require_origin(headers)
        if _path(scope).startswith(GUARDED):
            needed = scope["type"] == "http"
            known = not needed or self.rules.knows(headers)
            # Whoever guesses tokens is slowed down, and slows nobody down who has it.
            self._require_pace(address(scope) if known else f"{address(scope)}, without the token")
            if not known:
                raise Refused(
                    401,
                    "token",
                    "a token is needed: Authorization: Bearer TOKEN",
                    field="Authorization",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if scope["type"] == "http":
            _require_size(_announced(headers), self._most(scope))

    def _most(self, scope: Scope) -> int:
        """Bytes of a body."""
        return self.rules.upload if _path(scope) == UPLOADS else self.rules.body

    def _require_pace(self, client: str) -> None:
        """Raise `Refused` where a client asks too often."""
        most = self.rules.requests
        pace = self._paces.get(client) or Pace(most / 60, most, self._clock)
        self._paces[client] = pace
        if not pace.take(1):
            retry = {"Retry-After": str(math.ceil(pace.wait(1)))}
            message = f"more than {most} requests a minute: wait {retry['Retry-After']} s"
            raise Refused(429, "requests", message, headers=retry)

    def _forget(self) -> None:
        """Nobody is remembered who asked for nothing in the last minute."""
        now = self._clock()
        if now - self._forgot >= FORGET_S:
            self._forgot = now
            self._paces = {name: pace for name, pace in self._paces.items() if not pace.rested}


def guard(app: FastAPI, rules: Rules) -> None:
    """Put the doors before an application, and let pages of `rules.origins` read its answers."""
    app.add_middleware(Doors, rules=rules)
    if rules.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(rules.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
        )


async def misunderstood(request: Request, error: Exception) -> JSONResponse:
    """In the form of all refusals, and without what was sent: that may be anything."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    return Refused(422, "field", f"{field or 'body'}: {first['msg']}", field=field).response()


async def refused(request: Request, error: Exception) -> JSONResponse:
    """In that form, too: what FastAPI itself refuses, as a body that is no JSON."""
    assert isinstance(error, AnyHTTPException)
    if not isinstance(error, Refused):
        headers = dict(error.headers or {})
        error = Refused(error.status_code, "request", str(error.detail), headers=headers)
    return error.response()


def _path(scope: Scope) -> str:
    """Within the application, which may stand below a prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _announced(headers: Headers) -> int:
    """Bytes of a body, as far as they are said before it comes."""
    length = headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0


def _require_size(size: int, most: int) -> None:
    if size > most:
        raise Refused(413, "size", f"the request is too large: at most {most} bytes are read")


def _counted(receive: Receive, most: int) -> Receive:
    """A body that comes in pieces, without saying how long it will be."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        _require_size(size, most)
        return message

    return counted


def _secured(send: Send) -> Send:
    async def secured(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return secured
