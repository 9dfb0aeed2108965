"""`bridge`: what arrives by UDP is read back by parsers written from the formats' descriptions."""

import asyncio
import json
import os
import re
import socket
import struct
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.io import wavfile
from scipy.spatial.transform import Rotation

from rapport.pipeline.run import main
from rapport.pipeline.serve import packets
from rapport.pipeline.serve.bridge import Bridged, _play, bridge
from rapport.pipeline.settings import BridgeConfig
from rapport.policies.head.arkit import arkit_layout
from rapport.policies.head.livelink import CHANNELS, write_livelink
from rapport.policies.motion import Motion
from tests.echoing import ARKIT, FRAMES, RATE, SAMPLES, Echo, done

LOUD = [0.1, -0.05, 0.2, 0.0, 0.15]  # of the chunks
PLACES = ("osc", "vmc", "livelink")
# As Unreal counts them (EARFaceBlendShape); the app's files have jawRight and mouthRight first.
UNREAL = re.findall(
    r"\w+",
    "EyeBlinkLeft EyeLookDownLeft EyeLookInLeft EyeLookOutLeft EyeLookUpLeft EyeSquintLeft "
    "EyeWideLeft EyeBlinkRight EyeLookDownRight EyeLookInRight EyeLookOutRight EyeLookUpRight "
    "EyeSquintRight EyeWideRight JawForward JawLeft JawRight JawOpen MouthClose MouthFunnel "
    "MouthPucker MouthLeft MouthRight MouthSmileLeft MouthSmileRight MouthFrownLeft "
    "MouthFrownRight MouthDimpleLeft MouthDimpleRight MouthStretchLeft MouthStretchRight "
    "MouthRollLower MouthRollUpper MouthShrugLower MouthShrugUpper MouthPressLeft MouthPressRight "
    "MouthLowerDownLeft MouthLowerDownRight MouthUpperUpLeft MouthUpperUpRight BrowDownLeft "
    "BrowDownRight BrowInnerUp BrowOuterUpLeft BrowOuterUpRight CheekPuff CheekSquintLeft "
    "CheekSquintRight NoseSneerLeft NoseSneerRight TongueOut HeadYaw HeadPitch HeadRoll "
    "LeftEyeYaw LeftEyePitch LeftEyeRoll RightEyeYaw RightEyePitch RightEyeRoll",
)
FACE = dict(zip(CHANNELS, np.linspace(0.01, 0.61, 61), strict=True))


class Bytes:
    """What is read from the front of some bytes, big endian."""

    def __init__(self, data):
        self.data = data

    def take(self, count):
        taken, self.data = self.data[:count], self.data[count:]
        assert len(taken) == count
        return taken

    def number(self, form):
        return struct.unpack(f">{form}", self.take(struct.calcsize(form)))[0]

    def counted_text(self):
        return self.take(self.number("i")).decode()

    def osc_text(self):
        """Ends with a zero, and is filled up with zeros to a multiple of four bytes."""
        text = self.data[: self.data.index(b"\0")]
        padded = self.take(len(text) + 4 - len(text) % 4)
        assert set(padded[len(text) :]) == {0}
        return text.decode("ascii")


def read_bundle(packet):
    """(address, values) of the messages in a bundle of OSC 1.0."""
    bundle = Bytes(packet)
    assert bundle.take(8) == b"#bundle\0"
    assert bundle.number("Q") == 1, "at once"
    messages = []
    while bundle.data:
        message = Bytes(bundle.take(bundle.number("i")))
        address = message.osc_text()
        comma, *types = message.osc_text()
        assert comma == ","
        values = [message.osc_text() if kind == "s" else message.number(kind) for kind in types]
        assert not message.data
        messages.append((address, *values))
    return messages


