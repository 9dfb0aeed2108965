"""The page of a live listener in a real browser, before a small server that speaks the protocol."""

import asyncio
import contextlib
import hashlib
import json
import math
import re
import time
import wave
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from scipy.spatial.transform import Rotation

from rapport.pipeline.serve import wire
from rapport.pipeline.serve.doors import SECURITY_HEADERS
from rapport.pipeline.serve.settings import PAGE
from rapport.policies.head.asset import load_head
from rapport.policies.head.gltf import write_glb
from rapport.policies.head.livelink import CHANNELS
from rapport.policies.motion import Layout, Motion
from tests.chromium import CHROMIUM, PHONE, Chromium
from tests.on_port import on_port, until
from tests.recordings import write_wav

RATE = 16000
CHUNK = 5120
FRAMES = 8  # in a chunk
STEP = CHUNK // FRAMES
TOKEN = "a token of the test"
VENDOR = PAGE / "vendor" / "three"
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (apt-get install chromium) or Chrome on PATH"
)


def jaw(sample):
    """How far the face of the test opens its jaw: up and down in 4 s, without corners."""
    return 0.5 - 0.5 * np.cos(2 * math.pi * sample / (4 * RATE))


def yaw(sample):
    return 0.3 * np.sin(2 * math.pi * sample / (4 * RATE))


def face_of(first, step=STEP):
    """(FRAMES, 61) of a chunk of frames from sample `first` on."""
    samples = first + step * np.arange(FRAMES)
    values = np.zeros((FRAMES, len(CHANNELS)), np.float32)
    values[:, CHANNELS.index("JawOpen")] = jaw(samples)
    values[:, CHANNELS.index("HeadYaw")] = yaw(samples)
    values[:, CHANNELS.index("LeftEyePitch")] = 0.2
    values[:, CHANNELS.index("EyeLookDownLeft")] = 0.33
    return values


@dataclass
class Listener:
    """What the server of the test heard, and what it is told to do."""

    wishes: list = field(default_factory=list)  # bodies of POST /v1/sessions
    sound: dict = field(default_factory=dict)  # first sample -> int16
    texts: list = field(default_factory=list)
    pictures: list = field(default_factory=list)
    shown_again: list = field(default_factory=list)  # pictures of the past
    said_again: dict = field(default_factory=dict)  # first sample of the past -> int16
    went: list = field(default_factory=list)  # per session that goes on: [(sample, act, ...)]
    loop: asyncio.AbstractEventLoop | None = None  # that the sockets live in
    server: uvicorn.Server | None = None
    killed: int = 0
    sees: str = ""  # "pictures", or "face", which it reads in chunks of even numbers
    token: str = ""
    fps: float = 25.0
    memory_s: float = 1.6
    simulated: bool = True
    recorded: bool = False
    silent: bool = False  # answers nothing
    late: bool = False  # says of chunks of odd numbers that it heard silence
    fails: bool = False  # the policy does, in every chunk
    full: int = 0  # so many sessions are refused
    slow_s: float = 0.0  # that it takes to give a ticket
    ws: WebSocket | None = None  # of the session that began last

    @property
    def chunk(self):
        """Samples of a chunk, which may be no whole number."""
        return FRAMES * RATE / self.fps

    def border(self, number):
        """First sample of a chunk."""
        return round(number * self.chunk)

    def cut(self):
        """Aborts all sockets, as a killed replica does."""

        def abort():
            for connection in list(self.server.server_state.connections):
                if "WebSocket" in type(connection).__name__:
                    connection.transport.abort()

        self.loop.call_soon_threadsafe(abort)

    def say(self, text):
        """Sends a text in the session that began last."""
        self._wait_for(self.ws.send_text(text.model_dump_json()))

    def answer_silence(self, number):
        """Answers a chunk that was not said."""
        act = wire.Part(wire.Kind.ACT, self.border(number), b"silence", wire.LATE)
        self._wait_for(self.ws.send_bytes(wire.packed([act])))

    def _wait_for(self, sent):
        asyncio.run_coroutine_threadsafe(sent, self.loop).result(10)

    def heard(self):
        """(samples,) of int16 without a hole, from sample 0 on."""
        assert sorted(self.sound) == [self.border(n) for n in range(len(self.sound))]
        return np.concatenate([self.sound[sample] for sample in sorted(self.sound)])


