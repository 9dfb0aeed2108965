"""The live listener on a real Ray Serve: sessions, lost replicas, swapped policies, the page."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from functools import partial

import httpx
import numpy as np
import pytest
import ray
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from rapport.pipeline.bench.serve import process_of
from rapport.pipeline.serve.client import Client, Wanted
from rapport.pipeline.serve.deployment import APPLICATION, SECRET
from rapport.policies.flow.config import PAPER_GROUPS
from rapport.policies.live import Chunk
from rapport.policies.policy import load_policy
from tests.chromium import CHROMIUM, Chromium
from tests.recordings import write_wav
from tests.runs import free_port
from tests.small_flow import saved_policy

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]
CHUNK = 5120


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two policies, that answer differently."""
    folder = tmp_path_factory.mktemp("policies")
    return [str(saved_policy(folder / name, PAPER_GROUPS, seed)) for seed, name in enumerate("ab")]


SECTION = {
    "replicas": 2,
    "cpus": 0.5,
    "sessions": 8,
    "demo": True,
    "grace_s": 600,
    "limits": {"requests": 10_000, "sessions": 64, "pace": 1000},
}


@dataclass(frozen=True)
class Served:
    """A server, deployed as `serve deploy` does it."""

    port: int
    dashboard: str

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def deploy(self, secret="what tickets are signed by", **policies):
        """From now on these policies; with another secret, by other replicas."""
        application = {
            "name": APPLICATION,
            "route_prefix": "/",
            "import_path": "rapport.pipeline.serve.deployment:build",
            "args": {"serve": SECTION},
            "runtime_env": {"env_vars": {SECRET: secret}},
            "deployments": [{"name": APPLICATION, "user_config": {"policies": policies}}],
        }
        http = {"host": "127.0.0.1", "port": self.port}
        client = ServeSubmissionClient(f"http://{self.dashboard}")
        client.deploy_applications({"http_options": http, "applications": [application]})
        deadline = time.monotonic() + 120
        while (state := serve.status().applications.get(APPLICATION)) is None or (
            state.status != "RUNNING"
        ):
            assert time.monotonic() < deadline and (state is None or "FAILED" not in state.status)
            time.sleep(0.2)


@pytest.fixture(scope="module")
def server(local_ray, folders):
    server = Served(free_port(), ray._private.worker.get_dashboard_url())
    try:
        server.deploy(a=folders[0])
        yield server
    finally:
        serve.shutdown()


@pytest.fixture(scope="module")
def served(server):
    """Its URL."""
    return server.url


def speech(chunks, seed=0):
    rng = np.random.default_rng(seed)
    sound = (rng.normal(size=(chunks, CHUNK)) / 10).clip(-1, 1)
    return [Chunk(audio=np.round(each * 32767).astype(np.float32) / 32768) for each in sound]


def spoken(path, chunks):
    """The same as a file."""
    said = np.concatenate([chunk.audio for chunk in speech(chunks)])
    return write_wav(path, said * 32768)


async def one_by_one(chunks):
    for chunk in chunks:
        yield chunk


def offline(folder, chunks, seed):
    """What the live policy of that folder does in this process."""
    policy = load_policy(folder).with_sampler(lead=0, evaluations=4)
    live = policy.live()
    state = live.start(seed)
    shown = []
    for heard in [None, *chunks]:
        [motion], [state] = live.step([state], [heard])
        shown.append(motion.values)
    shown.append(live.finish(state).values)
    return np.concatenate(shown)


async def talk(url, chunks, seed=0, patience_s=60.0, **wanted):
    """All frames that a client is shown, and how it fared."""
    async with Client(url, Wanted(seed=seed, **wanted), patience_s=patience_s) as client:
        shown = [
            answer.motion.values async for answer in client.converse(one_by_one(chunks), ahead=1)
        ]
        return np.concatenate(shown), client


def test_a_live_session_equals_the_policy(served, folders):
    chunks = speech(30)
    shown, _ = asyncio.run(talk(served, chunks, seed=4))
    expected = offline(folders[0], chunks, 4)
    np.testing.assert_allclose(shown, expected, atol=1e-5)


def test_sessions_share_replicas_and_do_not_meet(served, folders):
    async def several():
        return await asyncio.gather(*[talk(served, speech(12, k), seed=k) for k in range(6)])

    for seed, (shown, _) in enumerate(asyncio.run(several())):
        expected = offline(folders[0], speech(12, seed), seed)
        np.testing.assert_allclose(shown, expected, atol=1e-5)


