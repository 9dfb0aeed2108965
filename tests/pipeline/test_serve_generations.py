"""Recordings that are handed in: what is made of them, what is refused, and what is forgotten."""

import os
import re
import threading
import time
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from rapport import Motion
from rapport.pipeline.data.recording import open_recording
from rapport.pipeline.serve.doors import Rules, guard
from rapport.pipeline.serve.generations import Generations, Limits, router
from rapport.pipeline.settings import ListenConfig
from rapport.pipeline.steps.listener_files import write_files
from rapport.pipeline.steps.listening import answer, begin, session_of
from rapport.policies.policy import Policy
from rapport.policies.seams import SMOOTHERS, Smoother
from tests import talking
from tests.on_port import until
from tests.policies.test_flow_live import small_policy
from tests.recordings import record

GROUPS = (("expr", 4), ("jaw", 3), ("rot", 3))
HOUR = 3600


@dataclass
class Served:
    policy: Policy
    smoother: Smoother | None = None


class Clock:
    """The system's, ahead by so many seconds."""

    ahead = 0

    def __call__(self):
        return time.time() + self.ahead


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    policy = small_policy(tmp_path_factory.mktemp("texts"), text_dim=32, groups=GROUPS)
    policy.vae.channel_mean.mul_(0.1)
    policy.vae.channel_std.mul_(0.1)
    return policy


@pytest.fixture(scope="module")
def policies(flow):
    return {"listener": Served(flow), "sees": Served(talking.small_policy(seconds=4.0))}


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    return record(tmp_path_factory.mktemp("voice") / "voice.wav", 2.0, rate=16_000)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def generations(policies, tmp_path, clock):
    """Nothing is done before a test says so: `run_next`."""
    limits = Limits(bytes=300_000, minutes=0.1, samples=2, waiting=3)
    return Generations(policies, tmp_path / "jobs", limits=limits, clock=clock)


@pytest.fixture
def client(generations):
    return client_of(generations)


def client_of(generations):
    app = FastAPI()
    app.include_router(router(generations))
    guard(app, Rules(upload=400_000))
    return TestClient(app, base_url="http://127.0.0.1")


def hand_in(client, path, name=None, **fields):
    with path.open("rb") as file:
        files = {"file": (name or path.name, file)}
        return client.post("/v1/generations", files=files, data=fields)


def done(client, generations, path, name=None, **fields):
    """How the job ended."""
    answer = hand_in(client, path, name, **fields)
    assert answer.status_code == 202, answer.text
    assert answer.json()["status"] == "waits"
    assert generations.run_next(wait_s=0)
    return client.get(f"/v1/generations/{answer.json()['id']}").json()


def left(generations):
    return sorted(path.name for path in generations.folder.rglob("*"))


def test_a_recording_becomes_what_listen_makes_of_it(client, generations, flow, voice, tmp_path):
    ended = done(
        client, generations, voice, formats="npz,csv", samples="2", seed="5", text="happy", lead="4"
    )
    assert ended["status"] == "done" and ended["why"] is None
    assert ended["seconds"] == pytest.approx(2.0) and ended["delay_s"] == pytest.approx(0.48)
    names = [f"listener_{sample}.{form}" for sample in range(2) for form in ("npz", "csv")]
    assert ended["files"] == names
    config = ListenConfig(seed=5, samples=2, text="happy", lead=4)
    session = session_of(flow, "listener", voice, config)
    expected = answer(session, begin(session, config), print).motions
    for sample, motion in enumerate(expected):
        url = f"/v1/generations/{ended['id']}/files/listener_{sample}.npz"
        got = client.get(url)
        assert got.headers["Cache-Control"] == "no-store"
        assert f'filename="listener_{sample}.npz"' in got.headers["Content-Disposition"]
        (tmp_path / "got.npz").write_bytes(got.content)
        np.testing.assert_array_equal(Motion.load(tmp_path / "got.npz").values, motion.values)
    assert client.get(url.replace(".npz", ".csv")).text.startswith("Timecode,")


