"""Takes of Live Link Face: written and read back, a real one where it lies beside the project, and
damaged ones.
"""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from rapport.pipeline.data.synthetic.figures import LAYOUT
from rapport.policies.head.arkit import NAMES, ArkitRig, arkit_layout
from rapport.policies.head.asset import load_head
from rapport.policies.head.livelink import (
    COLUMNS,
    LiveLinkError,
    read_livelink,
    write_livelink,
)
from rapport.policies.motion import Layout, LayoutError, Motion

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "livelinkface" / "facial.csv.gz"
real = pytest.mark.skipif(not REAL.exists(), reason="the real take is not beside the project")


def weights(frames=60, fps=25.0, seed=0):
    rng = np.random.default_rng(seed)
    values = [rng.random((frames, 52)), 0.3 * rng.normal(size=(frames, 9))]
    return Motion(np.concatenate(values, axis=1), arkit_layout(fps))


@pytest.fixture
def take(tmp_path):
    """Lines of a good take of 40 frames, and a function that writes and reads changed ones."""
    path = tmp_path / "take.csv"
    write_livelink(path, weights(40))
    lines = path.read_text().splitlines()

    def read(changed):
        path.write_text("\n".join(changed))
        return read_livelink(path)

    return lines, read


def with_field(line, column, value):
    fields = line.split(",")
    fields[COLUMNS.index(column)] = value
    return ",".join(fields)


@pytest.mark.parametrize("fps", [24, 25, 29.97, 30, 60])
@pytest.mark.parametrize("frames", [1, 8, 150])
def test_what_is_written_is_read_back(tmp_path, fps, frames):
    motion = weights(frames, fps)
    write_livelink(tmp_path / "take.csv", motion)
    again = read_livelink(tmp_path / "take.csv").motion(fps)
    assert again.layout == motion.layout and len(again) == len(motion)
    np.testing.assert_allclose(again.values, motion.values, atol=2e-3 if frames > 1 else 1e-6)


def test_the_header_is_the_apps_and_angles_have_its_signs(tmp_path):
    motion = np.zeros((2, 61))
    motion[0, 52:55] = (0, 0, 0.1)  # the crown to the person's right
    motion[1, 52:55] = (0, 0.2, 0)  # the nose to the person's left
    motion[:, 55:58] = (0.1, 0, 0)  # the left eye looks down
    write_livelink(tmp_path / "take.csv", Motion(motion, arkit_layout(30)))
    with (tmp_path / "take.csv").open() as file:
        first, row = csv.DictReader(file)
    assert tuple(row) == COLUMNS and len(row) == 63
    assert (row["Timecode"], row["BlendShapeCount"]) == ("00:00:00:02.000", "61")
    assert float(first["HeadRoll"]) == pytest.approx(-0.1, abs=1e-6)
    assert float(row["HeadYaw"]) == pytest.approx(-0.2, abs=1e-6)
    assert float(row["LeftEyePitch"]) == pytest.approx(0.1, abs=1e-6)


@real
def test_the_real_takes_header_is_ours(tmp_path):
    with gzip.open(REAL, "rt") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


@real
def test_a_real_take_comes_back_from_the_built_in_head(tmp_path):
    path = tmp_path / "facial.csv"
    path.write_bytes(gzip.decompress(REAL.read_bytes()))
    take = read_livelink(path)
    assert take.values.shape == (1913, 61) and not take.gaps
    assert take.seconds[-1] == pytest.approx(63.758, abs=1e-3)
    motion = take.motion(25)
    rig = ArkitRig(load_head())
    error = np.abs(rig.weights(rig.motion(motion, LAYOUT)).values - motion.values)[:, :52]
    assert error.mean() <= 0.006 and np.percentile(error, 99) <= 0.03


@real
def test_eyes_of_the_real_take_have_no_twist_by_our_reading_of_the_angles(tmp_path):
    path = tmp_path / "facial.csv"
    path.write_bytes(gzip.decompress(REAL.read_bytes()))
    eyes = read_livelink(path).values[:, 55:]
    for eye in (eyes[:, :3], eyes[:, 3:]):
        # Pitch about a fixed axis, then yaw: the third angle of a wrong sign would be .4.
        twist = Rotation.from_rotvec(eye).as_euler("XYZ")[:, 2]
        assert np.abs(twist).max() < 0.04 < np.abs(eye).max()


def test_columns_may_stand_in_any_order_and_letters_of_any_size(take):
    lines, read = take
    order = np.random.default_rng(0).permutation(len(COLUMNS))
    mixed = [",".join(np.array(line.split(","))[order]) for line in lines]
    mixed[0] = mixed[0].replace("BlendShapeCount", "BlendshapeCount")
    np.testing.assert_array_equal(read(mixed).values, read(lines).values)


