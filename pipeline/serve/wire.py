"""What goes over a live session's socket: parts of binary messages, and texts (docs/serve.md)."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

PROTOCOL = "rapport.v1"
PROTOCOL_OF_TEXTS = "rapport.v1.json"  # for people without a binary socket
TICKET = "ticket."  # before the ticket, as a subprotocol: browsers set no headers
VERSION = 1
MOST_BYTES = 64 * 1024  # of a message

LATE = 1  # flag of an answer: silence was heard in place of sound that was late
DROPPED = 2  # answers before this one were dropped, since the client lags

ENDED = 1000
MISUNDERSTOOD = 1007
FORBIDDEN = 1008
TOO_LARGE = 1009
FAILED = 1011
MOVED = 1012

_HEADER = struct.Struct("<BBHIQ")


class WireError(ValueError):
    """A message cannot be understood, or is not allowed.

    Args:
        message: what is wrong, and what would be right.
        code: a word for machines.
        field: of the message, where one is to blame.
        close: the code by which the socket is closed.
    """

    def __init__(
        self, message: str, code: str, field: str = "", close: int = MISUNDERSTOOD
    ) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.close = close


class Kind(IntEnum):
    """What a part holds."""

    SOUND = 1
    MOTION = 2
    PICTURE = 3
    OWN_SOUND = 4
    SHOWN = 65
    ARKIT = 66
    ACT = 67
    SEEN = 68


@dataclass(frozen=True)
class Part:
    """A part of a binary message.

    Args:
        kind: what it holds.
        sample: number of the first sample that it belongs to.
        payload: its bytes, of arrays little endian.
        flags: of an answer, `LATE` and `DROPPED`.
    """

    kind: Kind
    sample: int
    payload: bytes
    flags: int = 0


def packed(parts: Iterable[Part]) -> bytes:
    """Parts as one message."""
    return b"".join(
        _HEADER.pack(VERSION, part.kind, part.flags, len(part.payload), part.sample) + part.payload
        for part in parts
    )


def unpacked(message: bytes) -> list[Part]:
    """The parts of a message.

    Raises:
        WireError: it is too large, holds nothing, is of another version, has an unknown kind, or
            ends before a part does.
    """
    _require_size(len(message))
    parts: list[Part] = []
    place = 0
    while place < len(message):
        if len(message) - place < _HEADER.size:
            raise WireError("a part begins with a header of 16 bytes", "header", "header")
        version, kind, flags, length, sample = _HEADER.unpack_from(message, place)
        place += _HEADER.size
        if version != VERSION:
            raise WireError(
                f"version {version}: this server speaks {VERSION}", "version", "version"
            )
        payload = message[place : place + length]
        if len(payload) < length:
            raise WireError(
                f"a part of {length} bytes ends after {len(payload)}", "length", "length"
            )
        parts.append(Part(_kind(kind), sample, payload, flags))
        place += length
    if not parts:
        raise WireError("an empty message", "empty")
    return parts


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError:
        known = ", ".join(f"{kind.value} {kind.name.lower()}" for kind in Kind)
        raise WireError(f"kind {number}: there are {known}", "kind", "kind") from None


def _require_size(size: int) -> None:
    if size > MOST_BYTES:
        raise WireError(
            f"a message of {size} bytes; at most {MOST_BYTES} are read", "size", close=TOO_LARGE
        )


class Text(BaseModel):
    """A message of text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Ack(Text):
    """The client shows this sample now."""

    type: Literal["ack"] = "ack"
    sample: int = Field(ge=0)


class Told(Text):
    """What the listener is told to be like, from the next chunk on; None = nothing."""

    type: Literal["text"] = "text"
    text: str | None = Field(max_length=1000)


class Liveliness(Text):
    """How large motion is shown: 0 = still, 1 = as it is."""

    type: Literal["liveliness"] = "liveliness"
    value: float = Field(ge=0, le=2)


class Went(Text):
    """So many chunks of the past follow, oldest first, a message each."""

    type: Literal["went"] = "went"
    chunks: int = Field(ge=1, le=1000)


class Ping(Text):
    """Asks for a sign of life."""

    type: Literal["ping"] = "ping"
    id: int | None = None


class Pong(Text):
    """A sign of life."""

    type: Literal["pong"] = "pong"
    id: int | None = None


class End(Text):
    """Nothing more will be said."""

    type: Literal["end"] = "end"


class Ready(Text):
    """A session has begun, and is listened to after `wait_s`."""

    type: Literal["ready"] = "ready"
    id: str
    number: int
    wait_s: float


class Stats(Text):
    """How a session fares: counts since its beginning, and the last answer's time of computing."""

    type: Literal["stats"] = "stats"
    late: int
    dropped: int
    sessions: int
    answer_s: float


class Error(Text):
    """Why the server closes."""

    type: Literal["error"] = "error"
    code: str
    field: str = ""
    message: str


class Move(Text):
    """This replica goes away."""

    type: Literal["move"] = "move"


class Binary(Text):
    """A part, in a socket of texts only. `data` is base64 of the payload."""

    type: Literal["sound", "motion", "picture", "own_sound", "shown", "arkit", "act", "seen"]
    sample: int = Field(ge=0, lt=2**64)
    data: str
    flags: int = 0


Up = Ack | Told | Liveliness | Went | Ping | Pong | End | Binary
Down = Ready | Stats | Error | Move | Ping | Pong | Binary
_UP: TypeAdapter[Up] = TypeAdapter(Annotated[Up, Field(discriminator="type")])
_DOWN: TypeAdapter[Down] = TypeAdapter(Annotated[Down, Field(discriminator="type")])


def said(text: str) -> Text | Part:
    """What a client's text says.

    Raises:
        WireError: it is too large, no JSON, or no message that a client sends.
    """
    return _read(_UP, text)


def answered(text: str) -> Text | Part:
    """What a server's text says; `WireError` as of `said`."""
    return _read(_DOWN, text)


def as_text(part: Part) -> str:
    """A part, for a socket of texts only."""
    data = base64.b64encode(part.payload).decode()
    kind: Any = part.kind.name.lower()
    return Binary(type=kind, sample=part.sample, data=data, flags=part.flags).model_dump_json()


def _read(kinds: TypeAdapter[Any], text: str) -> Text | Part:
    _require_size(len(text.encode()))
    try:
        # Not pydantic's own reader: what it says of a text that is no JSON is of bytes.
        read = json.loads(text)
    except RecursionError:
        raise WireError("JSON that is nested too deep", "json") from None
    except ValueError as error:  # of an integer of thousands of digits, too
        raise WireError(f"no JSON: {error}", "json") from None
    try:
        message = kinds.validate_python(read)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise WireError(f"{field or 'message'}: {first['msg']}", "message", field) from None
    if not isinstance(message, Binary):
        return message
    try:
        payload = base64.b64decode(message.data, validate=True)
    except ValueError:
        raise WireError("data: no base64", "base64", "data") from None
    return Part(Kind[message.type.upper()], message.sample, payload, message.flags)
