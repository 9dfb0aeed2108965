"""What tests of the served application share: it on a port, without Ray, and sessions by hand."""

import contextlib
import json
import time
from contextlib import nullcontext
from unittest import mock

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from rapport.pipeline.serve import voices, wire
from rapport.pipeline.serve.app import application
from rapport.pipeline.serve.server import Server
from rapport.pipeline.serve.settings import LimitsConfig
from rapport.policies.head.settings import HeadConfig
from tests.on_port import on_port

LIMITS = LimitsConfig(requests=1_000_000, sessions=64, pace=1000)
SECRET = bytes(range(32))


def loaded(section, fits=False):
    """A replica with the policies of a section.

    Args:
        section: of its settings.
        fits: whether all of its sessions fit, however busy the machine is that would be measured.
    """
    server = Server(section, HeadConfig(), "replica", SECRET, None)
    costs = dict.fromkeys((1, section.sessions), 0.001)
    with mock.patch.object(voices, "measure", lambda *_, **__: costs) if fits else nullcontext():
        server.load(section.policies)
    return server


@contextlib.contextmanager
def listening(server):
    """The application on a real port, and a client of it."""
    with (
        on_port(application(server), log_level="error") as (url, _),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def ticket(client, **asked):
    """What `POST /v1/sessions` answers."""
    answer = client.post("/v1/sessions", json=asked)
    assert answer.status_code == 201, answer.text
    return answer.json()


def socket(client, session, protocol=wire.PROTOCOL):
    """The socket of a ticket."""
    return connect(session["url"], subprotocols=[protocol, wire.TICKET + session["ticket"]])


def received(live):
    """The next message that is no ping and no stats; the code of a close."""
    while True:
        try:
            message = live.recv(60)
        except ConnectionClosed as closed:
            return closed.rcvd.code
        if isinstance(message, bytes):
            return wire.unpacked(message)
        text = json.loads(message)
        if text["type"] not in ("ping", "stats"):
            return text


def wait_until_all_left(server, but=0):
    """A client has left before its server has noticed."""
    deadline = time.monotonic() + 30
    while len(server.sessions) > but:
        assert time.monotonic() < deadline
        time.sleep(0.01)
