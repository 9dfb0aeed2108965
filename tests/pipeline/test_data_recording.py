"""A recording of any kind and length, in the chunks in which it is heard."""

import wave
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rapport.pipeline.data.recording import RecordingError, open_recording
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.motion import Layout, Motion
from tests.recordings import NTSC, brightness, record, tone

CHUNK = 0.32
BOTH = ("speaker_frames", "speaker_audio")
LAYOUT = Layout((("expr", 4), ("jaw", 3)), 25, "builtin")


def heard(recording, reads=BOTH, chunk=CHUNK):
    return list(recording.chunks(chunk, reads))


def sound_of(chunks):
    return np.concatenate([chunk.audio for chunk in chunks])


@pytest.mark.parametrize(
    ("name", "rate", "layout"),
    [
        ("a.wav", 48_000, "stereo"),
        ("a.wav", 16_000, "mono"),
        ("a.flac", 22_050, "stereo"),
        ("a.mov", 44_100, "stereo"),
        ("a.mkv", 11_025, "mono"),
    ],
)
@pytest.mark.parametrize("seconds", [2.0, 21.0])
def test_sound_of_any_rate_is_heard_as_it_was(tmp_path, name, rate, layout, seconds):
    recording = open_recording(record(tmp_path / name, seconds, rate=rate, layout=layout))
    assert recording.streams == ["speaker_audio"]
    assert recording.seconds == pytest.approx(seconds, abs=1e-3)
    chunks = heard(recording)
    assert len(chunks) == np.ceil(seconds / CHUNK)
    assert all(chunk.frames is None and chunk.audio.dtype == np.float32 for chunk in chunks)
    sizes = {len(chunk.audio) for chunk in chunks}
    assert sizes == {round(CHUNK * AUDIO_RATE)}
    expected = tone(seconds, AUDIO_RATE)
    sound = sound_of(chunks)
    # Filters ring at the ends.
    edge = 200
    inner = slice(edge, len(expected) - edge)
    np.testing.assert_allclose(sound[inner], expected[inner], atol=2e-3)
    assert not sound[len(expected) + edge :].any(), "silence follows to the end of the chunk"


@pytest.mark.parametrize("name", ["a.mp3", "a.mp4", "a.webm"])
def test_lossy_sound_is_at_its_place(tmp_path, name):
    fps = None if name == "a.mp3" else 25
    recording = open_recording(record(tmp_path / name, 3.0, fps=fps, rate=48_000))
    assert recording.seconds == pytest.approx(3.0, abs=0.03)
    sound = sound_of(heard(recording, ("speaker_audio",)))[: 3 * AUDIO_RATE]
    expected = tone(3.0, AUDIO_RATE)
    assert np.corrcoef(sound, expected)[0, 1] > 0.99


@pytest.mark.parametrize("fps", [NTSC, 25, 12])
@pytest.mark.parametrize("chunk", [0.32, 0.4])
def test_pictures_are_of_the_chunk_in_which_they_were_taken(tmp_path, fps, chunk):
    recording = open_recording(record(tmp_path / "a.mp4", 2.0, fps=fps))
    assert recording.streams == ["speaker_frames"]
    count = round(2.0 * fps)
    chunks = heard(recording, chunk=chunk)
    taken = [chunk.taken + number * chunk_s for number, (chunk, chunk_s) in numbered(chunks, chunk)]
    np.testing.assert_allclose(np.concatenate(taken), np.arange(count) / float(fps), atol=1e-3)
    for piece in chunks:
        assert (piece.taken <= chunk + 1e-6).all() and piece.audio is None
    assert len(chunks[0].frames) == np.floor(chunk * float(fps) + 1e-6) + 1, "that at its end, too"
    images = np.concatenate([piece.frames for piece in chunks])
    assert images.shape == (count, 224, 224, 3) and images.dtype == np.uint8
    right = images[:, 112, 200].mean(-1)
    np.testing.assert_allclose(right, [brightness(n, count) for n in range(count)], atol=4)


def numbered(chunks, seconds):
    return enumerate((chunk, seconds) for chunk in chunks)


def test_the_middle_square_is_seen_and_a_phone_on_its_side_stands_up(tmp_path):
    wide = record(tmp_path / "wide.mp4", 1.0, fps=10, size=(128, 48))
    image = heard(open_recording(wide))[0].frames[-1]
    assert image[112, 100, 1] < 20 < image[112, 124, 1], "the border is still in the middle"
    turned = record(tmp_path / "turned.mp4", 1.0, fps=10, size=(64, 64), turned=90)
    image = heard(open_recording(turned))[0].frames[-1]
    reds = [image[:100, :, 1].mean() < 20, image[124:, :, 1].mean() < 20]
    assert sorted(reds) == [False, True], "left and right have become above and below"
    whole = open_recording(wide).film(64, square=False)
    assert whole.first.shape == (64, 170, 3)