def test_what_joins_live_answers_joins_those_to_a_recording(client, generations, flow, voice):
    smoother = SMOOTHERS["inertialise"]
    generations.policies = {"listener": Served(flow, smoother)}
    ended = done(client, generations, voice, seed="5")
    got = Motion.load(generations.file(ended["id"], "listener.npz")).values
    config = ListenConfig(seed=5)
    session = session_of(flow, "listener", voice, config)
    [joined], [plain] = (
        answer(session, begin(session, config), print, how).motions for how in (smoother, None)
    )
    np.testing.assert_array_equal(got, joined.values)
    assert not np.array_equal(got, plain.values)


def test_films_and_animations_are_made(client, generations, tmp_path):
    film = record(tmp_path / "talk.mp4", 0.6, fps=25, rate=16_000)
    for policy in ("listener", "sees"):
        ended = done(client, generations, film, formats="mp4,glb,parquet", policy=policy)
        assert (ended["status"], ended["policy"]) == ("done", policy), ended["why"]
        url = f"/v1/generations/{ended['id']}/files"
        (tmp_path / "got.mp4").write_bytes(client.get(f"{url}/listener.mp4").content)
        assert open_recording(tmp_path / "got.mp4").streams == ["speaker_frames", "speaker_audio"]
        assert client.get(f"{url}/listener.glb").content[:4] == b"glTF"


def test_motion_is_listened_to(client, generations, flow, tmp_path):
    rng = np.random.default_rng(0)
    Motion(rng.normal(size=(20, 10)) / 9, flow.layout).save(tmp_path / "m.npz")
    ended = done(client, generations, tmp_path / "m.npz")
    assert (ended["status"], ended["seconds"]) == ("done", pytest.approx(0.8)), ended["why"]


def test_an_upload_goes_with_the_end_of_its_job_and_the_job_with_its_deletion(
    client, generations, voice, tmp_path
):
    (tmp_path / "notes.txt").write_text("nothing")
    for path, status in ((voice, "done"), (tmp_path / "notes.txt", "failed")):
        id = hand_in(client, path).json()["id"]
        assert path.name in left(generations)
        assert generations.run_next(wait_s=0)
        assert client.get(f"/v1/generations/{id}").json()["status"] == status
        assert path.name not in left(generations) and f"{id}.work" not in left(generations)
        assert client.delete(f"/v1/generations/{id}").status_code == 204
        assert left(generations) == []
        for gone in (client.get, client.delete):
            answer = gone(f"/v1/generations/{id}")
            assert answer.status_code == 404
            assert "it was deleted" in answer.json()["detail"]["message"]


def test_a_job_that_waits_is_deleted_with_its_upload_and_never_done(client, generations, voice):
    id = hand_in(client, voice).json()["id"]
    assert client.delete(f"/v1/generations/{id}").status_code == 204
    assert left(generations) == []
    assert generations.run_next(wait_s=0)
    assert left(generations) == []


class Interrupted:
    """A listener to which something happens in its third step."""

    def __init__(self, listener, happens):
        self._listener = listener
        self._happens = happens
        self.steps = 0

    def __getattr__(self, name):
        return getattr(self._listener, name)

    def step(self, states, heard):
        self.steps += 1
        if self.steps == 3:
            self._happens()
        return self._listener.step(states, heard)


def interrupted(policy, happens):
    """The same policy with such a live form."""
    other = policy.with_sampler()
    listener = Interrupted(policy.live(), happens)
    other.live = lambda: listener
    return other, listener


def test_a_running_job_that_is_deleted_stops_and_leaves_nothing(generations, flow, tmp_path):
    client = client_of(generations)
    policy, listener = interrupted(flow, lambda: client.delete(f"/v1/generations/{id}"))
    generations.policies = {"listener": Served(policy)}
    long = record(tmp_path / "long.wav", 5.0, rate=16_000)
    id = hand_in(client, long).json()["id"]
    assert generations.run_next(wait_s=0)
    assert listener.steps < 5.0 / listener.chunk / 2
    assert left(generations) == []


