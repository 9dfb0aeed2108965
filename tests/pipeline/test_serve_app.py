"""The application without Ray: what it answers to right, wrong and hostile requests."""

import asyncio
import contextlib
import functools
import io
import json
import math
import os
import signal
import time
import wave
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus

from rapport.pipeline.run import main
from rapport.pipeline.rundir import RunError
from rapport.pipeline.serve import app, voices, wire
from rapport.pipeline.serve import session as serve_session
from rapport.pipeline.serve.client import Client, Wanted
from rapport.pipeline.serve.deployment import built
from rapport.pipeline.serve.doors import Refused
from rapport.pipeline.serve.engine import Counts, in_silence
from rapport.pipeline.serve.record import Recorder
from rapport.pipeline.serve.server import Server
from rapport.pipeline.serve.session import Session, SessionRequest
from rapport.pipeline.serve.settings import (
    FORGOTTEN_S,
    LOOKED_AT_S,
    MOVE_S,
    ServeSection,
)
from rapport.policies.flow.config import PAPER_GROUPS
from rapport.policies.head.asset import load_head
from rapport.policies.head.settings import HeadConfig
from rapport.policies.live import Chunk
from rapport.policies.vla import vllm_live
from rapport.policies.vla.vllm_plugin import EngineError
from tests.live_clients import heard, pcm, sound_part, voice_of
from tests.live_sockets import (
    LIMITS,
    SECRET,
    listening,
    loaded,
    received,
    socket,
    ticket,
    wait_until_all_left,
)
from tests.on_port import until
from tests.runs import free_port
from tests.small_flow import saved_policy
from tests.small_flow import small_policy as small_flow
from tests.talking import small_policy


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    saved_policy(folder / "flow", PAPER_GROUPS)
    small_policy().save(folder / "vla")
    section = ServeSection(
        policies={"flow": str(folder / "flow"), "vla": str(folder / "vla")},
        sessions=4,
        record=folder / "recorded",
        limits=LIMITS,
        grace_s=60,
    )
    return loaded(section)


@pytest.fixture(scope="module")
def client(server):
    with listening(server) as client:
        yield client


def test_both_policies_are_talked_to(client, server):
    listed = client.get("/v1/policies").json()
    assert [policy["name"] for policy in listed["policies"]] == ["flow", "vla"]
    for name in ("flow", "vla"):
        session = ticket(client, policy=name, outputs=["motion", "act"])
        chunk = round(session["chunk_samples"])
        dim = sum(width for _, width in session["layout"]["groups"])
        frames = 0
        with socket(client, session) as live:
            ready = received(live)
            assert ready["type"] == "ready"
            assert ready["id"] == f"{server.name}.{session['id']}", "as in the log"
            for number in range(4):
                part = sound_part(np.zeros(chunk, "<i2"), chunk * number)
                live.send(wire.packed([part]))
                live.send(wire.Ack(sample=chunk * number).model_dump_json())
            live.send(wire.End().model_dump_json())
            while isinstance(message := received(live), list):
                for part in message:
                    if part.kind == wire.Kind.SHOWN:
                        frames += len(part.payload) // 4 // dim
            assert message == wire.ENDED
        assert frames >= 4 * chunk / session["rate"] * session["fps"]


def test_a_policy_that_sees_is_shown_pictures(client, server):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 100, 50)).save(file, "JPEG")
    session = ticket(client, policy="vla", outputs=["motion"])
    chunk = round(session["chunk_samples"])
    with socket(client, session) as live:
        received(live)
        for number in range(3):
            picture = wire.Part(wire.Kind.PICTURE, chunk * number + 100, file.getvalue())
            live.send(wire.packed([picture]))
            live.send(wire.packed([sound_part(np.zeros(chunk, "<i2"), chunk * number)]))
            assert received(live)[0].kind == wire.Kind.SHOWN
        line = next(iter(server.sessions.values()))._line
        assert line.state.picture.any()