def test_rows_without_a_face_are_a_gap(take):
    lines, read = take
    # 20 of 40 frames, some of which are cut short behind the count.
    lost = [with_field(line, "BlendShapeCount", "0") for line in lines[11:31]]
    lost[3:6] = [",".join(line.split(",")[:2]) for line in lost[3:6]]
    gone = read([*lines[:11], *lost, *lines[31:]])
    assert len(gone.seconds) == 20 and len(gone.motion(25)) == 40
    assert gone.gaps == [(pytest.approx(9 / 25, abs=1e-4), pytest.approx(30 / 25, abs=1e-4))]
    late = read([lines[0], *lost, *lines[31:]])
    assert late.gaps[0][0] == 0 and len(late.motion(25)) == 30


def test_time_goes_on_after_midnight(take):
    lines, read = take
    midnight = [lines[0]]
    for number, line in enumerate(lines[1:]):
        clock = f"23:59:59:{20 + number}" if number < 40 else ""
        midnight.append(with_field(line, "Timecode", clock))
    midnight[21:] = [
        with_field(line, "Timecode", f"00:00:00:{n:02d}") for n, line in enumerate(lines[21:])
    ]
    seconds = read(midnight).seconds
    assert np.all(np.diff(seconds) > 0) and seconds[-1] < 3


@pytest.mark.parametrize(
    ("frames", "rate"),
    [(range(24), 24), (range(25), 25), (range(0, 30, 1), 30), (range(0, 60, 2), 60)],
)
def test_the_rate_of_the_timecode_is_told_by_its_frames(take, frames, rate):
    lines, read = take
    clocks = [f"00:00:{second:02d}:{frame:02d}" for second in range(2) for frame in frames][:39]
    rows = [with_field(line, "Timecode", c) for line, c in zip(lines[1:], clocks, strict=False)]
    step = frames[1] - frames[0]
    assert read([lines[0], *rows]).seconds[-1] == pytest.approx(38 * step / rate, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [], "is empty"),
        (lambda lines: lines[:1], "no row with a face"),
        (lambda lines: [line.replace(",", ";") for line in lines], "line 1.*commas"),
        (lambda lines: [line.replace(",", "\t") for line in lines], "line 1.*commas"),
        (lambda lines: [lines[0].replace("JawOpen,", ""), *lines[1:]], "line 1: no column JawOpen"),
        (lambda lines: [*lines[:3], lines[3][:100], *lines[4:]], "line 4 has .* the line is cut"),
        (lambda lines: [*lines[:3], lines[3] + ",0.1", *lines[4:]], "line 4.*in 64 fields"),
        (lambda lines: [lines[0], with_field(lines[1], "JawOpen", "nan")], "line 2: JawOpen"),
        (lambda lines: [lines[0], with_field(lines[1], "JawOpen", "0,1")], "line 2"),
        (lambda lines: [lines[0], with_field(lines[1], "JawOpen", "")], "line 2: JawOpen is ''"),
        (lambda lines: [lines[0], with_field(lines[1], "JawOpen", "34")], "percent"),
        (lambda lines: [lines[0], with_field(lines[1], "HeadYaw", "34")], "degrees"),
        (lambda lines: [lines[0], with_field(lines[1], "BlendShapeCount", "52")], "'52'.*not 61"),
        (lambda lines: [lines[0], with_field(lines[1], "Timecode", "1.5")], "'1.5' is no timecode"),
        (lambda lines: [*lines, lines[1]], "time goes back .* two takes"),
        (
            lambda lines: [
                lines[0],
                with_field(lines[1], "Timecode", "00:00:00:960"),
                with_field(lines[2], "Timecode", "00:00:01:000"),
            ],
            "no timecode",
        ),
        (
            lambda lines: [
                lines[0],
                with_field(lines[1], "Timecode", "00:00:00:96"),
                with_field(lines[2], "Timecode", "00:00:01:00"),
            ],
            "milliseconds",
        ),
    ],
)
def test_damaged_takes_are_refused_with_their_line_and_a_way_out(take, change, message):
    lines, read = take
    with pytest.raises(LiveLinkError, match=message) as error:
        read(change(lines))
    assert "take.csv" in str(error.value)


def test_files_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00PK\x03")
    for name in ("a.csv", "none.csv"):
        with pytest.raises(LiveLinkError, match=rf"{name} cannot be read as a CSV"):
            read_livelink(tmp_path / name)


def test_only_arkits_weights_are_written(tmp_path):
    expr = Motion(np.zeros((3, 50)), Layout((("expr", 50),), 25, "builtin"))
    for motion in (expr, weights(0)):
        with pytest.raises(LayoutError, match="ArkitRig"):
            write_livelink(tmp_path / "take.csv", motion)
    assert not (tmp_path / "take.csv").exists() and len(NAMES) == 52
