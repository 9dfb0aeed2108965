"""DualTalk's files: fixtures in exactly the published layout, and the real dyad where it lies
beside the project.
"""

import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from rapport.pipeline.data.corpora import open_corpus
from rapport.pipeline.data.readers.dualtalk import (
    LAYOUT,
    ReadCounts,
    import_dualtalk,
    read_dualtalk,
    read_track,
)
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.statistics import motion_statistics
from rapport.pipeline.data.store import CorpusError
from rapport.policies.clip import AUDIO_RATE

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "dualtalk_demo"


def track(frames: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "shape": (100,),
        "tex": (50,),
        "exp": (50,),
        "pose": (6,),
        "cam": (3,),
        "light": (9, 3),
    }
    return {
        key: rng.normal(scale=0.3, size=(frames, *shape)).astype(np.float32)
        for key, shape in shapes.items()
    }


def put(
    folder: Path,
    name: str,
    side: int,
    frames: int | None,
    seconds: float | None,
    rate: int = AUDIO_RATE,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if frames is not None:
        np.savez(folder / f"{name}_speaker{side}.npz", **track(frames, seed=side))
    if seconds is not None:
        sound = (
            np.random.default_rng(side).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)
        )
        wavfile.write(folder / f"{name}_speaker{side}.wav", rate, sound)


@pytest.fixture
def published(tmp_path):
    root = tmp_path / "DualTalk"
    for split, name in (("train", "a"), ("train", "b"), ("test", "c"), ("ood", "d")):
        put(root / split, name, 1, 250, 10.0)
        put(root / split, name, 2, 250, 10.0)
    return root


def test_fixture_is_riff_format_3_as_published(published):
    header = (published / "train" / "a_speaker1.wav").read_bytes()[:24]
    assert struct.unpack("<H", header[20:22]) == (3,)


def test_published_folders_give_both_roles(published, tmp_path):
    """Validation is the last tenth of the people of `train`: here those of b."""
    corpus = import_dualtalk(published, tmp_path / "c", seconds=4.0, stride=2.0)
    assert corpus.layout == LAYOUT
    # 4 windows, 2 roles; `ood` is not read.
    assert corpus.manifest["clips"] == {"test": 8, "train": 8, "validation": 8}
    assert corpus.manifest["source"]["counts"]["roles"] == 6
    people = {split: {c.dyad_id for c in corpus.clips(split)} for split in corpus.splits}
    assert people == {"train": {"a"}, "validation": {"b"}, "test": {"c"}}
    clip = corpus.clip("a-listener2-000050")
    assert clip.absent == ["speaker_frames", "words"]
    listener, speaker = track(250, seed=2), track(250, seed=1)
    assert np.array_equal(clip.listener.group("expr"), listener["exp"][50:150])
    assert np.array_equal(clip.speaker.group("expr"), speaker["exp"][50:150])
    assert np.allclose(clip.speaker_shape, speaker["shape"].mean(axis=0))
    sound = wavfile.read(published / "train" / "a_speaker1.wav")[1]
    assert np.abs(clip.speaker_audio - sound[2 * AUDIO_RATE : 6 * AUDIO_RATE]).max() < 1e-4


def test_first_pose_triple_is_the_neck_second_the_jaw(published):
    motion, _ = read_track(published / "train" / "a_speaker1.npz")
    pose = track(250, seed=1)["pose"]
    assert np.array_equal(motion.group("neck"), pose[:, :3])
    assert np.array_equal(motion.group("jaw"), pose[:, 3:])


def test_one_sided_recording_is_split_by_time(tmp_path, caplog):
    put(tmp_path / "flat", "x", 1, None, 40.0)
    put(tmp_path / "flat", "x", 2, 1000, 40.0)
    counts = ReadCounts()
    with caplog.at_level("WARNING", logger="rapport"):
        clips = list(read_dualtalk(tmp_path / "flat", 4.0, 2.0, past=2.0, counts=counts))
    assert "test: the last 25% of the training part of one recording" in caplog.text
    borders = {"train": (0, 500), "validation": (500, 750), "test": (750, 1000)}
    for split, (first, last) in borders.items():
        mine = [clip for clip in clips if clip.split == split]
        starts = [int(clip.clip_id[-6:]) for clip in mine]
        assert starts == list(range(first, last - 99, 50))
        # Nobody's past reaches over the border.
        assert [clip.past is None for clip in mine] == [True] + [False] * (len(mine) - 1)
        assert all(len(clip.past.listener) == 50 for clip in mine[1:])
        assert [clip.start for clip in mine] == [start / 25 for start in starts]
    assert counts.roles == 1
    assert all(
        c.speaker is None and c.speaker_shape is None and c.speaker_audio is not None for c in clips
    )
    assert clips[0].clip_id.startswith("x-listener2") and clips[0].speaker_id == "x-speaker1"


def test_flat_folder_of_several_is_split_by_recording(tmp_path):
    for name in "abcd":
        put(tmp_path / "flat", name, 1, 100, 4.0)
    clips = list(read_dualtalk(tmp_path / "flat", 4.0, 4.0))
    assert [(c.dyad_id, c.split) for c in clips] == [
        ("a", "train"),
        ("b", "train"),
        ("c", "validation"),
        ("d", "test"),
    ]
    assert clips[0].absent == ["speaker", "speaker_frames", "speaker_audio", "words"]