def app_of(listener, head):
    app = FastAPI()

    @app.middleware("http")
    async def headers(request, call_next):
        response = await call_next(request)
        response.headers.update(SECURITY_HEADERS)
        return response

    @app.get("/head.glb")
    def glb():
        return FileResponse(head, media_type="model/gltf-binary")

    @app.get("/v1/policies")
    def policies():
        camera = {"reads": listener.sees, "side": 224, "every_s": 0.2}
        policy = {
            "name": "listener",
            "kind": "flow",
            "reads": ["speaker_audio"],
            "camera": camera if listener.sees else None,
            "takes_text": True,
            "simulated": listener.simulated,
        }
        return {"policies": [policy], "demo": True}

    @app.post("/v1/demo/kill", status_code=204)
    def kill():
        listener.killed += 1

    @app.post("/v1/sessions")
    async def sessions(request: Request):
        if listener.token and request.headers.get("Authorization") != f"Bearer {listener.token}":
            return JSONResponse({"message": "a token is wanted"}, 401)
        if listener.full:
            listener.full -= 1
            return JSONResponse({}, 503, {"Retry-After": "1"})
        listener.wishes.append(await request.json())
        await asyncio.sleep(listener.slow_s)
        return {
            "id": "1",
            "ticket": f"number{listener.wishes[-1]['number']}",
            "expires_s": 60,
            "url": f"ws://{request.headers['host']}/v1/live",
            "policy": "listener",
            "seed": 7,
            "rate": RATE,
            "chunk_samples": listener.chunk,
            "fps": listener.fps,
            "layout": {},
            "delay_s": 0.0,
            "memory_s": listener.memory_s,
            "recorded": listener.recorded,
            "simulated": listener.simulated,
        }

    @app.websocket("/v1/live")
    async def live(ws: WebSocket):
        protocol, ticket = ws.scope["subprotocols"]
        assert protocol == wire.PROTOCOL and ticket.startswith(wire.TICKET)
        await ws.accept(wire.PROTOCOL)
        number = int(ticket.removeprefix(wire.TICKET + "number"))
        await ws.send_text(wire.Ready(id="1", number=number, wait_s=0.1).model_dump_json())
        await ws.send_text(
            wire.Stats(late=1, dropped=2, sessions=3, answer_s=0.01).model_dump_json()
        )
        listener.loop = asyncio.get_running_loop()
        listener.ws = ws
        with contextlib.suppress(WebSocketDisconnect):
            await serve(ws, number)

    async def serve(ws, number):
        past = 0
        while True:
            message = await ws.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect
            if message.get("text"):
                said = wire.said(message["text"])
                listener.texts.append(said)
                if isinstance(said, wire.Went):
                    past = said.chunks
                    listener.went.append([])
                if isinstance(said, wire.End):
                    await ws.close(wire.ENDED)
                    return
                continue
            parts = wire.unpacked(message["bytes"])
            if past and parts[0].kind == wire.Kind.PICTURE:
                listener.shown_again += parts
                continue
            if past:
                *seen, sound, act = parts
                assert (sound.kind, act.kind) == (wire.Kind.SOUND, wire.Kind.ACT)
                first, end = (listener.border(number - past + n) for n in (0, 1))
                assert sound.sample == act.sample == first
                assert len(sound.payload) == 2 * (end - first)
                assert all(part.kind == wire.Kind.MOTION for part in seen)
                listener.said_again[first] = np.frombuffer(sound.payload, "<i2")
                faces = [part.payload for part in seen]
                listener.went[-1].append((act.sample, act.payload, *faces))
                past -= 1
                continue
            [part] = parts
            if part.kind == wire.Kind.PICTURE:
                listener.pictures.append(part)
                continue
            assert part.kind == wire.Kind.SOUND
            assert part.sample == listener.border(number), "chunks come in order, each once"
            number += 1
            listener.sound[part.sample] = np.frombuffer(part.payload, "<i2")
            if listener.fails:
                error = wire.Error(code="failed", message="the policy failed; go on elsewhere")
                await ws.send_text(error.model_dump_json())
                await ws.close(wire.FAILED)
                return
            if not listener.silent:
                flags = wire.LATE if listener.late and not number % 2 else 0
                await ws.send_bytes(wire.packed(answer_to(part.sample, flags)))

    # What is heard of a chunk is shown at once: the frames of the chunk itself.
    def answer_to(sample, flags):
        act = wire.Part(wire.Kind.ACT, sample, f"act{sample}".encode(), flags)
        face = face_of(sample, RATE / listener.fps)
        parts = [wire.Part(wire.Kind.ARKIT, sample, face.tobytes()), act]
        if listener.sees == "face" and sample % (2 * CHUNK) == 0:
            parts.append(wire.Part(wire.Kind.SEEN, sample, f"face{sample}".encode()))
        return parts

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    asset = load_head()
    path = tmp_path_factory.mktemp("head") / "head.glb"
    write_glb(path, Motion(np.zeros((1, 3)), Layout((("rot", 3),), 25, asset.topology)), asset)
    return path


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    """Noise in syllables: 3.1 s that are like themselves at no other lag."""
    rng = np.random.default_rng(0)
    time_s = np.arange(int(3.1 * RATE)) / RATE
    sound = rng.normal(size=len(time_s)) * (0.6 + 0.4 * np.sin(2 * math.pi * 3 * time_s))
    spectrum = np.fft.rfft(sound)
    spectrum[np.fft.rfftfreq(len(sound), 1 / RATE) > 1000] = (
        0  # the same where lags are parts of a sample
    )
    sound = np.fft.irfft(spectrum, len(sound))
    samples = (8000 * sound / np.abs(sound).max()).astype("<i2")
    return write_wav(tmp_path_factory.mktemp("voice") / "voice.wav", samples, RATE)