def test_a_session_goes_on_when_its_replica_is_killed(served, folders):
    chunks = speech(90)

    async def killed():
        async with Client(served, Wanted(seed=7), patience_s=60) as client:
            shown = []
            async for answer in client.converse(one_by_one(chunks), ahead=1):
                shown.append(answer.motion.values)
                if answer.chunk == 70:
                    os.kill(process_of(client.name), signal.SIGKILL)
            return np.concatenate(shown), client.sessions

    shown, sessions = asyncio.run(killed())
    expected = offline(folders[0], chunks, 7)
    assert sessions > 1
    np.testing.assert_allclose(shown, expected, atol=1e-5)


def test_a_policy_is_swapped_and_open_sessions_keep_theirs(server, served, folders):
    chunks = speech(20)

    async def swapped():
        async with Client(served, Wanted(seed=1), patience_s=60) as client:
            shown = []
            async for answer in client.converse(one_by_one(chunks), ahead=1):
                shown.append(answer.motion.values)
                assert not answer.dropped and not answer.late
                if answer.chunk == 5:
                    await asyncio.to_thread(server.deploy, b=folders[1], a=folders[1])
            return np.concatenate(shown), client.sessions

    shown, sessions = asyncio.run(swapped())
    expected = offline(folders[0], chunks, 1)
    assert sessions == 1
    np.testing.assert_allclose(shown, expected, atol=1e-5)
    after, _ = asyncio.run(talk(served, chunks, seed=1, policy="b"))
    np.testing.assert_allclose(after, offline(folders[1], chunks, 1), atol=1e-5)
    assert not np.allclose(after, expected, atol=1e-2)
    listed = httpx.get(f"{served}/v1/policies").json()["policies"]
    assert {policy["name"] for policy in listed} == {"a", "b"}


def test_a_policy_that_cannot_be_loaded_leaves_the_others(server, served, folders):
    server.deploy(b=folders[1], a=folders[1], c="/no/such/folder")
    assert httpx.get(f"{served}/readyz").status_code == 503
    assert "/no/such/folder" in httpx.get(f"{served}/readyz").json()["why"]
    listed = httpx.get(f"{served}/v1/policies").json()["policies"]
    assert {policy["name"] for policy in listed} == {"a", "b"}
    server.deploy(b=folders[1], a=folders[1])
    assert httpx.get(f"{served}/readyz").status_code == 200


@pytest.mark.long
def test_an_update_of_all_replicas_loses_no_session(server, served, folders):
    """Another secret is another application: every replica is replaced, and says so before."""
    server.deploy(a=folders[1])
    chunks = speech(60)

    async def updated():
        async with Client(served, Wanted(policy="a", seed=2), patience_s=90) as client:
            shown = []
            update = None
            async for answer in client.converse(one_by_one(chunks), ahead=1):
                shown.append(answer.motion.values)
                if answer.chunk == 5:
                    deploy = partial(server.deploy, "what others are signed by", a=folders[1])
                    update = asyncio.create_task(asyncio.to_thread(deploy))
                if answer.chunk == 10:
                    while client.sessions == 1:
                        await asyncio.sleep(0.05)
            await update
            return np.concatenate(shown), client.sessions

    shown, sessions = asyncio.run(updated())
    assert sessions > 1
    np.testing.assert_allclose(shown, offline(folders[1], chunks, 2), atol=1e-5)


def test_one_session_too_many_is_refused_and_the_others_go_on(served):
    async def crowd():
        async with contextlib.AsyncExitStack() as stack:
            clients = []
            refused = None
            async with httpx.AsyncClient(base_url=served) as http:
                for seed in range(40):
                    answer = await http.post("/v1/sessions", json={"seed": seed})
                    if answer.status_code == 503:
                        refused = answer
                        break
                    assert answer.status_code == 201
                    client = Client(served, Wanted(seed=seed), patience_s=5)
                    try:
                        clients.append(await stack.enter_async_context(client))
                    except Exception:  # this replica is full, the other may not be
                        continue
            assert refused is not None and len(clients) >= 8
            assert int(refused.headers["retry-after"]) > 0
            assert refused.json()["detail"]["code"] == "full"

            async def few(client):
                return [a async for a in client.converse(one_by_one(speech(4)), ahead=1)]

            for answers in await asyncio.gather(*[few(client) for client in clients]):
                assert len([a for a in answers if a.chunk is not None]) >= 4

    asyncio.run(crowd())


