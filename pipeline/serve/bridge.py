"""From a live session to programs that show a face: who is heard, and who gets packets when."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rapport.pipeline.data.recording import Recording, open_recording
from rapport.pipeline.rundir import RunError
from rapport.pipeline.serve.client import Client, Wanted, in_real_time
from rapport.pipeline.serve.settings import TOKEN
from rapport.pipeline.settings import BridgeConfig
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.live import Chunk

PIPE = Path("-")
SLOWER = 3  # answers in a row that come late


@dataclass(frozen=True)
class Place:
    """Where packets go.

    Args:
        key: of the config.
        family: of its address.
        address: as sockets take it.
    """

    key: str
    family: int
    address: Any


@dataclass
class Bridged:
    """What came of it.

    Args:
        chunks: that were answered.
        frames: that were sent.
        late: frames that were not, since their answer came after their time.
        sessions: more than one where a session was lost and gone on with.
        delay_s: by which a frame is shown later than the sound that it belongs to, at the end.
        policy: that listened.
        simulated: whether it was trained on synthetic people.
        places: whom it was sent to.
    """

    chunks: int = 0
    frames: int = 0
    late: int = 0
    sessions: int = 0
    delay_s: float = 0.0
    policy: str = ""
    simulated: bool = False
    places: list[str] = field(default_factory=list)


def open_speaker(config: BridgeConfig) -> Recording | None:
    """The recording; None where a pipe is listened to.

    Raises:
        RunError: nobody is named, or the pipe is none. So do the errors of a recording.
    """
    if config.speaker is None:
        raise RunError("bridge needs speaker=RECORDING, or speaker=- for sound from a pipe")
    if config.speaker != PIPE:
        return open_recording(config.speaker, config.audio)
    if config.audio is not None:
        raise RunError(f"speaker=- has its own sound: leave audio={config.audio} out")
    return None


def open_places(config: BridgeConfig) -> list[Place]:
    """Whom packets go to.

    Raises:
        RunError: nobody is named, a host is not known, or python-osc is not installed.
    """
    if not config.addresses:
        raise RunError("bridge needs osc=HOST:PORT, vmc=HOST:PORT or livelink=HOST:PORT")
    if importlib.util.find_spec("pythonosc") is None:
        raise RunError("bridge needs the package python-osc: pip install 'rapport-rlhf[bridge]'")
    places: list[Place] = []
    for key, address in config.addresses.items():
        host, _, port = address.rpartition(":")
        try:
            found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        except OSError as error:
            raise RunError(f"{key}={address}: {error.strerror or error}") from error
        family, *_, where = found[0]
        places.append(Place(key, family, where))
    return places


async def bridge(
    config: BridgeConfig,
    say: Callable[[str], None],
    pipe: BinaryIO | None = None,
) -> Bridged:
    """Say all there is to say in real time, and send each frame at its time.

    Args:
        config: of the recipe.
        say: tells of progress.
        pipe: for speaker=-, not buffered; None = the standard input.

    Raises:
        RunError: nothing was said, or the server hears at another rate.
        ClientError: there is no session to be had.
    """
    places = open_places(config)
    recording = open_speaker(config)
    wanted = Wanted(config.policy, config.seed, config.text, config.lead, ("arkit",))
    client = Client(config.server, wanted, token=os.environ.get(TOKEN) or None)
    # All is ready before the session is: its server does not wait for the first chunk.
    with _sender(places, config.name) as send:
        async with client:
            session = client.session
            if session.rate != AUDIO_RATE:
                raise RunError(f"{config.server} hears {session.rate} samples a second, not 16,000")
            if recording is None:
                chunks = _from_pipe(pipe or sys.stdin.buffer, client)
            else:
                reads = ("speaker_audio", "speaker")
                chunks = in_real_time(recording.chunks(session.chunk_s, reads), client)
            done = Bridged(
                delay_s=session.delay_s + config.buffer_s,
                policy=session.policy,
                simulated=session.simulated,
                places=[f"{key} {address}" for key, address in config.addresses.items()],
            )
            say(f"{session.policy} at {config.server}; frames are sent {done.delay_s:g} s later")
            await _play(client, chunks, partial(send, session.fps), done, config.buffer_s)
            done.sessions = client.sessions
    if not done.chunks:
        raise RunError(f"speaker={config.speaker}: no whole chunk was heard")
    return done


async def _play(
    client: Client,
    chunks: AsyncIterator[Chunk],
    send: Callable[[np.ndarray, float], None],
    done: Bridged,
    buffer_s: float,
) -> None:
    """Send each frame when it is to be shown; one that comes later than the next is left out.

    Where answers come late one after the other, the way has become longer, or the clock of who
    talks is slow: all is shown later from then on.
    """
    clock = asyncio.get_running_loop()
    rate, fps = client.session.rate, client.session.fps
    midnight = _since_midnight() - clock.time()
    in_a_row = 0
    async for answer in client.converse(chunks):
        done.chunks += answer.chunk is not None
        assert answer.arkit is not None
        behind = clock.time() - (client.begins + done.delay_s + answer.sample / rate)
        in_a_row = in_a_row + 1 if behind > 1 / fps else 0
        if in_a_row == SLOWER:
            done.delay_s += behind + buffer_s
            in_a_row = 0
        for number, values in enumerate(answer.arkit):
            due = client.begins + done.delay_s + answer.sample / rate + number / fps
            wait = due - clock.time()
            if wait < -1 / fps:
                done.late += 1
                continue
            await asyncio.sleep(max(wait, 0))
            send(values, due + midnight)
            done.frames += 1


@contextmanager
def _sender(places: list[Place], name: str) -> Iterator[Callable[[float, np.ndarray, float], None]]:
    """Sends to all places: frames a second, a frame (61,), and its time in seconds since midnight.

    Args:
        places: that get packets.
        name: of the face.
    """
    from rapport.pipeline.serve import packets  # python-osc is an extra

    def send(fps: float, values: np.ndarray, seconds: float) -> None:
        made: dict[str, Callable[[], list[bytes]]] = {
            "osc": partial(packets.osc, values),
            "vmc": partial(packets.vmc, values),
            "livelink": lambda: [packets.livelink(values, seconds, fps, name)],
        }
        for place in places:
            for packet in made[place.key]():
                sockets[place.family].sendto(packet, place.address)

    families = {place.family for place in places}
    sockets = {family: socket.socket(family, socket.SOCK_DGRAM) for family in families}
    try:
        yield send
    finally:
        for each in sockets.values():
            each.close()


async def _from_pipe(pipe: BinaryIO, client: Client) -> AsyncIterator[Chunk]:
    """Chunks as they come. What came before the session began is not heard."""
    clock = asyncio.get_running_loop()
    await asyncio.sleep(max(client.begins - clock.time(), 0))
    os.set_blocking(pipe.fileno(), False)
    with suppress(BlockingIOError):
        while os.read(pipe.fileno(), 1 << 16):
            pass
    client.begins = clock.time()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    try:
        transport, _ = await clock.connect_read_pipe(lambda: protocol, pipe)
    except ValueError as error:
        raise RunError("speaker=-: a file is no pipe, name it: speaker=FILE") from error
    try:
        for number in itertools.count():
            samples = client.session.border(number + 1) - client.session.border(number)
            sound = await reader.readexactly(2 * samples)
            yield Chunk(audio=np.frombuffer(sound, "<i2").astype(np.float32) / 32768)
    except asyncio.IncompleteReadError:
        return  # less than a chunk is left
    finally:
        transport.close()


def _since_midnight() -> float:
    now = time.time()
    local = time.localtime(now)
    return local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec + now % 1
