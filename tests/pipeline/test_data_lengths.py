"""Recordings whose files do not belong together: too short, at another rate, in another unit.

Nothing is left out without a line that counts it, and beyond a share there is an error.
"""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from rapport.pipeline.data.corpora import open_corpus
from rapport.pipeline.data.lengths import Lengths, rate_of
from rapport.pipeline.data.readers.dualtalk import ReadCounts, import_dualtalk, read_dualtalk
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.steps.corpus import counts_of_reader

CASES = Path(__file__).parents[2].parent / "shared" / "cases"
RATE = 8000


def put(folder: Path, name: str, side: int, frames: int | None, seconds: float | None) -> None:
    """A track and a sound as DualTalk publishes them; None where there is none."""
    rng = np.random.default_rng(side)
    folder.mkdir(parents=True, exist_ok=True)
    if frames is not None:
        np.savez(
            folder / f"{name}_speaker{side}.npz",
            exp=rng.normal(size=(frames, 50)),
            pose=rng.normal(scale=0.1, size=(frames, 6)),
            shape=np.zeros((frames, 100)),
        )
    if seconds is not None:
        sound = rng.uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)
        wavfile.write(folder / f"{name}_speaker{side}.wav", RATE, sound)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "flat"
    for name in ("a", "b", "c"):
        for side in (1, 2):
            put(folder, name, side, 200, 8.0)
    return folder


def read(root: Path) -> ReadCounts:
    counts = ReadCounts()
    list(read_dualtalk(root, 2.0, 0.5, counts=counts))
    return counts


def test_whole_recordings_lose_nothing(root):
    counts = read(root)
    assert counts.lengths.seconds == 24 and counts.lengths.lost_seconds == 0
    assert counts.lengths.cut == counts.not_read == counts.odd_sound == []


@pytest.mark.parametrize(
    ("frames", "seconds", "file"),
    [(1, 8.0, "a_speaker1.npz"), (200, 2.0, "a_speaker1.wav"), (140, None, "a_speaker1.npz")],
)
def test_a_file_that_is_much_too_short_is_an_error_that_names_it(root, frames, seconds, file):
    (root / "a_speaker1.wav").unlink()
    put(root, "a", 1, frames, seconds)
    message = rf"1 recordings lose more than 10%.*{file} ends after .*the recording after 8.00 s"
    with pytest.raises(CorpusError, match=message):
        read(root)


def test_all_broken_recordings_are_named_at_once(root):
    for name in "ab":
        put(root, name, 2, 20, None)
    with pytest.raises(CorpusError, match=r"2 recordings.*a_speaker2.npz.*b_speaker2.npz"):
        read(root)


def test_last_frames_are_counted_and_a_little_more_is_said(root, caplog):
    put(root, "a", 1, 198, None)
    put(root, "b", 1, 188, None)  # 0.48 s
    with caplog.at_level("WARNING", logger="rapport"):
        counts = ReadCounts()
        assert all(len(clip.listener) == 50 for clip in read_dualtalk(root, 2, 0.5, counts=counts))
    assert counts.lengths.lost_seconds == pytest.approx(0.08 + 0.48)
    [line] = counts.lengths.cut
    assert "b_speaker1.npz ends after 7.52 s" in line and line in caplog.text
    assert "a_speaker1" not in caplog.text


def test_many_small_losses_are_an_error(root):
    for name in "abc":
        put(root, name, 1, 186, None)  # 7 % of each
    (root / "c_speaker2.wav").unlink()
    with pytest.raises(CorpusError, match=r"1.7 of 24.0 s cannot be used, over 5%.*a_speaker1.npz"):
        read(root)


def test_sound_without_motion_counts_as_lost(root):
    put(root, "d", 1, None, 8.0)
    with pytest.raises(CorpusError, match="8.0 of 32.0 s cannot be used"):
        read(root)


def test_losses_are_in_the_manifest_and_in_the_summary(root, tmp_path):
    put(root, "b", 1, 188, None)
    (root / "README.md").write_text("no recording")
    corpus = import_dualtalk(root, tmp_path / "c", seconds=2.0, stride=0.5)
    counts = corpus.manifest["source"]["counts"]
    assert "b_speaker1.npz" in counts["lengths"]["cut"][0] and counts["not_read"] == ["README.md"]
    summary = counts_of_reader(corpus)
    assert summary["cut"] == summary["not_read"] == 1
    assert summary["lost_seconds"] == pytest.approx(0.48)