def test_another_process_answers_for_a_job_and_deletes_it_while_it_runs(
    policies, generations, flow, tmp_path
):
    other = client_of(Generations(policies, generations.folder))

    def look_and_delete():
        assert other.get(f"/v1/generations/{id}").json()["status"] == "runs"
        assert other.delete(f"/v1/generations/{id}").status_code == 204

    policy, listener = interrupted(flow, look_and_delete)
    generations.policies = {"listener": Served(policy)}
    long = record(tmp_path / "long.wav", 5.0, rate=16_000)
    id = hand_in(client_of(generations), long).json()["id"]
    assert generations.run_next(wait_s=0)
    assert listener.steps < 5.0 / listener.chunk / 2 and left(generations) == []


def test_an_hour_after_it_ended_nothing_is_left(client, generations, voice, clock):
    id = done(client, generations, voice)["id"]
    clock.ahead = HOUR - 60
    assert client.get(f"/v1/generations/{id}").status_code == 200
    clock.ahead = HOUR + 60
    assert client.get(f"/v1/generations/{id}").status_code == 404
    assert left(generations) == []


def test_a_job_that_waits_for_hours_is_removed_by_nobody(
    policies, client, generations, voice, clock
):
    id = hand_in(client, voice).json()["id"]
    clock.ahead = 2 * HOUR
    other = client_of(Generations(policies, generations.folder, clock=clock))
    for looks in (client, other):
        assert looks.get(f"/v1/generations/{id}").json()["status"] == "waits"


def test_a_job_that_writes_one_file_for_hours_is_removed_by_nobody(
    policies, tmp_path, voice, monkeypatch
):
    serving = "rapport.pipeline.serve.generations"
    monkeypatch.setattr(f"{serving}.SWEEP_S", 0.02)
    writes, go_on = threading.Event(), threading.Event()

    def slowly(*asked):
        writes.set()
        assert go_on.wait(120)
        return write_files(*asked)

    monkeypatch.setattr(f"{serving}.write_files", slowly)
    generations = Generations(policies, tmp_path / "jobs")
    generations.start()
    client = client_of(generations)
    id = hand_in(client, voice).json()["id"]
    assert writes.wait(120)
    folders = [generations.folder / name for name in (id, f"{id}.work")]
    for folder in folders:
        os.utime(folder, (0, 0))
    until(lambda: all(folder.stat().st_mtime for folder in folders))
    other = client_of(Generations(policies, generations.folder))
    assert other.get(f"/v1/generations/{id}").json()["status"] == "runs"
    go_on.set()
    until(lambda: client.get(f"/v1/generations/{id}").json()["status"] == "done")
    generations.close()


def test_what_a_killed_process_left_is_removed(policies, generations, voice, clock):
    hand_in(client_of(generations), voice)
    (generations.folder / "unfinished.gone").mkdir()
    next_one = Generations(policies, generations.folder, clock=clock)
    clock.ahead = HOUR + 60
    assert hand_in(client_of(next_one), voice).status_code == 202
    assert len(list(generations.folder.iterdir())) == 2, "the new job and its upload"


