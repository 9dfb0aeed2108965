"""PFL: one rectangle for a whole film; of a square that moves, and of a rendered webcam."""

from fractions import Fraction

import av
import numpy as np
import pytest

from rapport.pipeline.data.pfl import (
    Square,
    find_face,
    fixed_square,
    floating_squares,
    follow,
    haar,
    translation,
    write_crop,
)
from rapport.pipeline.data.recording import RecordingError, open_recording
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.head.asset import load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import BACKGROUND, Rasterizer
from rapport.policies.head.video import render_motion, write_mp4
from rapport.policies.motion import Layout, Motion
from tests.recordings import record, tone

FPS = 10
EVERY = 2
SIDE = 24  # of the square that stands for a face


def film(path, places, size=(160, 120), times=None, turned=0):
    """A white square on black, (left, top, side) of each picture or None; a grey one may be beside.

    Args:
        path: of the film.
        places: one for each picture, or a list of them.
        size: width and height.
        times: seconds of each picture; None = `FPS` a second.
        turned: degrees by which a phone was turned.
    """
    times = [number / FPS for number in range(len(places))] if times is None else times
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height = size
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "1"}
        stream.codec_context.time_base = Fraction(1, 1000)
        if turned:
            stream.set_display_rotation(turned)
        for moment, squares in zip(times, places, strict=True):
            image = np.zeros((size[1], size[0], 3), np.uint8)
            for left, top, side in squares or []:
                image[top : top + side, left : left + side] = 255
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = round(1000 * moment), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return open_recording(path)


def squares(picture):
    """The detector of such films: each run of bright columns is a face."""
    bright = picture[..., 1] > 128
    columns = np.flatnonzero(bright.any(axis=0))
    faces = []
    for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1) if len(columns) else []:
        rows = np.flatnonzero(bright[:, run].any(axis=1))
        faces.append((run[0], rows[0], len(run), len(rows)))
    return np.array(faces, float).reshape(-1, 4)


def found(recording, **given):
    return find_face(recording, squares, **{"fps": FPS, "every": EVERY, "smoothed": 1} | given)


def test_boxes_lie_on_lines_between_the_pictures_that_are_searched(tmp_path):
    places = [[(2 * number, 40, SIDE)] for number in range(41)]
    searched = []

    def counting(picture):
        searched.append(picture.shape)
        return squares(picture)

    recording = film(tmp_path / "a.mp4", places)
    face = find_face(recording, counting, fps=FPS, every=5, smoothed=1)
    assert len(searched) == 9 and face.seen.all() and len(face.boxes) == 41
    expected = [[2 * number, 40, SIDE, SIDE] for number in range(41)]
    np.testing.assert_allclose(face.boxes, expected, atol=1.01)


def test_the_rectangle_is_that_of_the_paper_by_hand(tmp_path):
    """Eq. 7: the mean of the middles. Eq. 8: from edge to edge of all boxes, or `limit`."""
    places = [[(20, 40, SIDE)]] * 30 + [[(36, 44, SIDE)]] * 10
    face = found(film(tmp_path / "a.mp4", places), every=1)
    middle = (30 * 20 + 10 * 36) / 40 + SIDE / 2, (30 * 40 + 10 * 44) / 40 + SIDE / 2
    extent = 36 + SIDE - 20
    fixed = fixed_square(face)
    expected = (middle[0] - extent / 2, middle[1] - extent / 2, extent)
    assert (fixed.left, fixed.top, fixed.side) == pytest.approx(
        (max(expected[0], 0), *expected[1:]), abs=1
    )
    limited = fixed_square(face, limit=30)
    assert (limited.left, limited.top, limited.side) == pytest.approx(
        (middle[0] - 15, middle[1] - 15, 30), abs=1
    )


def test_a_picture_smaller_than_the_window_is_shown_as_far_as_it_goes(tmp_path):
    places = [[(4 * number, 2 * number, 20)] for number in range(20)]
    recording = film(tmp_path / "small.mp4", places, size=(100, 60))
    face = found(recording)
    assert fixed_square(face, limit=256) == fixed_square(face)
    assert fixed_square(face).side == 60 and fixed_square(face).top == 0
    write_crop(recording, face, tmp_path / "out.mp4", limit=256)
    assert open_recording(tmp_path / "out.mp4").film(None).first.shape == (256, 256, 3)


def test_in_the_fixed_crop_the_face_moves_and_in_the_floating_one_it_stands_still(tmp_path):
    places = [[(20 + 2 * number, 40, SIDE)] for number in range(40)]
    recording = film(tmp_path / "a.mp4", places)
    face = found(recording, every=1)
    fixed = fixed_square(face)
    assert (
        isinstance(fixed, Square) and len({square.left for square in floating_squares(face)}) > 30
    )
    track = {}
    for crop in ("fixed", "floating"):
        write_crop(recording, face, tmp_path / f"{crop}.mp4", crop=crop)
        cropped = open_recording(tmp_path / f"{crop}.mp4")
        frames = list(cropped.film(None).until(10))
        track[crop] = np.array([image[128, :, 1].argmax() for _, image in frames])
    assert np.ptp(track["floating"]) <= 10
    moved = np.arange(40) * 2 * 256 / fixed.side
    np.testing.assert_allclose(track["fixed"] - track["fixed"][0], moved, atol=8)


