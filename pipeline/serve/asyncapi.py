"""The socket of a live session, for machines: an AsyncAPI 3.0 document of what `wire` reads."""

from __future__ import annotations

import importlib.metadata
from typing import Any, get_args

from rapport.pipeline.serve import wire

CHANNEL = "live"
PARTS = "Parts"  # name of the message that is no JSON

_PROTOCOL = f"""\
The client asks for two subprotocols: `{wire.PROTOCOL}` (or `{wire.PROTOCOL_OF_TEXTS}`, where all is
text), and `{wire.TICKET}` followed by the ticket that `POST /v1/sessions` gave. A message has at
most {wire.MOST_BYTES} bytes."""

_PARTS = f"""\
One or more parts. A part is a header of 16 bytes, little endian, and its payload: version (uint8,
{wire.VERSION}), kind (uint8), flags (uint16; {wire.LATE}: silence was heard in place of sound that
was late, {wire.DROPPED}: answers before this one were dropped), bytes of the payload (uint32),
number of the first sample that it belongs to (uint64). Up: 1 sound (int16 mono), 2 motion (float32,
frames x dim, of the partner), 3 picture (JPEG), 4 own sound (int16 mono). Down: 65 motion (float32,
frames x dim), 66 ARKit (float32, frames x 61), 67 act (float32 or int32), 68 seen (float32, frames
x dim: what was read of the speaker's face). In a socket of texts, the message Binary stands for a
part, with the payload as base64."""


def asyncapi() -> dict[str, Any]:
    """The document, ready for JSON. It is written from the server's side: `receive` goes up."""
    up = [kind.__name__ for kind in get_args(wire.Up)]
    down = [kind.__name__ for kind in get_args(wire.Down)]
    kinds = {kind.__name__: kind for kind in (*get_args(wire.Up), *get_args(wire.Down))}
    names = [*kinds, PARTS]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Rapport: a live session",
            "version": importlib.metadata.version("rapport-rlhf"),
            "description": _PROTOCOL,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            CHANNEL: {
                "address": "/v1/live",
                "description": _PROTOCOL,
                "messages": {name: _refer("components", "messages", name) for name in names},
                "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
            }
        },
        "operations": {
            "hear": _operation("receive", "What a client sends.", [*up, PARTS]),
            "answer": _operation("send", "What the server sends.", [*down, PARTS]),
        },
        "components": {
            "messages": {name: _message(kind) for name, kind in kinds.items()} | {PARTS: _parts()},
            "schemas": {name: _schema(kind) for name, kind in kinds.items()},
        },
    }


def _refer(*path: str) -> dict[str, str]:
    return {"$ref": "/".join(("#", *path))}


def _operation(action: str, summary: str, messages: list[str]) -> dict[str, Any]:
    return {
        "action": action,
        "summary": summary,
        "channel": _refer("channels", CHANNEL),
        "messages": [_refer("channels", CHANNEL, "messages", name) for name in messages],
    }


def _message(kind: type[wire.Text]) -> dict[str, Any]:
    return {
        "name": kind.__name__,
        "summary": kind.__doc__,
        "contentType": "application/json",
        "payload": _refer("components", "schemas", kind.__name__),
    }


def _parts() -> dict[str, Any]:
    return {
        "name": PARTS,
        "summary": "Sound, motion and pictures, of one moment or several.",
        "description": _PARTS,
        "contentType": "application/octet-stream",
        "payload": {"type": "string", "format": "binary"},
    }


def _schema(kind: type[wire.Text]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    # By its type a message is told from the others, so it may not be left out.
    schema["required"] = sorted({"type", *schema.get("required", [])})
    return schema