def read_livelink(packet):
    """Name, frame and its part, frames a second, and the values of a packet of version 6."""
    data = Bytes(packet)
    assert data.number("B") == 6
    assert re.fullmatch(r"[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}", data.counted_text())
    name = data.counted_text()
    frame, part = data.number("i"), data.number("f")
    rate = data.number("i"), data.number("i")
    values = [data.number("f") for _ in range(data.number("B"))]
    assert not data.data
    return name, frame, part, rate, dict(zip(UNREAL, values, strict=True))


def as_array(face):
    return np.array([face[name] for name in CHANNELS], np.float32)


# -- Packets --


def test_osc_has_a_message_for_each_channel():
    bundles = packets.osc(as_array(FACE))
    messages = [message for bundle in bundles for message in read_bundle(bundle)]
    assert [address for address, _ in messages] == [f"/rapport/arkit/{name}" for name in CHANNELS]
    np.testing.assert_allclose([value for _, value in messages], as_array(FACE))
    assert 1 < len(bundles) < 5 and max(map(len, bundles)) <= 1400, "packets of an Ethernet"


def test_vmc_applies_the_weights_after_the_last_of_them():
    bundles = packets.vmc(as_array(FACE))
    messages = [message for bundle in bundles for message in read_bundle(bundle)]
    weights = {m[1]: m[2] for m in messages if m[0] == "/VMC/Ext/Blend/Val"}
    assert weights == pytest.approx({name: FACE[name] for name in UNREAL[:52]})
    assert messages[-1] == ("/VMC/Ext/Blend/Apply",)
    assert max(map(len, bundles)) <= 1400


@pytest.mark.parametrize(
    ("channel", "axis", "moved"),
    [
        ("HeadYaw", (0, 0, 1), (1, 0, 0)),  # the nose to the person's right, Unity's x
        ("HeadPitch", (0, 0, 1), (0, -1, 0)),  # the nose down
        ("HeadRoll", (0, 1, 0), (-1, 0, 0)),  # the crown to the person's left
    ],
)
def test_vmc_turns_the_head_by_the_axes_of_unity(channel, axis, moved):
    face = dict.fromkeys(CHANNELS, 0.0) | {channel: np.pi / 6}
    [bone] = [m for b in packets.vmc(as_array(face)) for m in read_bundle(b) if "Bone" in m[0]]
    assert bone[:5] == ("/VMC/Ext/Bone/Pos", "Head", 0, 0, 0)
    x, y, z, w = bone[5:]
    v, q = np.array(axis, float), np.array([x, y, z])
    turned = v + 2 * w * np.cross(q, v) + 2 * np.cross(q, np.cross(q, v))  # v by quaternion q
    np.testing.assert_allclose(turned, 3**0.5 / 2 * v + np.array(moved) / 2, atol=1e-6)


