"""What people hand in as motion: trackers' files, copies from a Mac, damaged ones.

Each is read right, or refused in a line that names it."""

import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rapport.arrays import ArrayFileError, load_arrays
from rapport.pipeline.data.columns import sequences_to_arrow
from rapport.pipeline.data.readers.dualtalk import LAYOUT as DUALTALK
from rapport.pipeline.data.readers.motion_files import read_clips
from rapport.pipeline.data.store import CorpusError
from rapport.policies.motion import Layout, LayoutError, Motion, require_radians

CASES = Path(__file__).parents[2].parent / "shared" / "cases"
RNG = np.random.default_rng(0)
# Tracker -> key -> columns.
KEYS = {
    "EMOCA": {"expcode": 50, "posecode": 6, "shapecode": 100, "cam": 3},
    "VHAP": {
        "translation": 3,
        "rotation": 3,
        "expr": 100,
        "neck_pose": 3,
        "jaw_pose": 3,
        "eyes_pose": 6,
    },
    "SMIRK": {"expression_params": 50, "pose_params": 3, "jaw_params": 3, "eyelid_params": 2},
    "DualTalk": {"exp": 50, "pose": 6, "shape": 100},
}
# Keys that are motion, in the order of the layout.
MOTION = {
    "EMOCA": ("expcode", "posecode"),
    "VHAP": ("expr", "rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation"),
    "SMIRK": ("expression_params", "pose_params", "jaw_params", "eyelid_params"),
    "DualTalk": ("exp", "pose"),
}
GROUPS = {
    "EMOCA": (("expr", 50), ("rot", 3), ("jaw", 3)),
    "VHAP": (
        ("expr", 100),
        ("rot", 3),
        ("neck", 3),
        ("jaw", 3),
        ("eyepose", 6),
        ("trans", 3),
    ),
    "SMIRK": (("expr", 50), ("rot", 3), ("jaw", 3), ("eyelid", 2)),
    "DualTalk": DUALTALK.groups,
}


def track(tracker: str, frames: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        key: rng.uniform(-1, 1, (frames, width)).astype(np.float32)
        for key, width in KEYS[tracker].items()
    }


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("tracker", KEYS)
def test_a_trackers_file_is_one_track_with_its_layout(tmp_path, tracker):
    arrays = track(tracker)
    motion = read_clips(saved(tmp_path / "x.npz", **arrays), fps=25)
    assert isinstance(motion, Motion)
    topology = "flame2023" if tracker == "VHAP" else "flame2020"
    assert motion.layout == Layout(GROUPS[tracker], 25, topology)
    expected = np.concatenate([arrays[key] for key in MOTION[tracker]], axis=1)
    np.testing.assert_array_equal(motion.values, expected)


def test_a_tracker_that_does_not_say_its_rate_must_be_told(tmp_path):
    path = saved(tmp_path / "x.npz", **track("EMOCA"))
    with pytest.raises(CorpusError, match=r"x.npz is a track of EMOCA.*give it, say --fps 25"):
        read_clips(path)
    saved(path, **track("EMOCA"), fps=np.float64(30))
    assert read_clips(path).layout.fps == 30
    with pytest.raises(CorpusError, match=r"x.npz says 30 fps, files.fps \(--fps\) 25"):
        read_clips(path, fps=25)
    saved(path, **track("DualTalk"), fps=30)
    with pytest.raises(CorpusError, match="x.npz says 30 fps, DualTalk's tracks have 25"):
        read_clips(path)
    saved(path, **track("EMOCA"), fps=[30, 25])
    with pytest.raises(CorpusError, match="fps must be one number"):
        read_clips(path)


def test_a_rate_beside_plain_motion_is_compared_and_is_no_clip(tmp_path):
    motion = RNG.normal(size=(12, 56))
    path = saved(tmp_path / "x.npz", motion=motion, fps=np.full((12, 1), 25.0))
    np.testing.assert_array_equal(read_clips(path, fps=25), motion)
    with pytest.raises(CorpusError, match="says 25 fps: give --fps 25"):
        read_clips(path)
    with pytest.raises(CorpusError, match="says 25 fps, files.fps"):
        read_clips(path, fps=30)


