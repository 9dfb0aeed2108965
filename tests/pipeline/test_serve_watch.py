"""Whoever talks is seen, too: small pictures become the motion that a policy perceives."""

import contextlib
import io
import sys
import threading
from dataclasses import dataclass, field, replace

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from rapport.actors import telemetry
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.data.video.faces import Models
from rapport.pipeline.data.video.watching import Watcher
from rapport.pipeline.serve import wire
from rapport.pipeline.serve.app import application
from rapport.pipeline.serve.engine import Engine
from rapport.pipeline.serve.eyes import WAITING, Eyes, Watch
from rapport.pipeline.serve.server import Server
from rapport.pipeline.serve.session import Session, SessionRequest
from rapport.pipeline.serve.settings import ServeSection
from rapport.pipeline.serve.wire import Kind, Part
from rapport.policies.head.asset import load_head
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Motion
from tests.calls import STRANGERS, tracks
from tests.chromium import CHROMIUM, Chromium
from tests.live_clients import Client, pcm, settle, sound_part, voice_of
from tests.on_port import on_port, until
from tests.small_flow import LATENTS, small_policy

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on PATH")
FPS = 25
LOOP_S = 8  # of the film that the browser's camera plays again and again
EDGE = 32  # pixels around the face, of 320; above it stands the picture's number, in bits
BITS = 8


# -- Eyes --


@dataclass
class Slow:
    """A watcher that looks when it is let, and notes what it saw."""

    seen: list = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def look(self, time, picture):
        self.gate.wait(10)
        if picture is None:
            raise ValueError("no picture")
        self.seen.append(time)


@pytest.fixture
def eyes(monkeypatch):
    monkeypatch.setattr("rapport.pipeline.serve.eyes.Landmarker", _Closed)
    monkeypatch.setattr("rapport.pipeline.serve.eyes.learnt", lambda head, landmarker: None)
    eyes = Eyes(load_head())
    yield eyes
    eyes.stop()


class _Closed:
    def close(self):
        pass


def test_sessions_take_turns_and_the_oldest_pictures_are_skipped(eyes):
    gate = threading.Event()
    many, few = Watch(Slow(gate=gate)), Watch(Slow(gate=gate))
    for number in range(10):
        eyes.see(many, number, 1)
    eyes.see(few, 0, 1)
    gate.set()
    until(lambda: few.watcher.seen and many.watcher.seen[-1:] == [9])
    assert many.watcher.seen[-WAITING:] == [7, 8, 9]
    assert eyes.skipped == 10 - len(many.watcher.seen)
    assert eyes.looked == len(many.watcher.seen) + 1


def test_what_looking_takes_is_recorded(eyes, monkeypatch):
    recorded = []
    monkeypatch.setattr(telemetry, "record", lambda metric, value: recorded.append((metric, value)))
    watch = Watch(Slow())
    watch.watcher.gate.set()
    eyes.see(watch, 0, 1)
    until(lambda: recorded)
    [(metric, seconds)] = recorded
    assert metric is telemetry.LOOK_SECONDS and seconds >= 0


def test_a_picture_that_cannot_be_looked_at_ends_nothing(eyes):
    watch = Watch(Slow())
    watch.watcher.gate.set()
    eyes.see(watch, 0, None)
    until(lambda: eyes.looked == 1)
    eyes.see(watch, 1, 1)
    until(lambda: watch.watcher.seen == [1])


# -- A session --


@dataclass
class Sure:
    """Eyes for which every picture is a face that does what the picture's brightness says."""

    layout: object = None

    def watch(self, layout):
        self.layout = layout
        return Watch(Watcher(_Found(), _Bright(layout), layout))

    def see(self, watch, time, picture):
        watch.watcher.look(time, picture)


class _Found:
    def find(self, picture):
        return picture


@dataclass
class _Bright:
    layout: object

    def features(self, faces):
        return np.array([[face.mean() / 255] for face in faces])

    def __call__(self, seen, usual):
        return np.tile(seen, (1, self.layout.dim)).astype(np.float32)


def jpeg(level, side=64):
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    return voice_of(small_policy(tmp_path_factory.mktemp("texts")))


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    engine.stop()