def test_vmc_turns_the_head_as_a_take_of_live_link_face_does(tmp_path):
    """The other way round: a head of ours, its angles in a take, and the bone, x mirrored."""
    turn = np.array([0.3, -0.5, 0.2])
    values = np.zeros((1, 61), np.float32)
    values[0, 52:55] = turn
    write_livelink(tmp_path / "take.csv", Motion(values, arkit_layout(25)))
    header, row = (line.split(",") for line in (tmp_path / "take.csv").read_text().splitlines())
    face = {name: float(value) for name, value in zip(header[2:], row[2:], strict=True)}
    [bone] = [m for b in packets.vmc(as_array(face)) for m in read_bundle(b) if "Bone" in m[0]]
    mirrored = np.diag([-1, 1, 1])
    expected = mirrored @ Rotation.from_rotvec(turn).as_matrix() @ mirrored
    np.testing.assert_allclose(Rotation.from_quat(bone[5:]).as_matrix(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("fps", "rate"), [(25.0, (25, 1)), (29.97, (2997, 100)), (30000 / 1001, (30000, 1001))]
)
def test_live_link_has_the_values_in_unreals_order_and_the_time_of_day(fps, rate):
    seconds = 43_210.5 + 0.25 / fps
    packet = packets.livelink(as_array(FACE), seconds, fps, "Zoë")
    name, frame, part, said, values = read_livelink(packet)
    assert name == "Zoë" and values == pytest.approx(FACE)
    assert said == rate
    assert (frame + part) / fps == pytest.approx(seconds)


# -- The recipe --


@pytest.fixture
def talk(tmp_path):
    samples = np.repeat(np.round(np.array(LOUD) * 32768), SAMPLES).astype(np.int16)
    wavfile.write(tmp_path / "talk.wav", RATE, samples)
    return tmp_path / "talk.wav"


@contextmanager
def receivers():
    """A UDP socket for each place, and the keys that name them."""
    sockets = {place: socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for place in PLACES}
    for each in sockets.values():
        each.bind(("127.0.0.1", 0))
        each.setblocking(False)
    keys = {place: f"127.0.0.1:{each.getsockname()[1]}" for place, each in sockets.items()}
    try:
        yield sockets, keys
    finally:
        for each in sockets.values():
            each.close()


def received(each):
    packets = []
    with suppress(BlockingIOError):
        while True:
            packets.append(each.recv(1 << 16))
    return packets


def expected_faces(loud):
    means = [float(np.round(each * 32768) / 32768) for each in loud]
    return [done(means, n) * ARKIT for n in range(len(loud)) for _ in range(FRAMES)]


def test_a_recording_is_sent_frame_by_frame(talk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAPPORT_TOKEN", "secret")
    with receivers() as (sockets, keys), Echo({(0, 2): "move"}, token="secret").serving() as echo:
        places = [f"{name}={address}" for name, address in keys.items()]
        arguments = [f"server={echo.url}", f"speaker={talk}", "buffer_s=1", *places]
        arguments += ["text=calm", "seed=3", "tracking.system_metrics=false"]
        assert main(["bridge", *arguments, "--run-dir", "run"]) == 0
        osc, vmc, livelink = (received(sockets[place]) for place in PLACES)

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    counts = summary["counts"]
    assert counts["chunks"] == 5 and counts["frames"] + counts["late"] == 20
    # A machine that has no time for a frame until the next one is due leaves it out.
    faces = expected_faces(LOUD)
    sent = [read_livelink(packet) for packet in livelink]
    assert len(sent) == counts["frames"] > 0 and {rate for _, _, _, rate, _ in sent} == {(25, 1)}
    times = np.array([frame + part for _, frame, part, _, _ in sent])
    numbers = np.round(times - times[-1]).astype(int) + 19
    np.testing.assert_allclose(times - times[-1], numbers - 19, atol=1e-3)
    said = [as_array(face) for *_, face in sent]
    np.testing.assert_allclose(said, [faces[number] for number in numbers], atol=1e-6)

    messages = [message for packet in osc for message in read_bundle(packet)]
    values = np.array([value for _, value in messages]).reshape(-1, 61)
    np.testing.assert_array_equal(values, said)
    applied = [m for packet in vmc for m in read_bundle(packet) if m[0].endswith("Apply")]
    assert len(applied) == len(sent)

    assert [asked["number"] for asked in echo.asked] == [0, 2]
    assert echo.asked[0]["outputs"] == ["arkit", "act"] and echo.asked[0]["text"] == "calm"
    metrics = summary["metrics"]["bridge"]
    assert metrics["sessions"] == 2 and metrics["delay_s"] == pytest.approx(1.16)
    assert "secret" not in (tmp_path / "run" / "config.yaml").read_text()
    assert "trained on synthetic people" in capsys.readouterr().out


def test_frames_whose_time_has_gone_are_not_sent(talk):
    """An answer that takes as long as an outage does is not shown later than its time."""

    class Slow(Echo):
        def shown(self, means, number, flags=0):
            parts = super().shown(means, number, flags)
            parts = [type(part)(part.kind, 0, part.payload, flags) for part in parts]
            return parts  # as if all of them belonged to the beginning

    said = []
    with receivers() as (sockets, keys), Slow().serving() as echo:
        config = BridgeConfig(server=echo.url, speaker=talk, vmc=keys["vmc"], buffer_s=0)
        bridged = asyncio.run(bridge(config, said.append))
        applied = [m for packet in received(sockets["vmc"]) for m in read_bundle(packet)]
    assert bridged.late >= 12 and bridged.late + bridged.frames == 20
    assert applied.count(("/VMC/Ext/Blend/Apply",)) == bridged.frames


def test_where_answers_come_later_for_good_all_is_shown_later():
    rate, fps, frames = 16000, 25.0, 4

    class Slower:
        """Its answers are .3 s later from the fourth on."""

        session = SimpleNamespace(rate=rate, fps=fps)

        async def converse(self, chunks):
            clock = asyncio.get_running_loop()
            for number in range(14):
                due = self.begins + (number + 1) * frames / fps + 0.3 * (number > 3)
                await asyncio.sleep(max(due - clock.time(), 0))
                yield SimpleNamespace(
                    chunk=number,
                    sample=number * frames * rate / fps,
                    arkit=np.zeros((frames, 61)),
                )

    async def played():
        client = Slower()
        client.begins = asyncio.get_running_loop().time()
        made = Bridged(delay_s=frames / fps + 0.05)
        await _play(client, None, lambda values, moment: None, made, 0.05)
        return made

    made = asyncio.run(played())
    assert made.chunks == 14 and made.frames + made.late == 14 * frames
    assert made.late <= 3 * frames and made.delay_s == pytest.approx(0.56, abs=0.1)


def test_sound_from_a_pipe_is_heard_from_the_beginning_of_the_session():
    config = BridgeConfig(speaker="-", osc="127.0.0.1:9", buffer_s=0.5)
    old, new = np.full(SAMPLES, 9000, "<i2"), np.full(2 * SAMPLES + 100, 3277, "<i2")

    async def talk(echo):
        reading, writing = os.pipe()
        os.write(writing, old.tobytes())
        pipe = os.fdopen(reading, "rb")
        bridging = asyncio.create_task(
            bridge(config.model_copy(update={"server": echo.url}), said.append, pipe)
        )
        while not said:  # until the session is open
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)  # the pipe is emptied
        os.write(writing, new.tobytes())
        os.close(writing)
        return await bridging

    said = []
    with Echo().serving() as echo:
        bridged = asyncio.run(talk(echo))
    sounds = [m[0].payload for m in echo.said[0] if isinstance(m, list)]
    assert sounds == [new[:SAMPLES].tobytes()] * 2, "no half chunk, and nothing from before"
    assert bridged.chunks == 2 and bridged.frames + bridged.late == 2 * FRAMES


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["osc=127.0.0.1:9000"], "bridge needs speaker=RECORDING"),
        (["speaker=talk.wav"], "bridge needs osc=HOST:PORT, vmc=HOST:PORT or livelink=HOST:PORT"),
        (["speaker=nosuch.wav", "osc=127.0.0.1:9000"], "no recording nosuch.wav"),
        (["speaker=-", "audio=talk.wav", "osc=127.0.0.1:9000"], "leave audio=talk.wav out"),
        (["speaker=talk.wav", "vmc=39539"], "vmc=39539 is no HOST:PORT"),
        (["speaker=talk.wav", "livelink=127.0.0.1:70000"], "livelink=127.0.0.1:70000 is no HOST"),
        (["speaker=talk.wav", "vmc=no such host:39539"], "vmc=no such host:39539: "),
        (["speaker=talk.wav", "vmc=localhost:39539", "server=nowhere"], "nowhere is no URL"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(keys, words, talk, monkeypatch, capsys):
    monkeypatch.chdir(talk.parent)
    quiet = ["tracking.system_metrics=false", "--run-dir", "run"]
    assert main(["bridge", *keys, *quiet]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