@pytest.mark.engine
def test_a_vla_on_vllm_does_what_it_does_in_torch(tmp_path):
    policy = small_policy(hidden=64)  # heads as wide as vLLM takes them on CPUs
    policy.save(tmp_path / "vla")
    section = ServeSection(
        policies={"vla": str(tmp_path / "vla")},
        engine="vllm",
        sessions=2,
        limits=LIMITS,
        grace_s=60,
    )
    server = loaded(section)
    acts = []
    with listening(server) as client:
        session = ticket(client, policy="vla", seed=3, outputs=["act"])
        chunk = round(session["chunk_samples"])
        with socket(client, session) as live:
            assert received(live)["type"] == "ready"
            for number in range(4):
                live.send(wire.packed([sound_part(np.zeros(chunk, "<i2"), chunk * number)]))
                [part] = received(live)
                acts.append(np.frombuffer(part.payload, "<i4"))
            assert client.get("/readyz").status_code == 200  # it answers another thread alike
    live = policy.live()
    expected = [live.act(state) for _, state, _ in in_silence(live, live.start(3), 4)]
    np.testing.assert_array_equal(acts, expected)


def test_a_vla_that_vllm_cannot_run_is_refused_with_the_way_out(tmp_path, monkeypatch):
    def fails(*_):
        raise EngineError("this plugin needs vLLM 0.32.x, found none")

    monkeypatch.setattr(vllm_live, "VllmLiveVla", fails)
    small_policy().save(tmp_path / "vla")
    with pytest.raises(RunError, match=r"found none; or take serve\.engine=torch"):
        voices.load_voice("v", str(tmp_path / "vla"), ServeSection(engine="vllm"), load_head(None))


def test_whoever_asks_for_health_takes_no_steps_from_sessions(client, server, monkeypatch):
    steps = []
    for voice in server.voices.values():
        step = voice.listener.step
        noted = functools.partial(lambda step, *given: steps.append(1) or step(*given), step)
        monkeypatch.setattr(voice.listener, "step", noted)
    monkeypatch.setattr(server, "_judged", -math.inf)
    assert client.get("/readyz").status_code == 200 and steps
    steps.clear()
    assert client.get("/readyz").status_code == 200 and not steps


@pytest.mark.parametrize("answers", [1.0, math.nan])
def test_a_policy_that_answers_otherwise_is_not_ready(client, server, monkeypatch, answers):
    monkeypatch.setattr(server, "_judged", -math.inf)
    monkeypatch.setattr(server, "_changed", None)
    monkeypatch.setattr(server, "_canaries", dict.fromkeys(server.voices, answers))
    for _ in range(2):
        answer = client.get("/readyz")
        assert answer.status_code == 503 and "policy flow answers otherwise" in answer.json()["why"]


def test_what_a_policy_cannot_do_is_refused(client):
    for asked, code in (
        ({"policy": "nobody"}, 404),
        ({"policy": "vla", "text": "happy"}, 422),
        ({"policy": "vla", "lead": 4}, 422),
        ({"policy": "flow", "lead": 5}, 422),
        ({"seed": -1}, 422),
        ({"number": False}, 422),
        ({"unknown": 1}, 422),
        ({"outputs": []}, 422),
    ):
        assert client.post("/v1/sessions", json=asked).status_code == code, asked


def test_sessions_that_do_not_fit_are_refused(client, server):
    opened = []
    try:
        for seed in range(4):
            session = ticket(client, seed=seed)
            url = session["url"]
            opened.append(socket(client, session))
            assert received(opened[-1])["type"] == "ready"
        answer = client.post("/v1/sessions", json={})
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
        kept = server.tickets.issue(server.reserved(SessionRequest()))
        with pytest.raises(InvalidStatus) as refused:
            socket(client, {"ticket": kept, "url": url})
        assert refused.value.response.status_code == 503
    finally:
        for live in opened:
            live.close()
        wait_until_all_left(server)


def kept_sound(path):
    with wave.open(str(path)) as file:
        return file.readframes(99_999)