def test_the_keys_of_a_tracker_in_other_shapes_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    arrays = track("EMOCA")
    for key, array in (("expcode", (20, 100)), ("posecode", (19, 6)), ("posecode", (6,))):
        saved(path, **{**arrays, key: np.zeros(array)})
        with pytest.raises(CorpusError, match=r"keys of EMOCA in other shapes: expcode \(T, 50\)"):
            read_clips(path, fps=25)
    saved(path, **track("VHAP", frames=1))  # GaussianAvatars' file for each frame
    with pytest.raises(CorpusError, match="x.npz holds 1 frame of VHAP: put all frames"):
        read_clips(path, fps=25)


@pytest.mark.parametrize(
    "names",
    [
        ("jaw", "neck"),
        ("p0_exp", "p1_exp"),
        ("rot6d_pose", "cam_pose"),
        ("listener", "speaker"),
        ("pred", "gt"),
        ("mean", "std"),
        ("Jaw_Pose", "Neck_Pose"),
        ("p0", "p1"),
    ],
)
def test_arrays_named_by_parts_or_roles_are_no_clips(tmp_path, names):
    path = saved(tmp_path / "x.npz", **{name: np.zeros((9, 3)) for name in names})
    with pytest.raises(CorpusError, match=rf"no known kind: it has {names[0]} \(9, 3\)"):
        read_clips(path)


def test_arrays_of_unlike_widths_are_no_clips(tmp_path):
    path = saved(tmp_path / "x.npz", a=np.zeros((9, 56)), b=np.zeros((9, 6)))
    with pytest.raises(CorpusError, match=r"it has a \(9, 56\), b \(9, 6\)"):
        read_clips(path)
    saved(path, a=np.zeros((9, 56)), info=np.float64(3))
    with pytest.raises(CorpusError, match=r"info \(\)"):
        read_clips(path)


def test_a_bundle_of_clips_keeps_their_names(tmp_path):
    clips = {"rec0_speaker1": np.ones((9, 56)), "listener_003": np.zeros((7, 56))}
    clips["录音"] = np.zeros((5, 56))
    read = read_clips(saved(tmp_path / "x.npz", **clips))
    assert list(read) == list(clips)
    np.testing.assert_array_equal(read["rec0_speaker1"], clips["rec0_speaker1"])


def test_masks_and_videos_are_read_together_though_unlike_in_length(tmp_path):
    """Masks of two persons are (2, time), and recordings are not equally long."""
    masks = [np.tile([True, False], (2, n)) for n in (5, 9)]
    videos = [np.zeros((n, 4, 4, 3), np.uint8) for n in (3, 6)]
    of_one = [mask[0].astype(float) for mask in masks]
    for name, arrays in (("two", masks), ("one", of_one), ("video", videos)):
        np.savez(tmp_path / "x.npz", *arrays)
        read = read_clips(tmp_path / "x.npz")
        assert [array.shape for array in read] == [array.shape for array in arrays]
        folder = tmp_path / name
        folder.mkdir()
        for index, array in enumerate(arrays):
            np.save(folder / f"{index}.npy", array)
        assert list(read_clips(folder)) == ["0", "1"]


def test_a_folder_of_the_parts_of_one_track_is_refused(tmp_path):
    """As EMOCA's --save_codes leaves them."""
    for name, width in (("exp", 50), ("pose", 6), ("shape", 100)):
        np.save(tmp_path / f"{name}.npy", np.zeros((9, width)))
    with pytest.raises(CorpusError, match="unlike kinds: 'exp' is an array.*50.*'pose' is"):
        read_clips(tmp_path)


