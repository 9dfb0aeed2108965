"""`listen`: a listener for any recording is what a live session, and `sample`, would do."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import av
import numpy as np
import pytest
from scipy.io import wavfile

from rapport import Motion, load_policy
from rapport.log import logger
from rapport.pipeline.data.readers.motion_files import read_clips
from rapport.pipeline.data.recording import open_recording
from rapport.pipeline.run import main
from rapport.pipeline.settings import ListenConfig, MotionFormat
from rapport.pipeline.steps.listener_files import FORMATS
from rapport.pipeline.steps.listening import (
    Session,
    answer,
    begin,
    open_session,
    policy_folder,
    smoother_of,
)
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.flow.conditions import LEADS
from rapport.policies.live import Chunk, LiveError
from rapport.policies.posnet import PosNet
from rapport.policies.reactface.policy import ReactFacePolicy
from rapport.policies.seams import smooth
from tests import talking
from tests.gaussian import Gaussian
from tests.policies.test_flow_live import LATENTS, R, small_policy
from tests.policies.test_flow_live import talking as talking_flow
from tests.recordings import NTSC, record

GROUPS = (("expr", 4), ("jaw", 3), ("rot", 3))
WINDOW_S = LATENTS * R / 25
VLA = talking.small_policy(seconds=4.0)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    policy = small_policy(tmp_path_factory.mktemp("texts"), text_dim=32, groups=GROUPS)
    policy.vae.channel_mean.mul_(0.1)
    policy.vae.channel_std.mul_(0.1)  # no head turns further
    return policy


@pytest.fixture(scope="module")
def folders(flow, tmp_path_factory):
    """Of untrained policies."""
    folder = tmp_path_factory.mktemp("policies")
    flow.save(folder / "flow")
    VLA.save(folder / "vla")
    Gaussian(flow.layout, 8, flow.vae.channel_mean.new_zeros(4 * flow.layout.dim)).save(
        folder / "own"
    )
    return {name: folder / name for name in ("flow", "vla", "own")}


def heard_by(policy, recording, seeds, text=None, smoother=None):
    """What `listen` does without a run directory."""
    session = Session("small", policy, policy.live(), recording)
    prompt = None if text is None else policy.told(text)
    states = [session.listener.start(seed, prompt) for seed in seeds]
    return answer(session, states, logger.debug, smoother)


def recorded(folder, clip):
    """The speaker of a clip as files."""
    wavfile.write(folder / "voice.wav", AUDIO_RATE, clip.speaker_audio)
    if clip.speaker is None:
        return open_recording(folder / "voice.wav")
    clip.speaker.save(folder / "partner.npz")
    return open_recording(folder / "partner.npz", folder / "voice.wav", clip.speaker.layout)


DELAYS = {0: 0.16, 4: 0.48, 8: 0.48, 12: 0.80}  # half a latent behind what is settled


@pytest.mark.parametrize("lead", LEADS)
def test_ar_flow_does_what_it_samples_for_a_clip(flow, lead, tmp_path):
    clip = replace(talking_flow(flow.layout), listener_audio=None)
    policy = flow.with_sampler(lead=lead)
    answered = heard_by(policy, recorded(tmp_path, clip), seeds=[5, 6], text=clip.manner)
    prompts = [policy.encode(clip)] * 2
    expected = [policy.to_motion(group[0]) for group in policy.sample(prompts, 1, [5, 6])]
    for motion, offline in zip(answered.motions, expected, strict=True):
        np.testing.assert_allclose(motion.values, offline.values, atol=1e-4)
    assert answered.delay == pytest.approx(DELAYS[lead])
    first, second = answered.motions
    assert np.abs(first.values - second.values).max() > 1e-3


def test_a_vla_does_what_it_samples_for_a_clip(tmp_path):
    clip = talking.talking(seconds=4.0, past=0)
    # A session has no name, and its noise none either.
    clip = replace(clip, clip_id="", speaker_frames=None, words=None)
    answered = heard_by(VLA, recorded(tmp_path, clip), seeds=[3])
    expected = VLA.to_motion(VLA.sample([VLA.encode(clip)], 1, [3])[0][0])
    np.testing.assert_allclose(answered.motions[0].values, expected.values, atol=1e-4)
    assert answered.delay == pytest.approx(0.2), "a block of the spline"


@pytest.mark.parametrize("way", ["average", "inertialise", "posnet"])
def test_a_smoother_joins_what_is_settled_step_by_step(flow, way, tmp_path):
    clip = replace(talking_flow(flow.layout), listener_audio=None)
    policy = ReactFacePolicy.untrained(flow.layout, [clip], seed=0)
    PosNet(flow.layout, frames=8, hidden=4).save(tmp_path / "net")
    config = ListenConfig(smoother=tmp_path / "net" if way == "posnet" else way)
    smoother = smoother_of(config.smoother, policy.layout)
    recording = recorded(tmp_path, clip)
    [plain] = heard_by(policy, recording, [0]).motions
    [joined] = heard_by(policy, recording, [0], smoother=smoother).motions
    np.testing.assert_allclose(joined.values, smooth(plain, 8, smoother).values, atol=1e-6)
    assert np.abs(joined.group("rot") - plain.group("rot"))[8:].max() > 1e-4
    np.testing.assert_array_equal(joined.group("expr"), plain.group("expr"))
    # AR-Flow gives other numbers of frames at its beginning and end.
    [motion] = heard_by(flow, recording, [0], smoother=smoother).motions
    assert len(motion) == len(plain) and np.isfinite(motion.values).all()


@pytest.mark.parametrize("seconds", [0.1, 2.0, 21.0])
def test_a_motion_is_as_long_as_its_recording_and_does_not_know_its_end(flow, seconds, tmp_path):
    film = open_recording(record(tmp_path / "a.mp4", seconds, fps=NTSC, rate=44_100))
    for policy in (flow, VLA):
        [motion] = heard_by(policy, film, seeds=[0]).motions
        assert len(motion) == round(round(seconds * NTSC) / NTSC * policy.layout.fps)
        assert np.isfinite(motion.values).all()
    clip = talking_flow(flow.layout, latents=80)
    cut = round(seconds * AUDIO_RATE)
    short = replace(clip, speaker=None, speaker_audio=clip.speaker_audio[:cut])
    for folder in ("short", "whole"):
        (tmp_path / folder).mkdir()
    [begun] = heard_by(flow, recorded(tmp_path / "short", short), seeds=[0]).motions
    [whole] = heard_by(
        flow, recorded(tmp_path / "whole", replace(clip, speaker=None)), seeds=[0]
    ).motions
    # What was settled before the last chunk, into which silence falls.
    same = max(int(seconds / 0.32) * R - R // 2, 0)
    np.testing.assert_allclose(begun.values[:same], whole.values[:same], atol=1e-5)


def test_a_listener_that_gives_too_little_ends(flow, tmp_path):
    class Mute:
        chunk = 0.32

        def start(self, seed, prompt=None):
            return SimpleNamespace(waits=False)

        def step(self, states, heard):
            return [Motion(np.zeros((0, flow.layout.dim)), flow.layout)], states

        def finish(self, state):
            return Motion(np.zeros((0, flow.layout.dim)), flow.layout)

    recording = open_recording(record(tmp_path / "a.wav", 1.0, rate=16_000))
    session = Session("small", flow, Mute(), recording)
    with pytest.raises(LiveError, match="gave 0 of 25 frames"):
        answer(session, [session.listener.start(0)], say=logger.debug)


def test_a_policy_of_ones_own_says_that_it_has_no_live_form(folders):
    own = load_policy(folders["own"])
    with pytest.raises(LiveError, match="tests.gaussian:Gaussian has no live form"):
        own.live()
    with pytest.raises(LiveError, match="takes no text"):
        own.told("happy")


def test_live_forms_are_listeners(flow):
    for policy in (flow, VLA):
        listener = policy.live()
        state = listener.start(0)
        if state.waits:
            _, [state] = listener.step([state], [None])
        _, [state] = listener.step([state], [Chunk()])
        assert not state.waits
        assert listener.unpack(listener.pack(state)).waits is False


def test_formats_are_those_of_the_config():
    assert set(FORMATS) == set(get_args(MotionFormat))


def test_of_a_run_the_aligned_policy_listens(tmp_path):
    artifacts = {"corpus": "c", "sft_policy": "sft/policy", "dpo_policy": "dpo/policy"}
    (tmp_path / "summary.json").write_text(json.dumps({"artifacts": artifacts}))
    assert policy_folder(tmp_path) == tmp_path / "dpo" / "policy"
    del artifacts["dpo_policy"]
    (tmp_path / "summary.json").write_text(json.dumps({"artifacts": artifacts}))
    assert policy_folder(tmp_path) == tmp_path / "sft" / "policy"


def test_without_a_policy_the_one_that_comes_with_the_project_listens(tmp_path):
    voice = record(tmp_path / "talk.wav", 3.0, rate=16_000)
    config = ListenConfig(speaker=voice, text="happy")
    session = open_session(config)
    [motion] = answer(session, begin(session, config), lambda _: None).motions
    assert session.policy.kind == "flow" and session.hears == ["speaker_audio"]
    assert len(motion) == 75 and np.isfinite(motion.values).all()
    assert motion.values.std(axis=0).max() > 1e-2, "it moves"


def test_a_motion_is_saved_with_what_its_columns_mean(flow, tmp_path):
    motion = Motion(np.random.default_rng(0).normal(size=(9, 10)) / 9, flow.layout)
    motion.save(tmp_path / "listener.npz")
    for again in (Motion.load(tmp_path / "listener.npz"), read_clips(tmp_path / "listener.npz")):
        np.testing.assert_array_equal(again.values, motion.values)
        assert again.layout == motion.layout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["speaker="], "listen needs speaker=RECORDING"),
        (["policy=nosuch"], "policy=nosuch: neither policy.json nor summary.json"),
        (["speaker=nosuch.mp4"], "no recording nosuch.mp4"),
        (["speaker=a.txt"], "a.txt"),
        (["lead=4"], "lead is for AR-Flow, this policy is of kind vla"),
        (["lead=5"], "lead"),
        (["smoother=nosuch"], "nosuch holds no PosNet"),
        (["text=happy"], "text: a policy of kind vla takes none"),
        (
            ["speaker=m.npz"],
            "m.npz has the speaker's motion, and this policy of kind vla perceives",
        ),
        (["audio=a.wav"], "has its own sound"),
        (["out=a.txt"], "out=a.txt: nothing may be written"),
        (["formats=npz,npz"], "names one twice"),
        (["formats=avi"], "'npz', 'parquet', 'csv', 'glb' or 'mp4'"),
        (["formats=npz", "size=128"], "size would not be heeded: formats has no mp4"),
        (["head.path=nosuch.pkl"], "nosuch.pkl"),
        (["formats=npz,glb", "head.path=nosuch.pkl"], "nosuch.pkl"),
        (["formats=npz", "head.path=nosuch.pkl"], "would not be heeded: formats has no csv, glb"),
    ],
)
def test_what_cannot_be_listened_to_is_refused_before_anything_is_made(
    arguments, words, folders, flow, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "a.wav", 1.0, rate=16_000)
    (tmp_path / "a.txt").write_text("no sound")
    Motion(np.zeros((9, 10)), flow.layout).save(tmp_path / "m.npz")
    before = sorted(tmp_path.iterdir())
    keys = [f"policy={folders['vla']}", "speaker=a.wav", *arguments]
    assert main(["listen", *keys, "--run-dir", "run"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(words, said) and "Traceback" not in said, said
    assert sorted(tmp_path.iterdir()) == before


def test_a_speaker_of_whom_nothing_is_perceived_is_refused(folders, tmp_path, capsys):
    film = record(tmp_path / "a.mp4", 1.0, fps=25)
    assert main(["listen", f"policy={folders['flow']}", f"speaker={film}"]) == 2
    said = capsys.readouterr().err
    assert "a.mp4 has frames of the speaker, and this policy of kind flow perceives" in said
    Motion(np.zeros((9, 6)), talking.LAYOUT).save(tmp_path / "m.npz")
    assert main(["listen", f"policy={folders['flow']}", f"speaker={tmp_path / 'm.npz'}"]) == 2
    assert "m.npz does not fit the policy: group 'expr' has 3 columns" in capsys.readouterr().err
    assert main(["listen", f"policy={folders['own']}", f"speaker={film}"]) == 2
    assert "has no live form" in capsys.readouterr().err


def listened(*keys, run):
    quiet = ["tracking.system_metrics=false", "--run-dir", str(run)]
    assert main(["listen", *keys, *quiet]) == 0
    return json.loads((run / "summary.json").read_text())


@pytest.mark.e2e
def test_ar_flow_listens_to_a_film(folders, tmp_path):
    film = record(tmp_path / "talk.mp4", 2.5, fps=NTSC, rate=44_100, layout="stereo")
    keys = [
        f"policy={folders['flow']}",
        f"speaker={film}",
        "formats=npz,parquet,csv,glb,mp4",
        "samples=2",
    ]
    keys += ["text=happy", "lead=4", "size=96", f"out={tmp_path / 'out'}"]
    summary = listened(*keys, run=tmp_path / "run")
    metrics = summary["metrics"]["listen"]
    assert metrics["hears"] == ["speaker_audio"] and metrics["delay_s"] == pytest.approx(0.48)
    assert summary["engines"]["listener"].startswith("flow, ")
    forms = ("npz", "parquet", "csv", "glb", "mp4")
    names = [f"listener_{k}.{form}" for k in range(2) for form in forms]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert sorted(summary["artifacts"]) == sorted(names)
    motions = [Motion.load(tmp_path / "out" / f"listener_{k}.npz") for k in range(2)]
    assert len(motions[0]) == 63 and np.abs(motions[0].values - motions[1].values).max() > 1e-3
    row = read_clips(tmp_path / "out" / "listener_1.parquet")
    np.testing.assert_array_equal(row["talk"].values, motions[1].values)
    with av.open(str(tmp_path / "out" / "listener_0.mp4")) as container:
        frames = list(container.decode(video=0))
        assert len(frames) == 63 and (frames[0].width, frames[0].height) == (128 + 96, 96)
        bright = [frame.to_ndarray(format="rgb24")[60, 120].mean() for frame in frames]
        assert np.all(np.diff(bright[::5]) > 0), "the speaker's pictures go on"
    with av.open(str(tmp_path / "out" / "listener_0.mp4")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 2.5 * AUDIO_RATE
    again = listened(*keys[:-1], run=tmp_path / "again")
    first = tmp_path / "again" / again["artifacts"]["listener_0.npz"]
    np.testing.assert_array_equal(Motion.load(first).values, motions[0].values)


@pytest.mark.e2e
def test_a_vla_listens_to_a_film_and_to_a_voice(folders, tmp_path):
    film = record(tmp_path / "talk.mkv", 1.5, fps=25, rate=48_000)
    summary = listened(f"policy={folders['vla']}", f"speaker={film}", run=tmp_path / "film")
    assert summary["metrics"]["listen"]["hears"] == ["speaker_frames", "speaker_audio"]
    folder = tmp_path / "film" / "listen"
    assert sorted(path.name for path in folder.iterdir()) == [
        "listener.csv",
        "listener.glb",
        "listener.mp4",
        "listener.npz",
    ]
    seen = Motion.load(folder / "listener.npz")
    voice = record(tmp_path / "talk.wav", 1.5, rate=48_000)
    listened(f"policy={folders['vla']}", f"speaker={voice}", run=tmp_path / "voice")
    heard = Motion.load(tmp_path / "voice" / "listen" / "listener.npz")
    assert len(seen) == len(heard) == 38
    assert np.abs(seen.values - heard.values).max() > 1e-3, "it sees the speaker"
    with av.open(str(tmp_path / "voice" / "listen" / "listener.mp4")) as container:
        assert container.streams.video[0].width == 256, "the listener alone"


@pytest.mark.e2e
def test_a_listener_listens_to_a_listener(folders, flow, tmp_path):
    """Motion goes in as it came out, and is scored by what reads motion files."""
    voice = record(tmp_path / "a.wav", 1.6, rate=16_000)
    npz = [f"policy={folders['flow']}", "formats=npz"]
    listened(*npz, f"speaker={voice}", run=tmp_path / "first")
    first = tmp_path / "first" / "listen" / "listener.npz"
    summary = listened(*npz, f"speaker={first}", f"audio={voice}", run=tmp_path / "second")
    assert summary["metrics"]["listen"]["hears"] == ["speaker", "speaker_audio"]
    second = Motion.load(tmp_path / "second" / "listen" / "listener.npz")
    assert len(second) == len(Motion.load(first)) == 40 and second.layout == flow.layout
