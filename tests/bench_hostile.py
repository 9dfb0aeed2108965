"""What hostile clients cost a replica: `python -m tests.bench_hostile`.

A server of its own process, without Ray, serves the AR-Flow that comes with the project. Its memory
is looked at while one socket is flooded by a client that heeds no close, while noise comes on many,
and while clients are there that say nothing any more and never close.
"""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import uvicorn
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.uri import parse_uri

from rapport.pipeline.serve import wire
from rapport.pipeline.serve.app import application
from rapport.pipeline.serve.settings import LimitsConfig, ServeSection
from rapport.pipeline.serve.wire import Kind, Part
from tests.live_sockets import loaded, ticket
from tests.runs import ROOT, environment, free_port

RATE = 50e6  # bytes a second of a flood
FLOODS_S = 15.0  # before its client has enough
PATIENCE_S = 600.0
SESSIONS = 256
CHUNK = bytes(2 * 5120)
MIB = 2**20
FLOODS = {  # messages, and whether they are compressed
    "sound": (wire.packed([Part(Kind.SOUND, 0, CHUNK)]), False),
    "acks": (wire.Ack(sample=0).model_dump_json().encode(), False),
    "64 KiB": (bytes(wire.MOST_BYTES), False),
    "16 MiB": (bytes(16 * MIB), False),
    "16 MiB of zeros, compressed": (bytes(16 * MIB), True),
}


# -- The server --


def serve(port: int) -> None:
    """A replica in this process."""
    limits = LimitsConfig(requests=1_000_000, sessions=SESSIONS)
    server = loaded(ServeSection(sessions=SESSIONS, limits=limits), fits=True)
    uvicorn.run(application(server), port=port, log_level="error")


@dataclass(frozen=True)
class Served:
    """A server, and its process."""

    client: httpx.Client
    process: psutil.Process

    @contextlib.contextmanager
    def watched(self):
        """A list that ends with the MiB by which its memory grew at most within the block."""
        before = peak = self.process.memory_info().rss
        grown, over = [], threading.Event()

        def look():
            nonlocal peak
            while not over.wait(0.005):
                peak = max(peak, self.process.memory_info().rss)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield grown
        finally:
            over.set()
            looking.join()
            grown.append((peak - before) / MIB)

    def sessions(self) -> int:
        """How many it has."""
        [line] = [
            line
            for line in self.client.get("/metrics").text.splitlines()
            if line.startswith("rapport_sessions ")
        ]
        return int(line.split()[1])

    def opened(
        self, session: dict[str, Any] | None = None, compressed: bool = False
    ) -> tuple[socket.socket, ClientProtocol]:
        """The socket of a session, and how it speaks; it answers nothing by itself."""
        session = session or ticket(self.client)
        protocol = ClientProtocol(
            parse_uri(session["url"]),
            subprotocols=[wire.PROTOCOL, wire.TICKET + session["ticket"]],
            extensions=[ClientPerMessageDeflateFactory()] if compressed else None,
        )
        place = urlsplit(session["url"])
        stream = socket.create_connection((place.hostname, place.port), PATIENCE_S)
        protocol.send_request(protocol.connect())
        stream.sendall(b"".join(protocol.data_to_send()))
        read_until(Opcode.TEXT, stream, protocol)  # it is ready
        return stream, protocol


def read_until(opcode: Opcode, stream: socket.socket, protocol: ClientProtocol) -> None:
    """Until a frame of that kind came; raises `ConnectionError` at the end."""
    while not any(getattr(event, "opcode", None) == opcode for event in protocol.events_received()):
        data = stream.recv(MIB)
        if not data:
            raise ConnectionError
        protocol.receive_data(data)