def samples_of(path):
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


@pytest.fixture(scope="module")
def browser(tmp_path_factory, voice):
    with Chromium(tmp_path_factory.mktemp("profile"), voice) as browser:
        yield browser


@pytest.fixture
def chromium(browser):
    yield browser
    browser.close_pages()


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def address(listener, head):
    app = app_of(listener, head)
    with on_port(app, force=True, log_level="warning", lifespan="off") as (url, listener.server):
        yield url


def test_the_columns_are_those_of_live_link_face():
    text = (PAGE / "arkit.js").read_text()
    [weights, angles] = re.findall(r"= `(.*?)`;", text, re.DOTALL)
    assert tuple(f"{weights} {angles}".split()) == CHANNELS


def test_vendored_files_are_those_that_were_looked_at():
    lines = re.findall(
        r"^([0-9a-f]{64})  (\S+)$", (VENDOR / "HASHES.txt").read_text(), re.MULTILINE
    )
    assert {name for _, name in lines} == {file.name for file in VENDOR.iterdir()} - {"HASHES.txt"}
    for digest, name in lines:
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name
    assert "MIT" in (VENDOR / "LICENSE").read_text()


def test_every_import_is_by_a_relative_path():
    for file in PAGE.rglob("*.js"):
        text = file.read_text()
        modules = re.findall(
            r"""^(?:import|export|\})[^;'"]*?from\s*['"]([^'"]+)['"]""", text, re.M
        )
        for module in modules:
            assert module.startswith(("./", "../")), f"{file.name} imports {module}"
            fetched = "vendor/ort/" in module  # by `make web`
            assert fetched or (file.parent / module).is_file(), f"{file.name} imports {module}"


def started(chromium, address, **options):
    tab = chromium.open(address, **options)
    tab.wait_for("Object.keys(rapport.weights()).length > 0 && policy.options.length > 0")
    tab.click("#start")
    return tab


def playing(tab):
    tab.wait_for("rapport.stats.playout === 'plays'")


def shown_now(tab):
    """The sample that is shown, the jaw's weight and the turns of joints, at one moment."""
    return tab.wait_for(
        "rapport.stats.steady && [rapport.stats.shown, rapport.weights().jawOpen, rapport.turns()]"
    )


def only_from(tab, address):
    hosts = {urlsplit(url).netloc for url in tab.urls if not url.startswith(("blob:", "data:"))}
    return hosts == {urlsplit(address).netloc}