@pytest.mark.parametrize("rate", [24, 30, 50, 60])
def test_motion_at_another_rate_is_asked_about(root, rate):
    put(root, "b", 2, 8 * rate, None)
    message = (
        rf"b_speaker2.npz: motion is {8 * rate} frames = {8 * rate / 25:.2f} s at 25 fps, its "
        rf"sound 8.00 s. Is the motion at {rate} fps\?"
    )
    with pytest.raises(CorpusError, match=message):
        read(root)


def test_a_rate_is_known_by_motion_and_sound():
    assert rate_of(200, 25, 8.0) is None and rate_of(199, 25, 8.0) is None
    assert rate_of(240, 25, 8.0) == 30 and rate_of(192, 25, 8.0) == 24
    assert rate_of(240, 30, 8.0) is None and rate_of(200, 30, 8.0) == 25
    assert rate_of(30, 25, 1.0) is None  # a fifth of a second may be the last frames
    assert rate_of(100, 25, 8.0) is None  # no rate, but a track that is cut short


def test_the_partners_sound_tells_the_rate_where_there_is_no_other(root):
    (root / "b_speaker2.wav").unlink()
    put(root, "b", 2, 240, None)
    with pytest.raises(CorpusError, match="b_speaker2.npz: motion is 240 frames.*at 30 fps"):
        read(root)


def test_pose_in_degrees_is_named(root):
    with np.load(root / "c_speaker1.npz") as file:
        arrays = dict(file)
    np.savez(root / "c_speaker1.npz", **arrays | {"pose": np.degrees(arrays["pose"])})
    with pytest.raises(CorpusError, match=r"c_speaker1.npz: (neck|jaw) turns by .*degrees"):
        read(root)


def test_sound_without_level_is_said(root, caplog):
    wavfile.write(root / "a_speaker1.wav", RATE, np.zeros(8 * RATE, np.int16))
    wavfile.write(root / "a_speaker2.wav", RATE, np.full(8 * RATE, 0.3, np.float32))
    wavfile.write(root / "b_speaker1.wav", RATE, np.tile([1, -1], 4 * RATE).astype(np.float32))
    with caplog.at_level("WARNING", logger="rapport"):
        counts = read(root)
    assert counts.odd_sound == ["a_speaker1.wav", "a_speaker2.wav", "b_speaker1.wav"]
    assert "a_speaker1.wav is silent" in caplog.text and "a_speaker2.wav is silent" in caplog.text
    assert "b_speaker1.wav is clipped" in caplog.text


def test_a_folder_from_a_mac_and_names_in_capitals_are_read(root):
    (root / "._a_speaker1.npz").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    (root / "a_speaker2.npz").rename(root / "a_speaker2.NPZ")
    counts = read(root)
    assert counts.roles == 6 and counts.not_read == []
    put(root, "a", 2, 200, None)
    with pytest.raises(CorpusError, match="a_speaker2.npz and a_speaker2.NPZ are one side's"):
        read(root)


def test_of_many_broken_recordings_the_first_are_named():
    lengths = Lengths()
    for index in range(9):
        lengths.add({f"file{index}": 1.0, "other": 4.0})
    with pytest.raises(CorpusError, match=r"9 recordings.*file0 .*file4 .*And 4 more$") as caught:
        lengths.require_small(Path("root"))
    assert "file5" not in str(caught.value)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("shortest_modality_eats_the_recording/one_frame", "rec0_speaker1.npz ends after 0.04 s"),
        ("shortest_modality_eats_the_recording/short_sound", "rec0_speaker1.wav ends after 2.00"),
        ("rotations_in_degrees/all", r"rec\d_speaker\d.npz: (neck|jaw) turns by .*degrees"),
        ("tracks_at_30_fps/all", "motion is 240 frames = 9.60 s at 25 fps.*Is the motion at 30"),
    ],
)
def test_cases_beside_this_checkout(tmp_path, case, message):
    if not (CASES / case).is_dir():
        pytest.skip("the cases are not beside this checkout")
    config = CorpusConfig(kind="dualtalk", root=CASES / case, seconds=2, stride=0.5)
    with pytest.raises(CorpusError, match=message):
        open_corpus(config, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()
