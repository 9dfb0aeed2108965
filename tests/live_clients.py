"""What tests of live sessions share: a voice, a clock that is set, a client without a socket."""

import functools
import json
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from rapport.pipeline.serve import wire
from rapport.pipeline.serve.engine import Voice
from rapport.pipeline.serve.session import Session, SessionRequest
from rapport.pipeline.serve.voices import start_of
from rapport.pipeline.serve.wire import Kind, Part
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.flow.conditions import LEADS
from rapport.policies.motion import Motion

WAIT_S = 30.0


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 100.0

    def __call__(self):
        return self.now


def voice_of(policy, lead=8, name="small"):
    """A policy as a server has it, without measuring."""
    features = policy.features
    policy = policy.with_sampler(lead=lead)
    policy.__dict__["features"] = features
    listener = policy.live()
    return Voice(
        name=name,
        policy=policy,
        listener=listener,
        rig=None,
        start=functools.partial(start_of, listener, True),
        delay=dict.fromkeys((None, *LEADS), 0.48),
        act_type="<f4",
        costs={1: 0.001, 8: 0.004},
        simulated=True,
    )


@dataclass
class Client:
    """The other end of a session, as its channel: it keeps what it is sent."""

    texts_only: bool = False
    messages: list = field(default_factory=list)
    closed: tuple | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def send(self, message):
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def close(self, code, reason):
        with self._changed:
            self.closed = (code, reason)
            self._changed.notify_all()

    @property
    def texts(self):
        return [json.loads(m) for m in self.messages if isinstance(m, str)]

    def parts(self, kind):
        whole = [wire.unpacked(m) for m in self.messages if isinstance(m, bytes)]
        return [part for parts in whole for part in parts if part.kind == kind]

    def until(self, what):
        """Wait until something holds; the engine answers in a thread of its own."""
        with self._changed:
            assert self._changed.wait_for(lambda: what(self), WAIT_S), self.texts
        return self

    def shown(self, layout):
        """All frames, which follow each other without a gap."""
        pieces, due = [], None
        for part in self.parts(Kind.SHOWN):
            values = np.frombuffer(part.payload, "<f4").reshape(-1, layout.dim)
            first = round(part.sample * layout.fps / AUDIO_RATE)
            assert due is None or first == due
            due = first + len(values)
            pieces.append(values)
        return Motion(np.concatenate(pieces), layout)


def begin(voice, engine, client=None, **asked):
    client = client or Client()
    return Session("s", SessionRequest(**asked), voice, engine, client), client


def pcm(sound):
    return (np.clip(sound, -1, 1) * 32767).round().astype("<i2")


def heard(pcm_values):
    """What a server makes of samples."""
    return pcm_values.astype(np.float32) / 32768


def sound_part(pcm_values, sample):
    return Part(Kind.SOUND, sample, pcm_values.tobytes())


def say(session, pcm_values, first=0, ack=True):
    """Send sound chunk by chunk, and show what comes back."""
    chunk = 0
    while session.voice.border(chunk) < first:
        chunk += 1
    end = first + len(pcm_values)
    while session.voice.border(chunk + 1) <= end:
        start, stop = session.voice.border(chunk), session.voice.border(chunk + 1)
        part = sound_part(pcm_values[start - first : stop - first], start)
        session.hear(wire.packed([part]))
        if ack:
            settle(session._engine)
            session.hear(wire.Ack(sample=start).model_dump_json())
        chunk += 1
    return chunk


def settle(engine):
    """Wait until the engine has nothing to do."""
    deadline = time.monotonic() + WAIT_S
    while engine.waiting():
        assert time.monotonic() < deadline
        time.sleep(0.002)