def test_nobody_in_the_picture_is_an_error(tmp_path):
    recording = film(tmp_path / "empty.mp4", [None] * 20)
    with pytest.raises(RecordingError, match=r"empty.mp4: no face found in 10 pictures"):
        found(recording)
    sound = open_recording(record(tmp_path / "a.wav", 1.0, rate=16_000))
    with pytest.raises(RecordingError, match="a.wav has no pictures to look for a face in"):
        found(sound)


def test_a_face_that_is_away_for_two_seconds_is_missing_then_and_not_invented(tmp_path):
    places = [[(20, 40, SIDE)]] * 20 + [None] * 20 + [[(26, 40, SIDE)]] * 20
    recording = film(tmp_path / "a.mp4", places)
    face = found(recording)
    assert face.seen[:19].all() and not face.seen[20:39].any() and face.seen[40:].all()
    track = translation(face)
    assert np.isnan(track[20:39]).all() and np.isfinite(track[face.seen]).all()
    assert fixed_square(face).side == pytest.approx(26 + SIDE - 20, abs=1)
    assert len(floating_squares(face)) == 60
    for crop in ("fixed", "floating"):
        write_crop(recording, face, tmp_path / "out.mp4", crop=crop)
        assert open_recording(tmp_path / "out.mp4").seconds == pytest.approx(6, abs=0.05)


def test_a_face_that_is_overlooked_for_half_a_second_is_not_away(tmp_path):
    places = [[(20 + number, 40, SIDE)] for number in range(40)]
    places[16:20] = [None] * 4
    face = found(film(tmp_path / "a.mp4", places))
    assert face.seen.all()
    np.testing.assert_allclose(face.boxes[:, 0], 20 + np.arange(40), atol=2)


def test_of_two_faces_the_same_one_is_followed(tmp_path):
    """The larger, also where it comes late, is overlooked, or its boxes are named after others."""
    places = []
    for number in range(40):
        here, there = (80 - number, 30, 30), (10, 80, 16)
        places.append([there] if number in (0, 1, 20, 21) else [there, here])
    face = found(film(tmp_path / "a.mp4", places))
    np.testing.assert_allclose(face.boxes[4:, 0], 80 - np.arange(4, 40), atol=2)
    np.testing.assert_allclose(face.boxes[4:, 3], 30, atol=1)


def test_following_asks_for_overlap_and_not_for_order():
    a, b = np.array([0, 0, 10, 10.0]), np.array([50, 0, 12, 12.0])
    noise = np.array([200, 200, 40, 40.0])  # large, and only once
    pictures = [
        np.stack([a, b]),
        np.stack([b, a]),
        np.stack([noise, a, b]),
        np.zeros((0, 4)),
        b[None],
    ]
    followed = follow(pictures)
    np.testing.assert_array_equal(followed[[0, 1, 2, 4]], np.stack([b] * 4))
    assert np.isnan(followed[3]).all()
    assert follow([]).shape == (0, 4)


def test_one_false_box_is_not_believed(tmp_path):
    places = [[(20, 40, SIDE)] for _ in range(60)]
    places[30:32] = [[(30, 36, 40)]] * 2
    recording = film(tmp_path / "a.mp4", places)
    rough, smooth = fixed_square(found(recording)), fixed_square(found(recording, smoothed=5))
    assert smooth.side == pytest.approx(SIDE, abs=1) and rough.side > 40


def test_a_phones_film_is_upright(tmp_path):
    places = [[(20 + 2 * number, 40, SIDE)] for number in range(30)]
    face = found(film(tmp_path / "a.mp4", places, turned=90))
    assert (face.width, face.height) == (120, 160)
    still, moving = np.ptp(face.centres, axis=0)
    assert still < 2 and moving > 40, "what went sideways goes up or down"
    tall = film(tmp_path / "tall.mp4", [[(20, 4 * n, SIDE)] for n in range(30)], size=(90, 160))
    assert fixed_square(found(tall)).side == 90, "no wider than the picture"


def test_pictures_may_come_at_any_rate(tmp_path):
    """Half as many in the second half: where the face is then is told by the clock."""
    times = [number / 20 for number in range(40)] + [2 + number / 5 for number in range(10)]
    places = [[(round(20 + 20 * moment), 40, SIDE)] for moment in times]
    recording = film(tmp_path / "a.mp4", places, times=times)
    face = found(recording, every=1)
    expected = 20 + 20 * np.arange(len(face.boxes)) / FPS
    assert len(face.boxes) == pytest.approx(39, abs=2)
    np.testing.assert_allclose(face.boxes[:38, 0], expected[:38], atol=5)
    write_crop(recording, face, tmp_path / "out.mp4")
    assert open_recording(tmp_path / "out.mp4").seconds == pytest.approx(3.9, abs=0.2)