def test_when_too_many_wait_the_next_one_comes_later(client, generations, voice):
    assert [hand_in(client, voice).status_code for _ in range(4)] == [202, 202, 202, 503]
    answer = hand_in(client, voice)
    assert answer.headers["Retry-After"] == "30"
    assert answer.json()["detail"]["code"] == "full"
    assert len(list(generations.folder.iterdir())) == 6, "three jobs and their uploads"
    assert generations.run_next(wait_s=0)
    assert hand_in(client, voice).status_code == 202


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"policy": "nobody"}, "policy: nobody is called 'nobody': there are listener, sees"),
        ({"samples": "3"}, "samples: at most 2"),
        ({"formats": "npz,npz"}, "names one twice"),
        ({"formats": "avi"}, "formats: .*'npz', 'parquet', 'csv', 'glb' or 'mp4'"),
        ({"lead": "5"}, "lead: Input should be 0, 4, 8 or 12"),
        ({"seed": "-1"}, "greater than or equal to 0"),
        ({"samples": "many"}, "valid integer"),
        ({"text": "x" * 1001}, "at most 1000 characters"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_at_once(client, generations, voice, fields, words):
    answer = hand_in(client, voice, **fields)
    assert answer.status_code == 422
    assert re.search(words, answer.text), answer.text
    assert left(generations) == []


def test_a_recording_is_needed(client):
    assert client.post("/v1/generations", data={"formats": "npz"}).status_code == 422


def test_too_much_is_refused_and_not_kept(client, generations, tmp_path):
    for size in (300_001, 500_000):  # by the jobs, and by the doors before them
        (tmp_path / "large.wav").write_bytes(bytes(size))
        answer = hand_in(client, tmp_path / "large.wav")
        assert answer.status_code == 413, answer.text
        assert left(generations) == []


def refused_uploads(folder, layout):
    """Files that nobody can listen to, and what is said of them."""
    record(folder / "long.flac", 6.5, rate=8_000)
    record(folder / "mute.mp4", 0.6, fps=25)
    record(folder / "other.wav", 0.6, rate=16_000)
    (folder / "notes.txt").write_text("nothing to hear\n" * 50)
    (folder / "empty.wav").touch()
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "list.wav").write_text(f"ffconcat version 1.0\nfile '{folder / 'other.wav'}'\n")
    (folder / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{folder / 'other.wav'}\n#EXT-X-ENDLIST\n"
    )
    np.savez(folder / "objects.npz", values=np.array([{}], object))
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("values.npy", bytes(3_000_000))
    Motion(np.zeros((9, 10)), layout).save(folder / "m.npz")
    (folder / "cut.npz").write_bytes((folder / "m.npz").read_bytes()[:300])
    np.save(folder / "bare.npy", np.zeros((9, 10)))
    return {
        "long.flac": "long.flac lasts 0.1 minutes; at most 0.1 are listened to",
        "mute.mp4": "mute.mp4 has frames of the speaker, and this policy of kind flow perceives",
        "notes.txt": "notes.txt (cannot be read|is a text)",
        "empty.wav": "empty.wav cannot be read as sound or film",
        "noise.mp4": "noise.mp4 (cannot be read|is a text|has neither)",
        "list.wav": "list.wav is a text or a picture",
        "list.m3u8": "list.m3u8 (cannot be read|is a text)",
        "objects.npz": "objects.npz holds Python objects",
        "bomb.npz": "bomb.npz unpacks to 3000000 bytes; at most 300000",
        "cut.npz": "cut.npz is damaged",
        "bare.npy": "bare.npy: motion comes as npz",
    }


def test_a_bad_upload_fails_with_one_line_that_names_it_and_no_place_of_the_server(
    client, generations, flow, tmp_path, caplog
):
    for name, words in refused_uploads(tmp_path, flow.layout).items():
        ended = done(client, generations, tmp_path / name)
        assert ended["status"] == "failed" and ended["files"] == []
        assert re.match(words, ended["why"]), ended["why"]
        assert "\n" not in ended["why"] and str(generations.folder) not in ended["why"]
    assert "Traceback" not in caplog.text


def test_what_a_policy_cannot_do_is_why_a_job_fails(client, generations, voice):
    for fields, words in (
        ({"text": "happy"}, "takes none"),
        ({"lead": "4"}, "lead is for AR-Flow"),
    ):
        ended = done(client, generations, voice, policy="sees", **fields)
        assert ended["status"] == "failed" and words in ended["why"]


def test_a_failure_of_the_server_says_so_and_keeps_its_traceback_to_itself(
    client, generations, flow, voice, caplog
):
    def fails():
        raise ZeroDivisionError("in the middle of it")

    policy, _ = interrupted(flow, fails)
    generations.policies = {"listener": Served(policy)}
    ended = done(client, generations, voice)
    assert ended["status"] == "failed" and "its log says why" in ended["why"]
    assert "middle" not in ended["why"] and "in the middle of it" in caplog.text
    assert f"{ended['id']}.work" not in left(generations)