def test_a_recorded_session_says_so_and_is_kept(client, server, monkeypatch):
    """What it heard, and not what it was told of the past; others go on while it is written."""
    write = Recorder.write
    written = []

    def noted(recorder):
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        written.append(write(recorder))

    monkeypatch.setattr(Recorder, "write", noted)
    session = ticket(client, policy="flow", seed=11, number=1)
    assert session["recorded"] is True
    with socket(client, session) as live:
        name = received(live)["id"]
        sound = np.arange(3 * 5120, dtype="<i2")
        live.send(wire.Went(chunks=1).model_dump_json())
        dim = server.voices["flow"].listener.act(server.voices["flow"].start(0)).shape
        act = wire.Part(wire.Kind.ACT, 0, np.zeros(dim, "<f4").tobytes())
        live.send(wire.packed([sound_part(sound[:5120], 0), act]))
        live.send(wire.packed([sound_part(sound[5120:10240], 5120)]))
        playing = server.config.record / f"{name}.wav.partial"
        until(lambda: playing.stat().st_size == 44 + 2 * 5120)
        assert kept_sound(playing) == sound[5120:10240].tobytes(), "it plays at any time"
        live.send(wire.Told(text="happy").model_dump_json())
        live.send(wire.packed([sound_part(sound[10240:], 10240)]))
        live.send(wire.End().model_dump_json())
        while isinstance(received(live), list):
            pass
    wait_until_all_left(server)
    folder = server.config.record
    with wave.open(str(folder / f"{name}.wav")) as file:
        assert file.readframes(99_999) == sound[5120:].tobytes()
    kept = json.loads((folder / f"{name}.json").read_text())
    assert (kept["seed"], kept["number"], kept["texts"]) == (11, 1, [[2, "happy"]])
    assert len(written) == 1 and not list(folder.glob("*.partial"))


def test_a_disk_that_takes_no_more_ends_the_recording_and_not_the_session(tmp_path, monkeypatch):
    session = SimpleNamespace(
        name="replica.abc",
        request=SessionRequest(seed=3),
        voice=SimpleNamespace(name="flow"),
        noted=None,
    )
    recorder = Recorder.of(tmp_path / "made", session)
    sound = np.arange(2 * 5120, dtype="<i2")
    session.noted(0, Chunk(audio=sound[:5120] / 32768))
    folder = tmp_path / "made"
    playing = folder / "replica.abc.wav.partial"
    until(lambda: playing.stat().st_size == 44 + 2 * 5120)
    assert kept_sound(playing) == sound[:5120].tobytes()
    assert json.loads((folder / "replica.abc.json").read_text())["seed"] == 3

    def full(data):
        raise OSError("no space left on device")

    monkeypatch.setattr(recorder._file, "writeframes", full)
    session.noted(1, Chunk(audio=sound[5120:] / 32768))
    until(lambda: session.noted is None)
    recorder.write()
    assert kept_sound(folder / "replica.abc.wav") == sound[:5120].tobytes()
    (tmp_path / "file").write_text("")
    assert Recorder.of(tmp_path / "file", session) is None
    assert Recorder.of(None, session) is None