def test_a_ticket_is_needed_and_opens_one_socket(served):
    url = served.replace("http", "ws") + "/v1/live"

    async def refused(protocols):
        with pytest.raises(InvalidStatus) as why:
            async with connect(url, subprotocols=protocols):
                pass
        return why.value.response

    assert asyncio.run(refused(["rapport.v1"])).status_code == 401
    assert asyncio.run(refused(["rapport.v1", "ticket.abc"])).status_code == 401
    assert asyncio.run(refused(["other"])).status_code == 400


def test_what_is_not_understood_is_said_and_the_socket_closed(served):
    async def spoken(messages):
        async with httpx.AsyncClient(base_url=served) as http:
            session = (await http.post("/v1/sessions", json={})).json()
        protocols = ["rapport.v1", f"ticket.{session['ticket']}"]
        async with connect(session["url"], subprotocols=protocols) as socket:
            texts = []
            for message in messages:
                await socket.send(message)
            with contextlib.suppress(Exception):
                while True:
                    texts.append(json.loads(await asyncio.wait_for(socket.recv(), 20)))
            return texts, socket.close_code

    for message, code in ((b"abc", 1007), ('{"type": "x"}', 1007), (b"x" * 70_000, 1009)):
        texts, closed = asyncio.run(spoken([message]))
        assert closed == code
        assert texts[-1]["type"] == "error" and texts[-1]["message"]


def test_a_recording_becomes_files(served, tmp_path):
    path = spoken(tmp_path / "talk.wav", 8)
    with httpx.Client(base_url=served, timeout=60) as http:
        job = http.post(
            "/v1/generations",
            files={"file": path.open("rb")},
            data={"formats": "npz,csv", "policy": "a"},
        )
        assert job.status_code == 202, job.text
        job_id = job.json()["id"]
        deadline = time.monotonic() + 120
        while (job := http.get(f"/v1/generations/{job_id}").json())["status"] not in (
            "done",
            "failed",
        ):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert job["status"] == "done", job
        for name in job["files"]:
            assert http.get(f"/v1/generations/{job_id}/files/{name}").status_code == 200
        assert http.delete(f"/v1/generations/{job_id}").status_code == 204


def test_health_metrics_and_descriptions(served):
    with httpx.Client(base_url=served, timeout=60) as http:
        assert http.get("/healthz").json() == {"ok": True}
        assert http.get("/readyz").json() == {"ok": True}
        metrics = http.get("/metrics").text
        assert "rapport_sessions" in metrics and "rapport_missed" in metrics
        paths = http.get("/openapi.json").json()["paths"]
        assert {"/v1/sessions", "/v1/generations", "/v1/policies"} <= set(paths)
        assert http.get("/asyncapi.json").json()["asyncapi"] == "3.0.0"
        assert http.get("/head.glb").content[:4] == b"glTF"
        assert http.post("/v1/sessions", json={"text": 3}).status_code == 422
        missing = http.post("/v1/sessions", json={"policy": "nobody"})
        assert missing.status_code == 404 and "nobody" in missing.json()["detail"]["message"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_shows_a_listener_that_moves(served, tmp_path):
    voice = spoken(tmp_path / "voice.wav", 40)
    with Chromium(tmp_path / "profile", voice=voice) as browser:
        page = browser.open(f"{served}/")
        page.wait_for("!document.querySelector('#start').disabled")
        page.click("#start")
        page.wait_for("rapport.stats.answered > 12")
        # A busy machine answers late, and a face without answers rests: it moves when they come.
        seen, moves = [], 0.0
        until = time.monotonic() + 60
        while moves < 0.01:
            assert time.monotonic() < until, f"stands still: {page.value('rapport.stats')}"
            seen.append(list(page.value("rapport.weights()").values()))
            moves = np.ptp(seen, axis=0).max()
            time.sleep(0.1)
        assert page.complaints == []
        assert {url.split("/")[2] for url in page.urls if "://" in url} == {served.split("/")[2]}


def test_the_recipe_serves_until_it_is_told_to_stop(folders, tmp_path):
    port = free_port()
    command = [
        *(sys.executable, "-m", "pipeline.run", "serve", f"serve.port={port}"),
        *(f"serve.policies.mine={folders[0]}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"),
        *("cluster.cpus=2", "--run-dir", str(tmp_path / "run")),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 200
    while True:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz") as answer:
            if answer.status == 200:
                break
        time.sleep(0.5)
    taken = subprocess.run(
        [*command[:-1], str(tmp_path / "other")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert taken.returncode == 2 and f"serve.port={port}" in taken.stderr
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "is ready after" in said and "summary:" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["metrics"]["serve"]["ready_s"] > 0