def test_a_film_without_sound_and_a_sound_without_film_lack_the_other(tmp_path):
    film = open_recording(record(tmp_path / "a.mp4", 1.0, fps=10))
    assert film.sound() is None and film.streams == ["speaker_frames"]
    sound = open_recording(record(tmp_path / "a.wav", 1.0, rate=8000))
    assert sound.film(64) is None and sound.streams == ["speaker_audio"]


def test_a_stream_that_ended_is_absent_and_no_silence(tmp_path):
    motion = Motion(np.zeros((50, LAYOUT.dim)), LAYOUT)
    motion.save(tmp_path / "listener.npz")
    record(tmp_path / "a.wav", 1.0, rate=16_000)
    recording = open_recording(tmp_path / "listener.npz", tmp_path / "a.wav", LAYOUT)
    assert recording.streams == ["speaker", "speaker_audio"] and recording.seconds == 2.0
    chunks = heard(recording, ("speaker", "speaker_audio"))
    assert [chunk.audio is None for chunk in chunks] == [False] * 4 + [True] * 3
    assert [len(chunk.motion) for chunk in chunks] == [8] * 7


def test_sound_that_begins_late_is_heard_late(tmp_path):
    path = record(tmp_path / "a.mkv", 1.0, fps=10, rate=16_000, late=0.5)
    sound = sound_of(heard(open_recording(path)))
    assert not sound[:7900].any()
    np.testing.assert_allclose(sound[8200:23_000], tone(1.0, AUDIO_RATE)[200:15_000], atol=2e-3)


def test_motion_comes_from_npz_and_parquet_without_what_the_policy_lacks(tmp_path):
    rng = np.random.default_rng(0)
    motion = Motion(rng.normal(size=(21, LAYOUT.dim)) / 9, LAYOUT)
    motion.save(tmp_path / "listener.npz")
    narrow = LAYOUT.subset({"jaw": 3, "expr": 2})
    chunks = heard(open_recording(tmp_path / "listener.npz", layout=narrow), ("speaker",))
    values = np.concatenate([chunk.motion.values for chunk in chunks])
    assert len(values) == 24 and chunks[0].motion.layout == narrow
    np.testing.assert_array_equal(values[:21], motion.subset(narrow).values)
    np.testing.assert_array_equal(values[21:], values[20:21].repeat(3, 0))
    fast = replace(LAYOUT, fps=30)
    with pytest.raises(RecordingError, match="listener.npz does not fit the policy.*frame rate"):
        open_recording(tmp_path / "listener.npz", layout=fast)


def test_what_is_no_recording_is_named(tmp_path):
    (tmp_path / "notes.md").write_text("no film\n" * 99)
    (tmp_path / "notes.txt").write_text("no film\n" * 99)
    (tmp_path / "empty.mp4").touch()
    record(tmp_path / "a.wav", 1.0, rate=16_000)
    (tmp_path / "list.wav").write_text("ffconcat version 1.0\nfile 'a.wav'\n")
    Image.new("RGB", (64, 64)).save(tmp_path / "face.png")
    with wave.open(str(tmp_path / "nothing.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
    np.savez(tmp_path / "bare.npz", np.zeros((9, 7)))
    film = record(tmp_path / "a.mp4", 1.0, fps=10)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(film.read_bytes()[:900])
    refused = {
        "nosuch.mp4": "no recording .*nosuch.mp4",
        "nosuch.npz": "nosuch.npz",
        ".": "is a folder",
        "notes.md": "cannot be read as sound or film",
        "notes.txt": "text|cannot be read",
        "empty.mp4": "empty.mp4 cannot be read",
        "face.png": "face.png is a text or a picture",
        "list.wav": "list.wav is a text or a picture",
        "nothing.wav": "nothing.wav .*(neither sound nor pictures|empty)",
        "bare.npz": "does not say what its columns are",
        "damaged.mp4": "damaged.mp4 cannot be read",
    }
    for name, why in refused.items():
        with pytest.raises(RecordingError, match=why):
            open_recording(tmp_path / name)
    with pytest.raises(RecordingError, match="has its own sound"):
        open_recording(film, audio=film)
    Motion(np.zeros((9, 7)), LAYOUT).save(tmp_path / "m.npz")
    with pytest.raises(RecordingError, match="a.mp4 has no sound"):
        open_recording(tmp_path / "m.npz", audio=film)


def test_a_long_recording_is_not_held_in_memory(tmp_path):
    """Sound is decoded as it is asked for."""
    recording = open_recording(record(tmp_path / "a.flac", 21.0, rate=16_000))
    sound = recording.sound()
    sound.until(100)
    assert len(sound._held) < AUDIO_RATE