@needs_chromium
def test_the_face_moves_as_the_answers_say_and_nobody_else_is_asked(chromium, listener, address):
    tab = started(chromium, address)
    playing(tab)
    tab.wait_for("rapport.stats.shown > 16000")
    jaws = []
    while len(jaws) < 25:
        sample, weight, turns = shown_now(tab)
        # A cubic is as near as this between frames.
        assert weight == pytest.approx(jaw(sample), abs=0.01)
        neck = Rotation.from_euler("YXZ", [-yaw(sample), 0, 0])
        assert (Rotation.from_quat(turns["neck"]) * neck.inv()).magnitude() < 0.01
        jaws.append(weight)
        time.sleep(0.1)
    assert np.ptp(jaws) > 0.2
    # Eyes turn by their joints or by their targets, not by both.
    eye = Rotation.from_euler("YXZ", [0, 0.2, 0])
    assert (Rotation.from_quat(turns["leftEye"]) * eye.inv()).magnitude() < 0.01
    assert tab.value("rapport.weights().eyeLookDownLeft") == 0
    assert only_from(tab, address)
    assert tab.complaints == []
    acks = [text.sample for text in listener.texts if isinstance(text, wire.Ack)]
    assert len(acks) > 1 and acks == sorted(acks)
    assert listener.pictures == []
    tab.click("#start")
    tab.wait_for("rapport.state === 'ended'")
    tab.wait_for("rapport.weights().jawOpen === 0")
    assert any(isinstance(text, wire.End) for text in listener.texts)


@needs_chromium
def test_the_page_opens_sockets_to_its_own_server_only(chromium, listener, address):
    tab = chromium.open(address)
    forbidden = tab.value(
        """new Promise((told) => {
            document.onsecuritypolicyviolation = (event) => told(event.effectiveDirective);
            const elsewhere = new WebSocket("ws://127.0.0.1:9/");
            elsewhere.onerror = () => setTimeout(told, 1000, "nothing");
        })"""
    )
    assert forbidden == "connect-src"