def test_hidden_files_are_not_looked_at_and_others_are_said(tmp_path, caplog):
    np.save(tmp_path / "a_pred.npy", np.ones((9, 56)))
    (tmp_path / "._a_pred.npy").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    (tmp_path / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "more").mkdir()
    (tmp_path / "b.NPY.txt").write_text("no clip")
    with caplog.at_level("WARNING", logger="rapport"):
        assert list(read_clips(tmp_path)) == ["a"]
    assert "2 entries are no clips and are left out: b.NPY.txt, more" in caplog.text
    assert "DS_Store" not in caplog.text
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(tmp_path / "a_pred.npy", "clip.npy")
        archive.writestr("__MACOSX/._clip.npy", b"\x00\x05\x16\x07")
    np.testing.assert_array_equal(read_clips(tmp_path / "x.npz"), np.ones((9, 56)))


def damaged(tmp_path: Path) -> dict[str, Path]:
    """Files that hold no arrays, by what is wrong with them."""
    good = saved(tmp_path / "good.npz", a=np.arange(4000.0).reshape(-1, 4))
    files = {name: tmp_path / f"{name}.npz" for name in ("empty", "text", "short", "member")}
    files["empty"].write_bytes(b"")
    files["text"].write_text("version https://git-lfs.github.com/spec/v1")
    files["short"].write_bytes(good.read_bytes()[:900])
    with zipfile.ZipFile(files["member"], "w") as archive:
        archive.writestr("notes.txt", "hello")
    files["object"] = tmp_path / "object.npy"
    np.save(files["object"], np.array([[1], [2, 3]], dtype=object), allow_pickle=True)
    files["objects"] = saved(tmp_path / "objects.npz", a=np.array([None]))
    files["huge"] = tmp_path / "huge.npy"
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,), }"
    files["huge"].write_bytes(
        b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117).encode() + b"\n"
    )
    files["folder"] = tmp_path / "folder.npy"
    files["folder"].mkdir()
    files["nowhere"] = tmp_path / "nowhere.npy"
    return files


def test_no_file_makes_numpy_recommend_to_unpickle(tmp_path):
    for what, path in damaged(tmp_path).items():
        with pytest.raises(ArrayFileError) as caught:
            load_arrays(path)
        message = str(caught.value)
        assert str(path) in message and "\n" not in message, what
        assert "allow_pickle" not in message and "unsafe" not in message, what
        assert caught.value.__cause__ is None, what  # a traceback would show numpy's own text


def test_a_damaged_motion_file_is_named(tmp_path):
    for what, path in damaged(tmp_path).items():
        with pytest.raises(CorpusError, match=path.name) as caught:
            read_clips(path)
        assert "\n" not in str(caught.value), what


def test_scalars_text_and_nan_are_no_motion(tmp_path):
    for array, message in (
        (np.float32(3), r"shape \(\): no motion"),
        (np.zeros((0, 56)), r"shape \(0, 56\): no motion"),
        (np.array(["a", "b"]), "no real numbers"),
        (np.ones((3, 2), complex), "no real numbers"),
        (np.full((3, 2), np.nan), r"NaN or infinity, first at \(0, 0\)"),
    ):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(CorpusError, match=message):
            read_clips(tmp_path / "x.npy")


def test_rotations_in_degrees_are_named_with_group_and_value(tmp_path):
    arrays = track("DualTalk")
    arrays["pose"][7, 4] = -20
    with pytest.raises(CorpusError, match=r"x.npz: jaw turns by 20 at frame 7, column 1.*degrees"):
        read_clips(saved(tmp_path / "x.npz", **arrays))
    layout = Layout((("expr", 2), ("rot", 3)), 25, "flame2020")
    require_radians(Motion(np.array([[99, 99, 3.14, -3.14, 0]]), layout))  # expressions may be big
    with pytest.raises(LayoutError, match="rot turns by 7 at frame 0, column 2"):
        require_radians(Motion(np.array([[0, 0, 0, 0, 7.0]]), layout))
    write_parquet(tmp_path / "x.parquet", {"a": np.full((3, 5), 9.0)}, layout.to_json())
    with pytest.raises(CorpusError, match=r"x.parquet, clip 'a'.*rot turns by 9"):
        read_clips(tmp_path / "x.parquet")