def test_a_folder_that_takes_no_recordings_is_named_before_anybody_talks(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    section = ServeSection(record=tmp_path / "file" / "kept")
    with pytest.raises(RunError, match=r"serve.record=.*kept: .*\(.*\); name a folder"):
        Server(section, HeadConfig(), "replica", SECRET, None)
    keys = [f"serve.record={section.record}", f"serve.port={free_port()}"]
    assert main(["serve", *keys, "--run-dir", str(tmp_path / "run")]) == 2
    assert "name a folder" in capsys.readouterr().err


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    """Every file that a session writes would be below here."""
    saved_policy(tmp_path / "flow", PAPER_GROUPS)
    before = sorted(tmp_path.rglob("*"))
    section = ServeSection(policies={"flow": str(tmp_path / "flow")}, limits=LIMITS, grace_s=60)
    monkeypatch.chdir(tmp_path)
    server = loaded(section)
    with listening(server) as client:
        session = ticket(client)
        assert session["recorded"] is False
        with socket(client, session) as live:
            received(live)
            live.send(wire.packed([sound_part(np.zeros(5120, "<i2"), 0)]))
            received(live)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_refused_says_why_as_openapi_has_it(client):
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for answers in (operation["responses"] for operation in methods.values()):
            assert {"4XX", "503"} <= answers.keys() and "422" not in answers, path
    headers = {"content-type": "application/json"}
    for answer, status in (
        (client.post("/v1/sessions", content=b"\xff{", headers=headers), 400),
        (client.post("/v1/sessions", content=b"{", headers=headers), 422),
        (client.post("/v1/sessions", content=b"1" * 5000, headers=headers), 400),
        (client.post("/v1/sessions", content=b'{"\\ud800": 1}', headers=headers), 422),
        (client.get("/v1/generations/none"), 404),
        (client.get("/nothing.html"), 404),
        (client.put("/v1/sessions"), 405),
    ):
        assert answer.status_code == status
        detail = answer.json()["detail"]
        assert detail["code"] and detail["message"] and "field" in detail


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
ASKED = st.fixed_dictionaries(
    {},
    optional={
        "policy": st.sampled_from(["flow", "vla", ""]) | JSON,
        "seed": st.integers() | JSON,
        "text": st.text(max_size=30) | JSON,
        "lead": st.sampled_from([0, 4, 8, 12, 5]) | JSON,
        "outputs": st.lists(st.sampled_from(["motion", "arkit", "act", "x"])) | JSON,
        "number": st.integers() | JSON,
    },
)
PATHS = st.sampled_from(
    ["/v1/generations/{}", "/v1/generations/{}/files/{}", "/v1/{}", "/{}", "/vendor/{}"]
)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(asked=float("inf"), path="/{}", name="", body=b"")
@given(asked=ASKED | JSON, path=PATHS, name=st.text(max_size=20), body=st.binary(max_size=60))
def test_whatever_is_asked_nobody_meets_a_traceback(client, asked, path, name, body):
    headers = {"content-type": "application/json"}
    answers = [
        client.post("/v1/sessions", content=json.dumps(asked), headers=headers),
        client.post("/v1/sessions", content=body, headers=headers),
        client.get(path.format(quote(name, safe=""), quote(name, safe=""))),
        client.post("/v1/generations", content=body, headers=headers),
        client.delete(f"/v1/generations/{quote(name, safe='')}"),
    ]
    for answer in answers:
        assert answer.status_code < 500 or answer.status_code == 503, answer.text


def test_a_reload_that_fails_changes_nothing(server, monkeypatch):
    sources = dict(server._sources)
    voices, canaries = dict(server.voices), dict(server._canaries)
    monkeypatch.setattr(server, "_looked_at", time.monotonic() - FORGOTTEN_S - 1)
    wanted = {"flow": sources["vla"], "vla": sources["vla"], "new": "/nowhere"}
    server.reload(wanted)
    assert "/nowhere" in server.trouble and not server.leaving, "nobody is sent away"
    assert server.voices == voices and server._canaries == canaries
    assert server._sources == sources
    server.reload(sources)
    assert server.trouble is None and server.voices == voices


def test_sessions_that_come_at_once_find_no_more_places_than_there_are(server):
    voice = server.voice("flow")
    with contextlib.ExitStack() as held:
        for _ in range(4):
            held.enter_context(server.place(voice))  # their sockets are being opened
        with pytest.raises(Refused, match="no more fit"):
            server.require_room(voice)
    server.require_room(voice)


def test_a_face_of_another_head_is_refused_where_nothing_else_is_asked_for(server, monkeypatch):
    voice = server.voice("flow")
    monkeypatch.setitem(server.voices, "flow", replace(voice, rig=None))
    for outputs in (["arkit"], ["arkit", "act"]):
        with pytest.raises(Refused, match="another head"):
            server.check(SessionRequest(policy="flow", outputs=outputs))
    server.check(SessionRequest(policy="flow", outputs=["motion", "arkit", "act"]))


def test_an_engine_that_stands_is_told_from_one_that_had_nothing_to_do(server, monkeypatch):
    counts = Counts(steps=5, last_step=10.0, idle_until=99.9)
    engine = SimpleNamespace(clock=lambda: 100.0, waiting=lambda: 1, counts=counts)
    monkeypatch.setattr(server, "engine", engine)
    server.require_alive()
    counts.idle_until = 90.0
    with pytest.raises(RuntimeError, match=r"has not stepped for 10.0 s"):
        server.require_alive()


def test_a_ticket_names_its_policy(client, server):
    reserved = server.tickets.open(ticket(client)["ticket"])
    assert reserved.request.policy == "flow"


def test_a_replica_that_goes_says_so_and_closes_its_sockets(client, server, monkeypatch):
    monkeypatch.setattr(app, "MOVE_S", 0.1)
    with socket(client, ticket(client, policy="flow")) as live:
        assert received(live)["type"] == "ready"
        long_ago = time.monotonic() - FORGOTTEN_S - 1
        monkeypatch.setattr(server, "_looked_at", long_ago)
        assert received(live)["type"] == "move"
        assert client.post("/v1/sessions", json={}).status_code == 503
        assert received(live) == wire.MOVED


def test_ray_leaves_a_replica_that_goes_the_time_for_that():
    deployment = built(ServeSection(), HeadConfig())._bound_deployment
    lives_s = deployment._deployment_config.graceful_shutdown_timeout_s
    assert lives_s > FORGOTTEN_S + LOOKED_AT_S + MOVE_S


@pytest.mark.parametrize("number", [0, 3])
def test_whoever_floods_is_cut_off(client, server, monkeypatch, number):
    """A session that goes on, too: while it tells of the past as well."""
    limits = LIMITS.model_copy(update={"pace": 1.0})
    monkeypatch.setattr(server, "config", server.config.model_copy(update={"limits": limits}))
    said = wire.Ack(sample=0).model_dump_json()
    with socket(client, ticket(client, policy="flow", number=number)) as live:
        assert received(live)["type"] == "ready"
        if number:
            live.send(wire.Went(chunks=number).model_dump_json())
        with contextlib.suppress(ConnectionClosed):
            for _ in range(100_000):
                live.send(said)
        told = received(live)
        assert (told["code"], told["message"]) == ("pace", "too much is sent")
        assert received(live) == wire.FORBIDDEN


@pytest.mark.parametrize("number", [0, 190])
def test_a_session_lasts_so_many_minutes_wherever_it_began(client, server, monkeypatch, number):
    limits = LIMITS.model_copy(update={"minutes": 1.0 if number else 0.001})
    monkeypatch.setattr(server, "config", server.config.model_copy(update={"limits": limits}))
    with socket(client, ticket(client, policy="flow", number=number)) as live:
        assert received(live)["type"] == "ready"
        assert received(live) == wire.FORBIDDEN
        assert live.close_reason == f"{limits.minutes:g} minutes are over"


def test_whoever_vanished_gives_the_place_back(client, server, monkeypatch):
    """Though the socket is never closed from there."""
    monkeypatch.setattr(serve_session, "GONE_S", 0.2)
    with contextlib.ExitStack() as held:
        vanished = [held.enter_context(socket(client, ticket(client))) for _ in range(4)]
        for live in vanished:
            assert received(live)["type"] == "ready"
        until(lambda: client.post("/v1/sessions", json={}).status_code == 201)
    wait_until_all_left(server)
    assert not server.seats._taken


def test_a_session_that_ended_takes_no_place(client, server, monkeypatch):
    ended = Session("s", SessionRequest(), server.voice(None), server.engine, Silent())
    ended.leave()
    monkeypatch.setattr(server, "sessions", {str(number): ended for number in range(4)})
    assert client.post("/v1/sessions", json={}).status_code == 201


class Silent:
    """A channel to nobody."""

    texts_only = False

    def send(self, message):
        pass

    def close(self, code, reason):
        pass


@pytest.mark.parametrize("demo", [False, True])
def test_the_button_kills_the_replica_in_a_demo_only(client, server, monkeypatch, demo):
    killed = []
    monkeypatch.setattr(app.os, "kill", lambda *whom: killed.append(whom))
    monkeypatch.setattr(server, "config", server.config.model_copy(update={"demo": demo}))
    answer = client.post("/v1/demo/kill")
    if demo:
        assert answer.status_code == 202
        until(lambda: killed)
        assert killed == [(os.getpid(), signal.SIGKILL)]
    else:
        assert answer.status_code == 404
        assert "serve.demo=true" in answer.json()["detail"]["message"]


class Deaf:
    """A socket whose client talks and reads nothing."""

    async def receive(self):
        await asyncio.sleep(0)
        return {"type": "websocket.receive", "text": wire.Ping().model_dump_json()}

    async def send_text(self, text):
        await asyncio.Event().wait()

    close = send_text


@pytest.mark.parametrize("ended", [False, True])
def test_a_client_that_reads_nothing_is_not_kept(server, monkeypatch, ended):
    monkeypatch.setattr(app, "CLOSE_S", 0.0)

    async def talked():
        channel = app.SocketChannel(Deaf(), texts_only=False)
        session = Session("s", SessionRequest(), server.voice(None), server.engine, channel)
        if ended:
            session.leave()
        await app._talk(server, session, channel, Deaf())

    asyncio.run(asyncio.wait_for(talked(), 60))


@pytest.mark.parametrize("where", ["tick", "hear"])
def test_an_error_of_ours_is_logged_and_ends_the_socket(client, monkeypatch, caplog, where):
    def fails(*_):
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(Session, where, fails)
    with socket(client, ticket(client)) as live:
        assert received(live)["type"] == "ready"
        if where == "hear":
            live.send(wire.End().model_dump_json())
        assert received(live) == wire.FAILED
    assert "nobody thought of this" in caplog.text


def test_a_client_of_chunks_of_no_whole_number_of_samples_goes_on(
    client, server, monkeypatch, tmp_path
):
    """The frames of a policy of 30 a second, as without the move in the middle."""
    voice = voice_of(small_flow(tmp_path, fps=30), name="thirty")
    monkeypatch.setitem(server.voices, "thirty", voice)
    rng = np.random.default_rng(0)
    sizes = np.diff([voice.border(number) for number in range(13)])
    said = [Chunk(audio=heard(pcm(rng.normal(size=size) / 10))) for size in sizes]

    async def chunks():
        for chunk in said:
            yield chunk

    async def talked():
        wanted = Wanted(policy="thirty", seed=3, outputs=("motion",))
        async with Client(str(client.base_url), wanted) as talker:
            shown = []
            async for answer in talker.converse(chunks(), ahead=1):
                shown.append(answer.motion.values)
                if answer.chunk == 5:
                    next(iter(server.sessions.values())).move()
            return np.concatenate(shown), talker.sessions

    shown, sessions = asyncio.run(asyncio.wait_for(talked(), 60))
    assert sessions == 2
    state, expected = voice.start(3), []
    for chunk in said:
        [motion], [state] = voice.listener.step([state], [chunk])
        expected.append(motion.values)
    expected.append(voice.listener.finish(state).values)
    np.testing.assert_allclose(shown, np.concatenate(expected), atol=1e-5)


def test_a_client_that_stops_to_think_goes_on(client):
    """It says no more than it takes answers for: what was answered meanwhile would be dropped."""

    async def chunks():
        for _ in range(30):
            yield Chunk(audio=np.zeros(5120, np.float32))

    async def thinks():
        wanted = Wanted(policy="flow")
        async with Client(str(client.base_url), wanted) as talker:
            answers = []
            async for answer in talker.converse(chunks(), ahead=1):
                answers.append(answer)
                if answer.chunk == 3:
                    await asyncio.sleep(1)
            return answers

    answers = asyncio.run(asyncio.wait_for(thinks(), 60))
    assert [answer.chunk for answer in answers] == [*range(30), None]
    assert not any(answer.dropped for answer in answers)
