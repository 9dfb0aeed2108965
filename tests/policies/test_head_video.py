"""Videos decode to what went in: frames, rate, sound; a failed write leaves nothing behind."""

import av
import numpy as np
import pytest

from rapport.policies.head import video
from rapport.policies.head.asset import TopologyError, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.head.video import panels, render_motion, write_mp4
from rapport.policies.motion import Layout, Motion


def clip(frames=30, size=(64, 96)):
    """A ramp that brightens over time, (frames, *size, 3) uint8."""
    level = np.linspace(40, 200, frames).astype(np.uint8)
    return np.broadcast_to(level[:, None, None, None], (frames, *size, 3)).copy()


def tone(seconds, rate=16_000):
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(
        np.float32
    )


def decode(path):
    """Frames (time, height, width, 3), fps, sound (samples,) or None, its rate, codec names."""
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        codecs = [stream.codec_context.codec.canonical_name for stream in container.streams]
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return frames, rate, None, None, codecs
        blocks = list(container.decode(audio=0))
        sound = np.concatenate([b.to_ndarray().mean(0) for b in blocks])
        return frames, rate, sound, blocks[0].sample_rate, codecs


@pytest.mark.parametrize(
    ("codec", "name", "codecs"),
    [
        ("libx264", "a.mp4", ["h264", "aac"]),
        ("libvpx-vp9", "a.mp4", ["vp9", "opus"]),
        ("libvpx-vp9", "a.webm", ["vp9", "opus"]),
    ],
)
def test_video_and_sound_come_back(tmp_path, codec, name, codecs):
    path = write_mp4(tmp_path / name, clip(), fps=25, audio=tone(1.2), codec=codec)
    frames, fps, sound, rate, found = decode(path)
    assert found == codecs
    assert frames.shape == (30, 64, 96, 3) and fps == 25
    assert np.abs(frames.astype(int) - clip()).mean() < 4
    assert len(sound) / rate == pytest.approx(1.2, abs=0.1)
    spectrum = np.abs(np.fft.rfft(sound))
    assert np.argmax(spectrum) * rate / len(sound) == pytest.approx(440, abs=3)


def test_silent_video_has_no_audio_stream(tmp_path):
    _, fps, sound, _, codecs = decode(write_mp4(tmp_path / "a.mp4", clip(5), fps=29.97))
    assert sound is None and codecs == ["h264"] and fps == pytest.approx(29.97, abs=0.01)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("a.mp4", {"frames": clip(0)}, "time"),
        ("a.mp4", {"frames": clip(size=(63, 96))}, "even"),
        ("a.mp4", {"frames": clip().astype(np.float32)}, "uint8"),
        ("a.mp4", {"audio": tone(1).astype(np.float64)}, "float32"),
        ("a.mp4", {"audio": tone(1)[None]}, "samples"),
        ("a.mp4", {"codec": "mjpeg"}, "codec 'mjpeg'"),
        ("a.webm", {"codec": "libx264"}, ".mp4"),
        ("a.gif", {}, ".mp4"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(tmp_path, name, change, message):
    with pytest.raises(ValueError, match=message):
        write_mp4(tmp_path / name, **{"frames": clip(), "fps": 25, **change})
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_half_way_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_mp4(tmp_path / "a.mp4", clip(5), fps=25)
    old = path.read_bytes()

    encode = video._encode_pictures

    def fail(*args):
        encode(*args)
        raise OSError("disk full")

    monkeypatch.setattr(video, "_encode_pictures", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mp4(path, clip(9), fps=25)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_panels_keep_the_pictures_and_caption_them():
    a, b, c = (clip(3, (128, 128)) // d for d in (1, 2, 3))
    row = panels([a, b, c], ["speaker", "SFT", "SFT + DPO"])
    assert row.shape == (3, 128, 384, 3)
    for i, picture in enumerate((a, b, c)):
        np.testing.assert_array_equal(row[:, 40:, 128 * i : 128 * (i + 1)], picture[:, 40:])
    assert (row[:, :24, 128:256] > b[:, :24] + 50).any() and (a == clip(3, (128, 128))).all()
    captions = panels([b, b, b], ["speaker", "SFT", "SFT"])[:, :24]
    assert not np.array_equal(captions[:, :, :128], captions[:, :, 128:256]), "captions differ"
    np.testing.assert_array_equal(captions[:, :, 128:256], captions[:, :, 256:])
    np.testing.assert_array_equal(panels([b], ["SFT"])[:, :24], captions[:, :, 256:])
    eight = panels([a, *[b] * 6, c], list("12345678"))
    assert eight.shape == (len(a), 256, 6 * 128, 3)
    np.testing.assert_array_equal(eight[:, 30:128, :128], a[:, 30:])
    np.testing.assert_array_equal(eight[:, 128 + 30 :, 128:256], c[:, 30:])
    assert (eight[:, 128:, 256:] == eight[0, -1, -1]).all(), "nothing where nobody is"


def test_an_absent_panel_is_plain_and_says_so():
    listener = clip(2, (128, 128))
    row = panels([None, listener, None], ["speaker", "listener", "SFT"])
    assert (row[:, 40:, :128] == video.BACKGROUND).all() and (
        row[:, 40:, 256:] == video.BACKGROUND
    ).all()
    words = lambda image: (image[0, :24, :, 0] > 100).sum()  # noqa: E731
    shown = panels([np.zeros_like(listener)] * 3, ["speaker", "listener", "SFT"])
    assert words(row[:, :, :128]) > words(shown[:, :, :128])
    assert words(row[:, :, 256:]) > words(shown[:, :, 256:])


def test_panels_that_cannot_be_shown_are_named():
    with pytest.raises(ValueError, match="'speaker', 'listener'.*nothing to show"):
        panels([None, None], ["speaker", "listener"])
    with pytest.raises(ValueError, match="'speaker', 'listener'.*unlike shapes"):
        panels([clip(3, (128, 128)), clip(2, (128, 128))], ["speaker", "listener"])
    with pytest.raises(ValueError, match="zip"):
        panels([clip(3)], ["speaker", "listener"])


def test_render_motion_draws_every_frame_of_a_motion_longer_than_a_chunk():
    asset = load_head()
    head, rasterizer = FlameHead(asset), Rasterizer(asset, size=64)
    values = np.zeros((video.CHUNK + 3, 6), np.float32)
    values[:, 0] = np.linspace(0, 0.3, len(values))  # jaw opens
    motion = Motion(values, Layout((("jaw", 3), ("rot", 3)), 25, "builtin"))
    frames = render_motion(head, rasterizer, motion)
    assert frames.shape == (len(motion), 64, 64, 3)
    for i in (0, video.CHUNK - 1, video.CHUNK, len(motion) - 1):
        alone = rasterizer.render(head.vertices_of(motion.window(i, 1)))[0]
        assert np.abs(frames[i].astype(int) - alone).mean() < 0.05
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50
    another = render_motion(head, rasterizer, motion.window(0, 1), shape=np.full(10, 2.0))
    assert np.abs(another.astype(int) - frames[:1]).mean() > 1
    with pytest.raises(TopologyError):
        render_motion(
            head, rasterizer, Motion(values, Layout((("jaw", 3), ("rot", 3)), 25, "flame2023"))
        )