def write_parquet(path: Path, clips: dict[str, np.ndarray], layout: str) -> None:
    motion = sequences_to_arrow(list(clips.values()), next(iter(clips.values())).shape[1])
    table = pa.table({"clip_id": list(clips), "motion": motion})
    pq.write_table(table.replace_schema_metadata({"layout": layout}), path)


@pytest.mark.parametrize(
    "layout", ["", "{", "[]", "{}", '{"groups": 3, "fps": 25, "topology": ""}']
)
def test_a_layout_that_is_none_is_named(tmp_path, layout):
    write_parquet(tmp_path / "x.parquet", {"a": np.zeros((3, 5))}, layout)
    with pytest.raises(CorpusError, match="x.parquet, metadata 'layout'"):
        read_clips(tmp_path / "x.parquet")


# A thousand variations of what people hand in: read right, or refused in a line.

FAULTS = (
    "none",
    "none",
    "extra key",
    "hidden file",
    "nested folder",
    "truncated",
    "empty",
    "nan",
    "object",
    "renamed key",
    "missing key",
    "degrees",
    "wrong width",
    "unlike lengths",
    "one frame",
    "fps",
    "flipped byte",
)
READ = {"none", "extra key", "hidden file", "nested folder", "fps"}  # these must be read


@settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    tracker=st.sampled_from([*KEYS, "npy", "bundle"]),
    dtype=st.sampled_from(["<f2", "<f4", "<f8", ">f4"]),
    frames=st.integers(2, 12),
    fault=st.sampled_from(FAULTS),
    compressed=st.booleans(),
    in_a_folder=st.booleans(),
    seed=st.integers(0, 999),
)
def test_a_thousand_variations_of_motion_files_are_read_right_or_refused_in_a_line(
    tmp_path, tracker, dtype, frames, fault, compressed, in_a_folder, seed
):
    folder = tmp_path / "clips"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink() if file.is_file() else file.rmdir()
    rng = np.random.default_rng(seed)
    arrays = _arrays(tracker, frames, rng)
    arrays = {key: array.astype(dtype) for key, array in arrays.items()}
    expected = _expected(tracker, arrays)
    path = folder / ("clip.npy" if tracker == "npy" else "clip.npz")
    arrays = _with_fault(fault, tracker, arrays, rng)
    _write(path, arrays, compressed=compressed)
    _spoil(fault, path, rng)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            content = read_clips(folder if in_a_folder else path, fps=25)
    except CorpusError as error:
        message = str(error)
        assert "\n" not in message and "allow_pickle" not in message and "clip" in message
        assert fault not in READ or (fault == "extra key" and tracker in ("npy", "bundle"))
        return
    if in_a_folder and tracker != "bundle":
        assert list(content) == ["clip"]
        content = content["clip"]
    assert fault in READ or _harmless(fault, tracker, frames), (fault, tracker)
    if fault not in READ:
        return
    if tracker == "bundle":
        assert list(content) == list(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(content[name], values)
        return
    values = content.values if isinstance(content, Motion) else content
    np.testing.assert_array_equal(values, expected)
    if tracker in GROUPS:
        assert content.layout.groups == GROUPS[tracker]


def _arrays(tracker: str, frames: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    if tracker == "npy":
        return {"": rng.uniform(-1, 1, (frames, 56))}
    widths = {"rec1": 56, "rec2": 56} if tracker == "bundle" else KEYS[tracker]
    return {key: rng.uniform(-1, 1, (frames, width)) for key, width in widths.items()}


def _expected(tracker: str, arrays: dict[str, np.ndarray]):
    if tracker == "npy":
        return arrays[""]
    if tracker == "bundle":
        return arrays
    return np.concatenate([arrays[key] for key in MOTION[tracker]], axis=1).astype(np.float32)


def _with_fault(
    fault: str, tracker: str, arrays: dict[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The arrays with what can be wrong in them."""
    arrays = {key: array.copy() for key, array in arrays.items()}
    keys = MOTION.get(tracker, tuple(arrays))
    key = keys[rng.integers(len(keys))]
    rotation = keys[1] if tracker in MOTION else key
    if fault == "extra key" and tracker != "npy":
        arrays["focal_length"] = np.array([1.5])
    elif fault == "fps" and tracker != "npy":
        arrays["fps"] = np.array(25)
    elif fault == "nan":
        arrays[key][-1, -1] = (np.nan, np.inf)[rng.integers(2)]
    elif fault == "object":
        arrays[key] = arrays[key].astype(object)
    elif fault == "renamed key" and tracker != "npy":
        arrays[f"{key}_pose"] = arrays.pop(key)
    elif fault == "missing key" and tracker in MOTION:
        del arrays[keys[0]]
    elif fault == "degrees" and tracker in MOTION:
        arrays[rotation][0, 0] = 40
    elif fault == "wrong width":
        arrays[key] = arrays[key][:, :-1]
    elif fault == "unlike lengths":
        arrays[key] = arrays[key][:-1]
    elif fault == "one frame":
        arrays = {key: array[:1] for key, array in arrays.items()}
    return arrays


def _write(path: Path, arrays: dict[str, np.ndarray], compressed: bool) -> None:
    if "" in arrays:
        np.save(path, arrays[""], allow_pickle=True)
    elif compressed:
        np.savez_compressed(path, **arrays)
    else:
        np.savez(path, **arrays)


def _spoil(fault: str, path: Path, rng: np.random.Generator) -> None:
    """The file with what can be wrong with it, or with what stands beside it."""
    content = bytearray(path.read_bytes())
    if fault == "truncated":
        path.write_bytes(content[: rng.integers(1, len(content) - 1)])
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "flipped byte":
        content[rng.integers(len(content))] ^= 0xFF
        path.write_bytes(content)
    elif fault == "hidden file":
        (path.parent / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    elif fault == "nested folder":
        (path.parent / "nested.npz").mkdir()


def _harmless(fault: str, tracker: str, frames: int) -> bool:
    """Whether a fault leaves something that may be read."""
    if fault == "flipped byte":
        return True  # of a plain npy no checksum tells; archives have one for each array
    if tracker == "npy":  # of a plain array nothing is known but that it is numbers
        return fault in ("renamed key", "missing key", "degrees", "wrong width", "one frame") or (
            fault == "unlike lengths" and frames > 1
        )
    if tracker == "bundle":  # clips of unlike lengths are clips
        return fault in ("missing key", "degrees", "unlike lengths", "one frame")
    if fault == "renamed key":  # keys that may be absent
        return tracker in ("VHAP", "SMIRK")
    return fault == "one frame" and tracker == "DualTalk"


# What the cases beside this checkout expect.


def case(name: str) -> Path:
    if not (CASES / name).is_dir():
        pytest.skip("the cases are not beside this checkout")
    return CASES / name


def test_case_npz_keys_as_clips():
    folder = case("npz_keys_as_clips")
    for name, groups in (("emocaA", GROUPS["EMOCA"]), ("vhapB", GROUPS["VHAP"])):
        assert read_clips(folder / f"{name}.npz", fps=25).layout.groups == groups
        with pytest.raises(CorpusError, match="does not say its frame rate"):
            read_clips(folder / f"{name}.npz")
    with pytest.raises(CorpusError, match="says 25 fps: give --fps 25"):
        read_clips(folder / "motion_and_fpsA.npz")


def test_case_macos_sidecars():
    assert list(read_clips(case("macos_sidecars") / "pred")) == [f"clip{i}" for i in range(4)]


def test_case_scalar():
    with pytest.raises(CorpusError, match=r"scalar.npy has shape \(\)"):
        read_clips(case("tracebacks") / "scalar.npy")