@contextlib.contextmanager
def served():
    """A server that is ready."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench_hostile", str(port)],
        cwd=ROOT,
        env=environment() | {"OMP_NUM_THREADS": "1"},
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until = time.monotonic() + PATIENCE_S
            while True:
                assert process.poll() is None and time.monotonic() < until
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/readyz").is_success:
                        break
                time.sleep(0.1)
            yield Served(client, psutil.Process(process.pid))
    finally:
        process.kill()
        process.wait()


# -- Its clients --


@dataclass(frozen=True)
class Flood:
    """What became of it.

    Args:
        closed_s: until the server closed the socket.
        ended_s: until it let go of the connection, as its client heeds no close for a while.
        sent_mb: by then.
        grown_mib: memory of the server, at most.
    """

    closed_s: float
    ended_s: float
    sent_mb: float
    grown_mib: float


def flood(server: Served, message: bytes, compressed: bool = False) -> Flood:
    """A client that sends the same again and again, and does not stop where it is told to."""
    stream, protocol = server.opened(compressed=compressed)
    send = protocol.send_text if message.startswith(b"{") else protocol.send_binary
    send(message)
    one = b"".join(protocol.data_to_send())
    piece = one * max(65_536 // len(one), 1)
    sent = 0

    def sends():
        nonlocal sent
        with contextlib.suppress(OSError):
            while time.monotonic() - began < FLOODS_S:
                stream.sendall(piece)
                sent += len(piece)
                time.sleep(max(began + sent / RATE - time.monotonic(), 0))
            stream.shutdown(socket.SHUT_WR)

    with stream, server.watched() as grown:
        began = time.monotonic()
        sending = threading.Thread(target=sends)
        sending.start()
        read_until(Opcode.CLOSE, stream, protocol)
        closed = time.monotonic() - began
        with contextlib.suppress(ConnectionError):
            while stream.recv(MIB):
                pass
        ended = time.monotonic() - began
        sending.join()
    return Flood(closed, ended, sent / 1e6, grown[0])


def noise(server: Served, sockets: int, rng: np.random.Generator) -> float:
    """MiB by which memory grew while noise came on so many sockets, one after the other."""
    with server.watched() as grown:
        for _ in range(sockets):
            stream, protocol = server.opened()
            payload = rng.bytes(int(rng.integers(1, 60_000)))
            match rng.integers(3):
                case 0:
                    protocol.send_binary(payload)
                case 1:
                    part = Part(rng.choice(list(Kind)), int(rng.integers(2**63)), payload)
                    protocol.send_binary(wire.packed([part]))
                case 2:
                    protocol.send_text(json.dumps({"type": payload.hex()}).encode()[:60_000])
            protocol.send_text(b"no JSON")  # where the first was all right
            with stream, contextlib.suppress(OSError):
                stream.sendall(b"".join(protocol.data_to_send()))
                read_until(Opcode.CLOSE, stream, protocol)
    return grown[0]


@dataclass(frozen=True)
class Vanished:
    """What became of clients that say nothing any more, and never close.

    Args:
        most: that were there at the same time.
        gone_s: from when the last of them came until all had left.
        grown_mib: memory of the server, at most.
    """

    most: int
    gone_s: float
    grown_mib: float


def vanish(server: Served, clients: int) -> Vanished:
    """So many clients come, and are not heard of any more."""
    tickets = [ticket(server.client) for _ in range(clients)]
    with contextlib.ExitStack() as held, server.watched() as grown:
        for session in tickets:
            stream, _ = server.opened(session)
            held.enter_context(stream)
        last = time.monotonic()
        most = server.sessions()
        while server.sessions():
            assert time.monotonic() - last < PATIENCE_S
            time.sleep(0.05)
        gone = time.monotonic() - last
    return Vanished(most, gone, grown[0])


def main() -> None:
    with served() as server:
        flood(server, *FLOODS["sound"])  # what is made once is there
        print(vanish(server, 200), flush=True)
        grown = noise(server, 1200, np.random.default_rng(0))
        print(f"noise on 1200 sockets: {grown:.1f} MiB", flush=True)
        for name, (message, compressed) in FLOODS.items():
            print(name, flood(server, message, compressed), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(int(sys.argv[1]))
    else:
        main()