def test_translation_is_in_widths_of_the_box_right_up_and_near(tmp_path):
    places = [[(40, 40, 20)]] * 20 + [[(50, 35, 20)]] * 20 + [[(44, 38, 24)]] * 20
    track = translation(found(film(tmp_path / "a.mp4", places)))
    unit = (20 + 20 + 24) / 3
    early, right, near = (track[number] for number in (10, 30, 50))
    np.testing.assert_allclose(right - early, [10 / unit, 5 / unit, 0], atol=0.1)
    np.testing.assert_allclose(near - early, [6 / unit, 0, 4 / unit], atol=0.1)
    np.testing.assert_allclose(track.mean(axis=0), 0, atol=1e-9)


# -- A rendered webcam, with OpenCV's detector --

HEAD = Layout((("rot", 3), ("trans", 3)), FPS, "builtin")
FRAMES = 80


@pytest.fixture(scope="module")
def webcam(tmp_path_factory):
    """640x360, the built-in head nods, turns and shifts for 8 s, with sound; and how it shifts."""
    seconds = np.arange(FRAMES) / FPS
    waves = [(0.08, 1.1, 0), (0.10, 0.3, 1), (0.05, 0.4, 0)]  # nods, turns, leans its head
    waves += [(0.08, 0.2, 0), (0.035, 0.33, 0.5), (0.09, 0.25, 2)]  # right, up, near; metres
    motion = Motion(
        np.stack([size * np.sin(2 * np.pi * hz * seconds + at) for size, hz, at in waves], axis=1),
        HEAD,
    )
    rasterizer = Rasterizer(load_head(), size=360)
    rasterizer.half_height *= 1.6  # further away
    pictures = np.empty((FRAMES, 360, 640, 3), np.uint8)
    pictures[:] = BACKGROUND
    pictures[:, :, 140:500] = render_motion(FlameHead(load_head()), rasterizer, motion)
    path = tmp_path_factory.mktemp("webcam") / "webcam.mp4"
    write_mp4(path, pictures, FPS, tone(8, AUDIO_RATE))
    return open_recording(path), motion.group("trans")


def recovered(face, true):
    """Correlation of each axis with how it was moved, and the slope: how much of that is left."""
    track = translation(face)[: len(true)]
    both = face.seen[: len(true)]
    assert both.mean() > 0.9
    pairs = list(zip(track[both].T, true[both].T, strict=True))
    slopes = [np.polyfit(moved, seen, 1)[0] for seen, moved in pairs]
    return [np.corrcoef(seen, moved)[0, 1] for seen, moved in pairs], np.array(slopes)


def test_the_head_is_where_it_was_in_the_fixed_crop_and_nowhere_in_the_floating_one(
    webcam, tmp_path
):
    recording, true = webcam
    face = find_face(recording, haar(), fps=FPS, every=EVERY)
    (x, y, size), slopes = recovered(face, true)
    assert x >= 0.97 and y >= 0.85 and size >= 0.7
    assert (slopes > 0).all(), "right, up, near"
    each = find_face(recording, haar(), fps=FPS, every=1, smoothed=1)
    left = {}
    for crop, boxes in (("fixed", face), ("floating", each)):
        to = tmp_path / f"{crop}.mp4"
        write_crop(recording, boxes, to, crop=crop)
        cropped = open_recording(to)
        assert cropped.film(None).first.shape == (256, 256, 3)
        heard = cropped.sound().until(8 * AUDIO_RATE)
        assert np.corrcoef(heard, tone(8, AUDIO_RATE))[0, 1] > 0.99, "its sound is kept"
        left[crop] = recovered(find_face(cropped, haar(), fps=FPS, every=EVERY), true)
    # The rectangle is no larger than the boxes: where the face is nearest, it fills all of it.
    x, y, size = left["fixed"][0]
    assert x >= 0.97 and y >= 0.85 and size >= 0.5
    # What is left to see in the floating crop is that turned faces have other boxes.
    assert (np.abs(left["floating"][1]) < 0.1 * left["fixed"][1]).all()


def test_the_crop_is_the_same_rectangle_in_all_frames(tmp_path):
    """What stands still in the room stands still in the crop."""
    rng = np.random.default_rng(0)
    room = rng.integers(0, 90, (120, 160, 3)).repeat(1, axis=0).astype(np.uint8)
    pictures = np.stack([room] * 30)
    for number in range(30):
        pictures[number, 40:64, 30 + 2 * number : 54 + 2 * number] = 255
    write_mp4(tmp_path / "a.mp4", pictures, FPS, crf=1)
    recording = open_recording(tmp_path / "a.mp4")
    face = found(recording)
    write_crop(recording, face, tmp_path / "out.mp4")
    images = np.stack(
        [image for _, image in open_recording(tmp_path / "out.mp4").film(None).until(9)]
    )
    below = images[:, 200:].astype(float)  # where the square never is
    assert np.abs(below - below[0]).mean() < 6 < below[0].std()


def test_without_opencvs_cascades_the_way_out_is_named(monkeypatch):
    import cv2

    monkeypatch.delattr(cv2, "CascadeClassifier")
    with pytest.raises(RecordingError, match=r"no Haar cascades: OpenCV 4.*rapport-rlhf\[faces\]"):
        haar()