@pytest.mark.parametrize(
    "name",
    [
        "../../../evil.wav",
        "/etc/evil.wav",
        r"C:\evil.wav",
        "..",
        "...wav",
        "\x00e\n.wav",
        "ä" * 300,
    ],
)
def test_a_recording_lies_in_its_folder_whatever_it_is_called(client, generations, voice, name):
    assert hand_in(client, voice, name).status_code in (202, 400, 422)
    for folder in generations.folder.glob("*.work"):
        [upload] = (folder / "upload").iterdir()
        assert upload.is_file() and upload.parent.resolve() == (folder / "upload").resolve()
    assert not list(generations.folder.parent.glob("evil*"))


@pytest.mark.parametrize(
    "name",
    ["job.json", "../job.json", "..%2Fjob.json", "%2e%2e/job.json", "..%5cjob.json", "other.npz"],
)
def test_only_what_was_made_is_given_out(client, generations, voice, name):
    id = done(client, generations, voice)["id"]
    for path in (f"{id}/files/{name}", f"..%2F{id}/files/{name}", f"{id}.work/files/{name}"):
        assert client.get(f"/v1/generations/{path}").status_code == 404
    assert client.get("/v1/generations/..").status_code == 404
    assert client.delete("/v1/generations/%2e%2e").status_code in (404, 405)
    assert generations.folder.is_dir()


def test_others_of_this_machine_cannot_look_into_a_job(client, generations, voice):
    id = hand_in(client, voice).json()["id"]
    for folder in (id, f"{id}.work/upload"):
        assert (generations.folder / folder).stat().st_mode & 0o077 == 0


def test_the_temporary_folder_is_this_users_alone(policies, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = Generations(policies).folder
    assert folder.is_relative_to(tmp_path) and folder.stat().st_mode & 0o077 == 0
    assert Generations(policies).folder == folder, "all processes of a machine share it"
    folder.chmod(0o755)
    with pytest.raises(RuntimeError, match="not this user's alone"):
        Generations(policies)
    folder.rmdir()
    os.symlink(tmp_path, folder)
    with pytest.raises(RuntimeError, match="not this user's alone"):
        Generations(policies)


def test_a_thread_does_what_is_handed_in_and_ends(policies, tmp_path, voice):
    generations = Generations(policies, tmp_path / "jobs")
    generations.start()
    client = client_of(generations)
    ids = [hand_in(client, voice, policy=policy).json()["id"] for policy in policies]
    deadline = time.monotonic() + 60
    while any(generations.job(id).status in ("waits", "runs") for id in ids):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [generations.job(id).status for id in ids] == ["done", "done"]
    generations.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "generations"]


def test_a_server_that_goes_away_takes_its_jobs_along_and_no_others(
    policies, generations, flow, voice
):
    other = Generations(policies, generations.folder)
    kept = hand_in(client_of(other), voice).json()["id"]
    policy, listener = interrupted(flow, generations.close)
    generations.policies = {"listener": Served(policy)}
    client = client_of(generations)
    for _ in range(2):
        hand_in(client, voice)
    assert generations.run_next(wait_s=0)
    assert listener.steps == 3
    assert {path.name for path in generations.folder.iterdir()} == {kept, f"{kept}.work"}
    assert hand_in(client, voice).status_code == 503


def test_a_job_and_live_sessions_do_not_meet(policies, generations, flow, voice):
    """Many threads step the same weights; each gets what it would get alone."""
    client = client_of(generations)
    ids = [hand_in(client, voice, seed=str(seed), text="sad").json()["id"] for seed in range(3)]
    config = ListenConfig(seed=9, samples=2, text="happy")
    session = session_of(flow, "listener", voice, config)
    alone = answer(session, begin(session, config), print).motions
    threads = [
        threading.Thread(target=generations.run_next, kwargs={"wait_s": 0}) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        beside = answer(session, begin(session, config), print).motions
        for one, other in zip(alone, beside, strict=True):
            np.testing.assert_array_equal(one.values, other.values)
    for seed, id in enumerate(ids):
        job = generations.job(id)
        assert job.status == "done", job.why
        config = ListenConfig(seed=seed, text="sad")
        again = answer(session, begin(session, config), print).motions[0]
        made = Motion.load(generations.file(id, "listener.npz"))
        np.testing.assert_allclose(made.values, again.values, atol=1e-5)