@needs_chromium
def test_what_arrives_is_what_the_microphone_heard(chromium, listener, address, voice):
    tab = started(chromium, address)
    tab.wait_for(f"rapport.stats.answered * {CHUNK} > {5 * RATE}")
    tab.click("#start")
    heard = listener.heard()[-3 * CHUNK :].astype(float)
    told = np.tile(samples_of(voice), 3).astype(float)
    # Chromium's fake microphone plays the file on and on, from anywhere on.
    likeness = np.array(
        [
            np.corrcoef(heard[:CHUNK], told[lag : lag + CHUNK])[0, 1]
            for lag in range(0, len(told) // 2)
        ]
    )
    assert likeness.max() > 0.95


BUSY = """{ // for a while after each message to the thread of sound
    const post = MessagePort.prototype.postMessage;
    MessagePort.prototype.postMessage = function (...message) {
        post.apply(this, message);
        const until = performance.now() + 300;
        while (performance.now() < until);
    };
}"""


@needs_chromium
@pytest.mark.parametrize("page", ["at rest", "busy"])
def test_a_file_is_heard_sample_by_sample_and_ends_by_itself(
    chromium, listener, address, voice, page
):
    tab = chromium.open(address)
    if page == "busy":
        tab.value(BUSY)
    tab.wait_for("policy.options.length > 0")
    tab.choose_file("#file", voice)
    tab.wait_for("filename.textContent === 'voice.wav'")
    tab.click("#start")
    tab.wait_for("rapport.state === 'ended'")
    told = samples_of(voice)
    heard = listener.heard()
    assert len(heard) == math.ceil(len(told) / CHUNK) * CHUNK
    np.testing.assert_array_equal(heard[: len(told)], told)
    assert not heard[len(told) :].any()
    assert isinstance(listener.texts[-1], wire.End)


@needs_chromium
@pytest.mark.parametrize("way", ["cut", "move"])
def test_it_goes_on_with_what_it_kept(chromium, listener, address, way):
    tab = started(chromium, address)
    tab.wait_for("rapport.stats.answered >= 7")
    if way == "cut":
        listener.cut()
    else:
        listener.say(wire.Move())
    tab.wait_for("rapport.stats.went_on === 1")
    first, second = listener.wishes
    answered = second["number"]
    assert answered >= 7
    assert (first["number"], first["seed"]) == (0, 0)
    assert second["seed"] == 7, "as the first server said"
    # memory_s is five chunks.
    kept = [(CHUNK * n, f"act{CHUNK * n}".encode()) for n in range(answered - 5, answered)]
    tab.wait_for(f"rapport.stats.answered > {answered} + 3")
    assert listener.went == [kept]
    listener.heard()  # has no hole
    sample, weight, _ = shown_now(tab)
    assert weight == pytest.approx(jaw(sample), abs=0.01)
    assert tab.value("rapport.state") == "listening"
    assert tab.complaints == []


@needs_chromium
def test_a_page_that_is_stopped_while_it_connects_can_be_started_again(chromium, listener, address):
    listener.slow_s = 1.0
    tab = started(chromium, address)
    until(lambda: listener.wishes)
    tab.wait_for("rapport.state === 'connecting' && !start.disabled")
    tab.click("#start")
    tab.wait_for("rapport.state === 'ended'")
    time.sleep(2)
    assert tab.value("[rapport.state, start.textContent]") == ["ended", "Start"]
    listener.slow_s = 0.0
    tab.click("#start")
    tab.wait_for("rapport.stats.answered >= 2")
    assert tab.complaints == []


@needs_chromium
def test_sound_that_a_telephone_pauses_goes_on_where_it_was(chromium, listener, address):
    tab = chromium.open(address)
    tab.value(
        "window.AudioContext = class extends AudioContext {"
        " constructor(...given) { super(...given); window.context = this; } }; 0"
    )
    tab.wait_for("!start.disabled")
    tab.click("#start")
    tab.wait_for("rapport.stats.answered >= 7")
    tab.value("context.suspend(); 0")
    until(lambda: listener.ws.client_state.name == "DISCONNECTED")
    said = len(listener.sound)
    time.sleep(1)
    assert len(listener.wishes) == 1, "it waits"
    tab.value("context.resume(); 0")
    tab.wait_for("rapport.stats.went_on === 1 && rapport.state === 'listening'")
    assert listener.wishes[1]["number"] in (said - 1, said)
    # Frozen with its sound, a page hears of silence only when it wakes.
    tab.wait_for(f"rapport.stats.answered >= {said + 3}")
    said = len(listener.sound)
    for number in range(said + 1, said + 6):
        listener.answer_silence(number)
    tab.value("context.suspend(); 0")
    until(lambda: listener.ws.client_state.name == "DISCONNECTED")
    tab.value("context.resume(); 0")
    tab.wait_for(f"rapport.stats.went_on === 2 && rapport.stats.answered > {said + 8}")
    assert listener.wishes[2]["number"] <= said + 3
    listener.heard()  # has no hole
    assert tab.complaints == []


@needs_chromium
def test_chunks_of_no_whole_number_of_samples(chromium, listener, address):
    listener.fps = 30.0
    tab = started(chromium, address)
    tab.wait_for("rapport.stats.answered >= 7")
    listener.cut()
    tab.wait_for("rapport.stats.went_on === 1")
    answered = listener.wishes[1]["number"]
    tab.wait_for(f"rapport.stats.answered > {answered} + 3")
    assert len(listener.heard()) == listener.border(len(listener.sound))
    playing(tab)
    sample, weight, _ = shown_now(tab)
    assert weight == pytest.approx(jaw(sample), abs=0.01)
    assert tab.complaints == []


@needs_chromium
def test_what_was_read_of_the_face_goes_on_as_motion(chromium, listener, address):
    listener.sees = "face"
    tab = started(chromium, address)
    tab.wait_for("rapport.stats.answered >= 7")
    listener.cut()
    tab.wait_for("rapport.stats.went_on === 1")
    answered = listener.wishes[1]["number"]
    samples = [CHUNK * n for n in range(answered - 5, answered)]
    faces = [[f"face{n}".encode()] if n % (2 * CHUNK) == 0 else [] for n in samples]
    tab.wait_for(f"rapport.stats.answered > {answered}")
    assert listener.went == [
        [(n, f"act{n}".encode(), *face) for n, face in zip(samples, faces, strict=True)]
    ]


@needs_chromium
def test_where_silence_was_heard_silence_is_told_again(chromium, listener, address):
    listener.late = True
    tab = started(chromium, address)
    tab.wait_for("rapport.stats.answered >= 7")
    listener.cut()
    tab.wait_for("rapport.stats.went_on === 1 && rapport.stats.answered >= 10")
    assert len(listener.said_again) == 5
    for sample, sound in listener.said_again.items():
        if sample // CHUNK % 2:
            assert not sound.any()
        else:
            np.testing.assert_array_equal(sound, listener.sound[sample])


@needs_chromium
def test_the_text_of_the_moment_is_asked_for_again(chromium, listener, address):
    """What was told before a chunk that was not answered is told again before that."""
    tab = started(chromium, address)
    tab.wait_for("rapport.stats.answered >= 3")
    listener.silent = True
    tab.value("text.value = 'sad'; text.dispatchEvent(new Event('change'))")
    sad = wire.Told(text="sad")
    until(lambda: sad in listener.texts)
    said = len(listener.sound)
    until(lambda: len(listener.sound) > said + 1)
    listener.silent = False
    listener.cut()
    tab.wait_for("rapport.stats.went_on === 1")
    until(lambda: listener.texts.count(sad) == 2)
    assert "text" not in listener.wishes[1]
    answered = listener.wishes[1]["number"]
    tab.wait_for(f"rapport.stats.answered > {answered} + 3")
    listener.cut()
    until(lambda: len(listener.wishes) == 3)
    assert listener.wishes[2]["text"] == "sad"
    assert listener.texts.count(sad) == 2


@needs_chromium
def test_a_text_that_changes_before_the_server_has_room_reaches_it(chromium, listener, address):
    listener.full = 1000
    tab = started(chromium, address)
    tab.wait_for("rapport.state === 'connecting' && !start.disabled")
    tab.value("text.value = 'sad'; text.dispatchEvent(new Event('change'))")
    assert listener.wishes == []
    listener.full = 0
    until(lambda: listener.sound)
    assert listener.texts[0] == wire.Told(text="sad"), "before anything was heard"


@needs_chromium
def test_a_listener_that_sees_is_shown_the_pictures_again(chromium, listener, address):
    listener.sees = "pictures"
    listener.memory_s = 60.0
    tab = chromium.open(address)
    tab.wait_for("policy.options.length > 0")
    tab.click("#camera")
    tab.click("#start")
    until(lambda: listener.pictures)
    tab.wait_for(f"rapport.stats.answered > {listener.pictures[0].sample // CHUNK + 1}")
    listener.cut()
    tab.wait_for("rapport.stats.went_on === 1")
    answered = listener.wishes[1]["number"]
    tab.wait_for(f"rapport.stats.answered > {answered}")
    assert listener.pictures[0] in listener.shown_again
    assert all(picture in listener.pictures for picture in listener.shown_again)


@needs_chromium
def test_where_a_policy_fails_again_and_again_patience_ends(chromium, listener, address):
    tab = started(chromium, address)
    tab.wait_for("rapport.stats.answered >= 3")
    listener.fails = True
    tab.wait_for("rapport.stats.went_on >= 2")
    tab.value("const now = performance.now.bind(performance); performance.now = () => now() + 60e3")
    tab.wait_for("rapport.state === 'failed'")
    assert tab.value("says.textContent") == "the policy failed; go on elsewhere"


@needs_chromium
def test_without_answers_the_face_dims_and_comes_to_rest(chromium, listener, address):
    tab = started(chromium, address)
    playing(tab)
    tab.wait_for("rapport.weights().jawOpen > 0.5")
    listener.silent = True
    tab.wait_for("face.classList.contains('late')")
    tab.wait_for("rapport.weights().jawOpen === 0")
    listener.silent = False
    playing(tab)
    tab.wait_for("!face.classList.contains('late')")


@needs_chromium
def test_a_token_is_asked_for_and_kept_in_memory_only(chromium, listener, address):
    listener.token = TOKEN
    tab = started(chromium, address)
    tab.wait_for("asks.open")
    tab.value(f"token.value = {TOKEN!r}")
    tab.click("#asks button.main")
    playing(tab)
    assert tab.value("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


@needs_chromium
def test_pictures_leave_only_for_a_listener_that_sees_and_who_lets_it(chromium, listener, address):
    listener.sees = "pictures"
    tab = chromium.open(address)
    tab.wait_for("policy.options.length > 0")
    assert tab.value("getComputedStyle(unseen).display") == "none"
    tab.click("#start")
    tab.wait_for("rapport.stats.answered >= 3")
    assert listener.pictures == []
    tab.click("#start")
    tab.wait_for("rapport.state === 'ended'")
    listener.sound.clear()
    tab.click("#camera")
    tab.click("#start")
    until(lambda: len(listener.pictures) >= 3)
    for picture in listener.pictures:
        assert picture.payload.startswith(b"\xff\xd8") and len(picture.payload) < 40_000
        assert picture.sample > 0


ASKS = """
  const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wants) => {
    if (!wants.video) return ask(wants);
    GIVES
  };
"""


@needs_chromium
@pytest.mark.parametrize(
    ("gives", "says"),
    [
        ("throw new DOMException('none', 'NotFoundError');", "There is no camera"),
        ("throw new DOMException('no', 'NotAllowedError');", "does not let this page see"),
        (
            "HTMLMediaElement.prototype.play = () => Promise.reject(new Error('cannot play'));"
            "return (window.given = await ask(wants));",
            "cannot play",
        ),
    ],
)
def test_a_camera_that_gives_nothing_is_named_and_left_alone(
    chromium, listener, address, gives, says
):
    listener.sees = "face"
    tab = chromium.open(address)
    tab.wait_for("policy.options.length > 0")
    tab.value(ASKS.replace("GIVES", gives))
    tab.click("#camera")
    tab.click("#start")
    tab.wait_for("rapport.state === 'failed'")
    assert says in tab.value("says.textContent")
    live = "(window.given?.getTracks() ?? []).some((track) => track.readyState === 'live')"
    assert not tab.value(live), "its light is out"


@needs_chromium
def test_controls_reach_the_server_and_dials_show_what_it_says(chromium, listener, address):
    listener.full = 1
    listener.recorded = True
    tab = started(chromium, address)
    playing(tab)
    tab.value("text.value = 'sad'; text.dispatchEvent(new Event('change'))")
    tab.value("liveliness.value = 0.5; liveliness.dispatchEvent(new Event('input'))")
    tab.click("#kill")
    tab.wait_for("late.textContent === '1' && dropped.textContent === '2'")
    tab.wait_for("sessions.textContent === '3' && Number(delay.textContent) > 300")
    assert tab.value("document.querySelector('#session-name').textContent") == "1"
    badges = tab.value("[simulated, recorded].map((badge) => badge.checkVisibility())")
    assert badges == [True, True]
    answered = tab.value("rapport.stats.answered")
    tab.wait_for(f"rapport.stats.answered > {answered}")
    assert wire.Told(text="sad") in listener.texts
    assert wire.Liveliness(value=0.5) in listener.texts
    assert listener.killed == 1


@needs_chromium
def test_voice_and_motion_are_saved(chromium, listener, address, tmp_path):
    tab = started(chromium, address)
    tab.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    tab.wait_for("rapport.stats.answered >= 6")
    tab.click("#start")
    tab.wait_for("rapport.state === 'ended'")
    tab.click("#save")
    until(lambda: len([*tmp_path.glob("*.wav"), *tmp_path.glob("*.json")]) == 2)
    [voice] = tmp_path.glob("*.wav")
    heard = listener.heard()
    np.testing.assert_array_equal(samples_of(voice)[: len(heard)], heard)
    motion = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert tuple(motion["channels"]) == CHANNELS
    assert (motion["seed"], motion["fps"], motion["simulated"]) == (7, 25, True)
    assert motion["samples"][: 2 * FRAMES] == [STEP * n for n in range(2 * FRAMES)]
    np.testing.assert_allclose(motion["frames"][:FRAMES], face_of(0), atol=1e-5)


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_on_a_telephone_all_fits_and_has_a_name(chromium, listener, address, tmp_path, dark):
    listener.sees = "pictures"
    tab = started(chromium, address, size=PHONE, dark=dark)
    playing(tab)
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    assert tab.value("start.getBoundingClientRect().bottom <= innerHeight"), "start is seen at once"
    tab.value("document.querySelector('details').open = true")
    tree = tab.ask("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "textbox", "slider", "combobox", "checkbox", "spinbutton")
    controls = [node for node in tree if node.get("role", {}).get("value") in roles]
    assert len(controls) >= 8
    for control in controls:
        assert control["name"]["value"], control
    tab.screenshot(tmp_path / "phone.png")
    assert (tmp_path / "phone.png").stat().st_size > 20_000