def test_pieces_of_one_conversation_stay_together_and_their_times_go_on(tmp_path):
    for name in ("A_sub_video_1", "A_sub_video_2", "B_sub_video_7", "C_sub_video_1"):
        put(tmp_path / "flat", name, 1, 250, 10.0)
    clips = list(read_dualtalk(tmp_path / "flat", 4.0, 4.0))
    people = {clip.split: clip.dyad_id for clip in clips}
    assert people == {"train": "A", "validation": "B", "test": "C"}
    moments = [clip.moment for clip in clips if clip.dyad_id == "A"]
    assert moments == [("A-speaker2", start) for start in (0.0, 4.0, 10.0, 14.0)]


def test_truncated_resampled_and_skipped_are_counted_and_said(published, caplog):
    put(published / "train", "long", 1, 260, 9.8, rate=8000)  # 245 frames of sound
    put(published / "train", "silent", 1, None, 1.0)
    put(published / "train", "short", 1, 30, None)
    (published / "train" / "notes.txt").write_text("no recording")
    counts = ReadCounts()
    with caplog.at_level("WARNING", logger="rapport"):
        clips = list(read_dualtalk(published, 4.0, 4.0, counts=counts))
    assert counts.resampled == 1 and counts.not_read == ["notes.txt"]
    assert counts.lengths.lost_seconds == pytest.approx(0.6 + 1.0)
    [line] = counts.lengths.cut
    assert "long_speaker1.wav ends after 9.80 s, the recording after 10.40 s" in line
    said = caplog.text
    assert line in said and "silent has no motion" in said and "notes.txt" in said
    assert counts.without_motion == ["silent"] and counts.too_short == ["short-listener1"]
    assert counts.clips == len(clips) and counts.recordings == 6
    assert not any(c.dyad_id in ("silent", "short") for c in clips)


def test_bad_input_is_named(published, tmp_path):
    with pytest.raises(CorpusError, match="no folder"):
        list(read_dualtalk(tmp_path / "nowhere", 4.0, 2.0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="_speaker1|2"):
        list(read_dualtalk(tmp_path / "empty", 4.0, 2.0))
    bad = published / "train" / "a_speaker1.npz"
    arrays = track(250)
    np.savez(bad, **{**arrays, "pose": arrays["pose"][:, :3]})
    with pytest.raises(CorpusError, match=r"a_speaker1.npz: expected .*pose \(T, 6\)"):
        list(read_dualtalk(published, 4.0, 2.0))
    np.savez(bad, **{key: value for key, value in arrays.items() if key != "exp"})
    with pytest.raises(CorpusError, match="a_speaker1.npz is no DualTalk track"):
        list(read_dualtalk(published, 4.0, 2.0))
    arrays["exp"][7, 3] = np.nan
    np.savez(bad, **arrays)
    with pytest.raises(CorpusError, match="a_speaker1.npz.*frame 7, column 3"):
        list(read_dualtalk(published, 4.0, 2.0))
    bad.write_bytes(b"PK nonsense")
    with pytest.raises(CorpusError, match="a_speaker1.npz"):
        list(read_dualtalk(published, 4.0, 2.0))


def test_nothing_long_enough_is_an_error(published, tmp_path):
    with pytest.raises(CorpusError, match="gave no clip of 60"):
        import_dualtalk(published, tmp_path / "c", seconds=60.0)
    assert not (tmp_path / "c").exists()


def test_a_recording_too_short_for_held_out_clips_is_named_with_what_to_lower(tmp_path):
    """A quarter of 20 s is held out for each of validation and test: of 8 s there is none."""
    put(tmp_path / "flat", "x", 1, None, 20.0)
    put(tmp_path / "flat", "x", 2, 500, 20.0)
    config = CorpusConfig(kind="dualtalk", root=tmp_path / "flat", seconds=8)
    with pytest.raises(
        CorpusError, match=r"flat: no validation clip of 8 s.*lower corpus\.seconds"
    ):
        open_corpus(config, tmp_path / "c")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real dyad is not beside this checkout")
def test_real_dyad(tmp_path):
    corpus = import_dualtalk(REAL, tmp_path / "c", seconds=4.0, stride=1.0)
    assert corpus.manifest["clips"] == {"test": 2, "train": 8, "validation": 2}
    clip = corpus.at("train", 0)
    assert clip.clip_id.endswith("listener2-000000")  # only this side has motion: it listens
    assert clip.absent == ["speaker", "speaker_frames", "words"]
    assert len(clip.speaker_audio) == 4 * AUDIO_RATE and np.abs(clip.speaker_audio).max() > 0.01
    motion, shape = read_track(REAL / "UbjUDM1MiGE_sub_video_72_speaker2.npz")
    assert len(motion) == 587 and shape.shape == (100,)
    figures = motion_statistics(motion)
    # A jaw that opens and never much below 0, a head that turns more than it opens its mouth: the
    # order is right.
    assert figures["jaw_mean_deg"] > 5 and motion.group("jaw")[:, 1:].std() < 0.03
    assert 3 < figures["head_pitch_std_deg"] < 10 and figures["head_power_below_2.5hz"] > 0.95
