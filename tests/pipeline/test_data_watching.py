"""A face that is read while somebody talks: what is known by the end of a chunk, and no more."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from rapport.pipeline.data.recording import open_recording
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.data.video import watching
from rapport.pipeline.data.video.faces import Models, tracked_layout
from rapport.pipeline.data.video.landmarks import Landmarker
from rapport.pipeline.data.video.quality import Gauge, errors
from rapport.pipeline.data.video.regressor import SHIPPED, Regressor, learnt
from rapport.pipeline.data.video.tracking import BRIDGED_S, Finder
from rapport.pipeline.data.video.watching import Watcher
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import ListenConfig
from rapport.pipeline.steps.listening import open_session
from rapport.policies.head.asset import load_head
from rapport.policies.head.video import write_mp4
from rapport.policies.motion import Layout, Motion
from tests.calls import STRANGERS, tracks
from tests.recordings import record

FPS = 25
CHUNK = 8  # frames
READ = Layout((("expr", 2), ("rot", 3)), FPS, "builtin")


class Plain:
    """Reads a face that is its own coefficients, each less what is usual."""

    layout = READ

    def features(self, faces):
        return np.stack(faces)

    def __call__(self, seen, usual):
        return (seen - usual).astype(np.float32)


class Told:
    """Finds the face that a picture is; None in an empty one."""

    def find(self, picture):
        return picture if len(picture) else None


def watcher(layout=READ):
    return Watcher(Told(), Plain(), layout)


def face(value):
    return np.full(READ.dim, value, np.float32)


def test_frames_lie_on_lines_between_pictures_and_stay_after_the_newest():
    watching = watcher()
    for time, value in ((0.0, 0.0), (0.08, 0.0), (0.16, 0.0), (0.2, 4.0)):
        watching.look(time, face(value))
    motion = watching.motion(0.0, CHUNK)
    assert motion is not None and motion.layout == READ
    np.testing.assert_allclose(motion.values[:, 0], [0, 0, 0, 0, 0, 4, 4, 4], atol=1e-5)
    np.testing.assert_array_equal(watching.motion(0.0, CHUNK).values, motion.values)


def test_what_comes_later_changes_nothing():
    times = np.arange(60) * 0.07
    values = np.random.default_rng(0).normal(size=(60, READ.dim)).astype(np.float32)
    seconds = CHUNK / FPS
    for number in range(10):
        knows, guesses = watcher(), watcher()
        end = (number + 1) * seconds
        for time, value in zip(times, values, strict=True):
            knows.look(time, value + 100 * (time >= end))
            if time < end:
                guesses.look(time, value)
        a, b = (each.motion(number * seconds, CHUNK) for each in (knows, guesses))
        np.testing.assert_allclose(a.values, b.values, atol=1e-6)


def test_a_face_that_is_not_seen_is_absent_and_a_moment_is_bridged():
    watching = watcher()
    assert watching.motion(0.0, CHUNK) is None
    watching.look(0.3, face(1))
    assert watching.motion(0.0, CHUNK) is not None
    watching.look(0.4, np.zeros(0))
    assert watching.motion(0.3 + BRIDGED_S - 0.01, CHUNK) is not None
    assert watching.motion(0.3 + BRIDGED_S + 0.01, CHUNK) is None
    watching.look(30.0, face(2))
    assert watching.motion(30.0, CHUNK) is not None
    assert (watching.looked, watching.found) == (3, 2)


def test_pictures_out_of_order_are_left_out():
    watching = watcher()
    watching.look(0.1, face(1))
    watching.look(0.05, face(99))
    watching.look(0.1, face(99))
    assert watching.looked == 1
    assert np.abs(watching.motion(0.0, CHUNK).values).max() == 0


def test_what_is_usual_is_of_the_last_minute():
    watching = watcher()
    for number in range(300):
        watching.look(number / 4, face(0))
    for number in range(300, 300 + 200):
        watching.look(number / 4, face(5))
    assert np.abs(watching.motion(499 / 4, CHUNK).values).max() == 0
    assert len(watching._times) <= 4 * 3 and len(watching._usual) == 240


def test_what_cannot_be_read_of_a_layout_keeps_still():
    wanted = Layout((("expr", 3), ("jaw", 1), ("rot", 3), ("trans", 3)), FPS, "builtin")
    watching = watcher(wanted)
    watching.look(0.0, face(0))
    watching.look(0.26, face(2))
    motion = watching.motion(0.0, CHUNK)
    assert motion.layout == wanted
    assert np.abs(motion.group("jaw")).max() == np.abs(motion.group("trans")).max() == 0
    assert np.abs(motion.group("expr")[:, 2]).max() == 0
    assert motion.group("expr")[-1, 0] == motion.group("rot")[-1, 2] == 1  # the median is 1


def test_another_head_is_refused():
    with pytest.raises(CorpusError, match=r"of the builtin head.*motion of flame2023.*head\.path"):
        watcher(Layout((("expr", 2),), FPS, "flame2023"))


# -- On pictures --


@pytest.fixture(scope="module")
def landmarker():
    with Landmarker() as landmarker:
        yield landmarker


@tracks
def test_the_reader_of_the_built_in_head_comes_with_the_project(landmarker, tmp_path):
    found = learnt(load_head(), landmarker, folder=tmp_path)
    assert not list(tmp_path.iterdir()), "nothing had to be learnt"
    assert found.about == Regressor.load(SHIPPED).about
    assert all(array.dtype != np.float16 for array in found.arrays.values())


@tracks
def test_strangers_are_read_as_they_move(landmarker):
    """Small JPEGs 12.5 times a second, as the page sends them; errors as in docs/serve.md."""
    asset = load_head()
    regressor = learnt(asset, landmarker)
    people = Models(asset, STRANGERS)
    pairs = []
    for number in (0, 2):  # who speak
        drawn = people.pictured(number, people.moving(number).window(0, 12 * CHUNK))
        watching = Watcher(Finder(landmarker), regressor, regressor.layout)
        read = []
        for chunk in range(12):
            for frame in range(CHUNK * chunk, CHUNK * (chunk + 1), 2):
                watching.look(frame / FPS, drawn.images[frame])
            read.append(watching.motion(chunk * CHUNK / FPS, CHUNK).values)
        settled = slice(2 * CHUNK, None)  # until it is known what is usual
        values = np.concatenate(read)[settled]
        truth = Motion(drawn.motion.values[settled], drawn.motion.layout)
        pairs.append((truth, Motion(values, truth.layout)))
    found = errors(Gauge(asset), pairs)
    for part, least in (("lips", 0.6), ("corners", 0.7), ("chin", 0.6), ("lids", 0.6)):
        assert found[part]["r2"] > least, found
    assert found["rot"]["degrees"] < 2.5, found


@tracks
def test_a_listener_to_a_film_sees_the_face_in_it(tmp_path):
    people = Models(load_head(), STRANGERS)
    drawn = people.pictured(0, people.moving(0).window(0, 6 * CHUNK))
    film = write_mp4(tmp_path / "film.mp4", drawn.images, FPS)
    sees = ListenConfig(speaker=film, watch=True, seed=0)
    session = open_session(sees)
    assert session.hears == ["speaker"]
    motions = [chunk.motion for chunk in session.chunks()]
    assert len(motions) == 6 and all(m.layout == session.policy.layout for m in motions)
    jaw = np.concatenate([m.group("jaw")[:, 0] for m in motions])
    assert np.corrcoef(jaw, drawn.motion.group("jaw")[:, 0])[0, 1] > 0.6
    with pytest.raises(RunError, match="watch=true reads the speaker's face"):
        open_session(ListenConfig(speaker=film))


@tracks
def test_a_film_in_which_no_face_is_found_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(watching.logger, "warning", said.append)
    film = record(tmp_path / "film.mp4", seconds=1, fps=25, rate=16000)
    session = open_session(ListenConfig(speaker=film, watch=True))
    assert all(chunk.motion is None for chunk in session.chunks())
    assert said == ["  a face in 0 of 25 pictures of film.mp4"]


@pytest.mark.parametrize("name", ["sound.wav"])
def test_without_pictures_there_is_nothing_to_watch(tmp_path, name):
    sound = record(tmp_path / name, rate=16000)
    with pytest.raises(RunError, match=r"watch: .*sound\.wav has no pictures, leave it out"):
        open_session(ListenConfig(speaker=sound, watch=True))


def test_without_mediapipe_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    film = record(tmp_path / "film.mp4", fps=25, rate=16000)
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(CorpusError, match="MediaPipe.*--no-deps -r infra/requirements/video.lock"):
        open_session(ListenConfig(speaker=film, watch=True))


def test_a_policy_that_perceives_no_motion_does_not_watch(tmp_path):
    from rapport.pipeline.steps.listening import _watched

    recording = open_recording(record(tmp_path / "film.mp4", fps=25, rate=16000))
    policy = SimpleNamespace(reads=("speaker_audio",), kind="deaf", layout=tracked_layout)
    with pytest.raises(RunError, match="kind deaf perceives no motion"):
        _watched(ListenConfig(speaker=recording.path, watch=True), policy, recording)