def talk(voice, engine, eyes, levels, motions=None):
    """A session that is shown a grey picture in every chunk, or is sent motion."""
    client = Client()
    session = Session("s", SessionRequest(), voice, engine, client, eyes=eyes)
    sound = pcm(np.random.default_rng(0).normal(size=voice.border(LATENTS)) / 10)
    for number, level in enumerate(levels):
        first, end = voice.border(number), voice.border(number + 1)
        if level is not None:
            session.hear(wire.packed([Part(Kind.PICTURE, first + 100, jpeg(level))]))
        if motions is not None and motions[number] is not None:
            session.hear(wire.packed([Part(Kind.MOTION, first, motions[number])]))
        session.hear(wire.packed([sound_part(sound[first:end], first)]))
        settle(engine)
        session.hear(wire.Ack(sample=end).model_dump_json())
    return session, client


def test_pictures_are_motion_to_a_policy_that_perceives_it(voice, engine):
    levels = [40, 200, None, 90, 90, 10]
    _, client = talk(voice, engine, Sure(), levels)
    read = {part.sample: part.payload for part in client.parts(Kind.SEEN)}
    assert list(read) == [voice.border(n) for n in (0, 1, 3, 4, 5)], "none where nothing was seen"
    layout = voice.policy.layout
    frames = np.frombuffer(read[voice.border(1)], "<f4").reshape(-1, layout.dim)
    np.testing.assert_allclose(frames[-1], 200 / 255, atol=0.01)
    sent = [read.get(voice.border(n)) for n in range(len(levels))]
    _, told = talk(voice, engine, None, [None] * len(levels), sent)
    a, b = (c.shown(layout).values for c in (client, told))
    np.testing.assert_array_equal(a, b)
    _, unseen = talk(voice, engine, Sure(), [None] * len(levels))
    assert np.abs(unseen.shown(layout).values - a).max() > 1e-4
    assert not unseen.parts(Kind.SEEN)


def test_motion_that_is_sent_counts_before_pictures(voice, engine):
    layout = voice.policy.layout
    sent = np.full((8, layout.dim), 0.7, "<f4").tobytes()
    _, both = talk(voice, engine, Sure(), [40, 40, 40], [sent] * 3)
    _, told = talk(voice, engine, None, [None] * 3, [sent] * 3)
    np.testing.assert_array_equal(both.shown(layout).values, told.shown(layout).values)
    assert not both.parts(Kind.SEEN)


# -- A server --


@contextlib.contextmanager
def serving(server):
    with on_port(application(server), log_level="warning") as (url, _):
        yield url


def served(**section):
    server = Server(ServeSection(**section), HeadConfig(), "r", b"secret of tickets", None)
    server.load({})
    return server


def test_a_server_without_eyes_wants_no_picture():
    server = served(sessions=1)
    with serving(server) as url:
        [policy] = httpx.get(f"{url}/v1/policies").json()["policies"]
        assert policy["camera"] is None
        files = {"file": ("film.mp4", b"film")}
        reply = httpx.post(f"{url}/v1/generations", files=files, data={"watch": "true"})
        assert reply.status_code == 422 and "serve.watch=true" in reply.text


def test_eyes_need_mediapipe(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(CorpusError, match="--no-deps -r infra/requirements/video.lock"):
        served(watch=True)


def test_a_policy_of_another_head_is_not_watched_and_that_is_said(eyes, monkeypatch):
    said = []
    server = served(sessions=1)
    [voice] = server.voices.values()
    server.eyes = eyes
    assert server.camera(voice)["reads"] == "face"
    monkeypatch.setattr("rapport.pipeline.serve.server.logger.warning", said.append)
    server._say_of_faces(voice)
    assert not said
    server.head = replace(server.head, topology="flame2023")
    assert server.camera(voice) is None
    server._say_of_faces(voice)
    assert len(said) == 1 and "perceives motion of builtin; those of flame2023" in said[0]


@pytest.fixture(scope="module")
def known():
    """(frames, dim) of a face that does one thing at a time, and comes round after 8 s."""
    layout = Models(load_head(), STRANGERS).layout
    asset = load_head()
    moments = np.arange(LOOP_S * FPS) / FPS
    values = np.zeros((len(moments), layout.dim), np.float32)
    turn = 2 * np.pi * moments / LOOP_S
    values[:, layout.columns("jaw")][:, 0] = 0.1 * (1 - np.cos(4 * turn))
    values[:, layout.columns("rot")][:, 0] = 0.12 * np.sin(2 * turn)
    values[:, layout.columns("rot")][:, 1] = 0.25 * np.sin(turn)
    smile = asset.arkit["mouthSmileLeft"][:50] + asset.arkit["mouthSmileRight"][:50]
    lasts = np.clip(4 * np.sin(turn + 1), 0, 1)
    values[:, layout.columns("expr")] = 0.8 * lasts[:, None] * smile
    for second in (1.2, 3.4, 6.0):
        shut = np.abs(moments - second) < 0.1
        values[shut, layout.columns("eyelid")] = 1.0
    return Motion(values, layout), lasts


@pytest.fixture(scope="module")
def camera(known, tmp_path_factory):
    """That face as Chromium's camera shows it, half as high as the picture."""
    motion, _ = known
    images = Models(load_head(), STRANGERS).pictured(4, motion).images
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    with av.open(str(path), "w", format="yuv4mpegpipe") as container:
        stream = container.add_stream("wrapped_avframe", rate=FPS)
        stream.width = stream.height = 320
        stream.pix_fmt = "yuv420p"
        for number, image in enumerate(images):
            whole = np.full((320, 320, 3), (90, 95, 100), np.uint8)
            whole[EDGE:-EDGE, EDGE:-EDGE] = image
            for bit in range(BITS):
                cell = slice(bit * 320 // BITS, (bit + 1) * 320 // BITS)
                whole[:EDGE, cell] = 255 * (number >> bit & 1)
            frame = av.VideoFrame.from_ndarray(whole, format="rgb24").reformat(format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _number(picture):
    """Which picture of the film the camera showed."""
    side = len(picture)
    row = picture[side * EDGE // 2 // 320].mean(axis=-1)
    bright = [row[round((bit + 0.5) * side / BITS)] > 127 for bit in range(BITS)]
    return sum(on << bit for bit, on in enumerate(bright))


@tracks
@needs_chromium
@pytest.mark.engine
@pytest.mark.timeout(300)
def test_a_face_before_the_camera_reaches_the_policy(camera, known, tmp_path, monkeypatch):
    """The browser's camera plays a face that is known; what the server reads of it is like it.

    Pictures say which they are: a busy machine plays the film slower, and looks at few of it.
    """
    read, seen = [], []
    look, motion_of = Watcher.look, Watcher.motion

    def looked(self, time, picture):
        look(self, time, picture)
        seen.append((time, _number(picture)))

    def noted(self, start, frames):
        known = list(seen)
        motion = motion_of(self, start, frames)
        read.append((start, motion, known))
        return motion

    monkeypatch.setattr(Watcher, "look", looked)
    monkeypatch.setattr(Watcher, "motion", noted)
    server = served(watch=True, sessions=1)
    with serving(server) as url, Chromium(tmp_path / "profile", camera=camera) as chromium:
        tab = chromium.open(url)
        tab.wait_for("policy.options.length > 0")
        assert tab.value("document.querySelector('#camera-choice').innerText.trim()") == (
            "Let it see my face: the server reads it off small pictures, and keeps none"
        )
        tab.click("#camera")
        tab.click("#start")
        tab.wait_for("seen.classList.contains('read')")
        until(lambda: len(read) > 2 * LOOP_S * FPS / 8, seconds=150)
        tab.screenshot(tmp_path / "seen.png")
        tab.click("#start")
        tab.wait_for("rapport.state === 'ended'")
        assert tab.complaints == []
    settled = [chunk for chunk in read if chunk[1] is not None and chunk[0] > 6]
    assert len(settled) > 0.8 * (len(read) - 6 / 0.32), "hardly a chunk without the face"
    found = _likeness(settled, *known)
    least = {"jaw": 0.8, "pitch": 0.8, "yaw": 0.9, "smile": 0.8}
    assert all(found[name] > bound for name, bound in least.items()), found


def _likeness(chunks, known, smiles):
    """Correlation of what was read with what was shown on the pictures it was read off."""
    smile = known.group("expr")[smiles.argmax()]

    def said(motion, smiling):
        return {
            "jaw": motion.group("jaw")[:, 0],
            "pitch": motion.group("rot")[:, 0],
            "yaw": motion.group("rot")[:, 1],
            "smile": smiling,
        }

    shown = said(known, smiles)
    pairs = []
    for start, motion, seen in chunks:
        times, numbers = np.array([picture for picture in seen if picture[0] < start + 0.32]).T
        clock = start + np.arange(len(motion)) / FPS
        read = said(motion, motion.group("expr") @ smile)
        held = {name: np.interp(clock, times, shown[name][numbers.astype(int)]) for name in read}
        pairs.append({name: (read[name], held[name]) for name in read})
    return {
        name: np.corrcoef(*np.concatenate([pair[name] for pair in pairs], axis=1))[0, 1]
        for name in shown
    }
