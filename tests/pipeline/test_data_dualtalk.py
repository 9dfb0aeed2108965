"""DualTalk's files: fixtures in exactly the published layout, and the real dyad where it lies
beside the project.
"""

import json
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
from rapport.pipeline.data.readers.pictures import Drawing
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.statistics import motion_statistics
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.steps.yardsticks import strangers
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.head.asset import load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Motion

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


def test_both_sides_of_a_recording_are_one_conversation(published, tmp_path):
    put(published / "train", "e", 1, 250, 10.0)
    put(published / "train", "e", 2, 250, 10.0)
    corpus = import_dualtalk(published, tmp_path / "c", seconds=4.0, stride=2.0)
    clips = {clip.clip_id: clip for clip in corpus.clips("train")}
    conversations = corpus.conversations("train")
    assert list(conversations) == list(clips) and len(set(conversations.values())) == 2
    assert {(clip.dyad_id, conversations[name]) for name, clip in clips.items()} == {
        ("a", "a-speaker2"),
        ("b", "b-speaker2"),
    }
    for name, others in strangers(clips, conversations, 4, seed=0).items():
        assert [clips[other].dyad_id for other in others] == ["ab".replace(clips[name].dyad_id, "")]


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


def bare(root: Path, names: str = "abcd") -> Path:
    """Recordings with both people's motion, and nothing to hear or read."""
    for number, name in enumerate(names):
        put(root, name, 1, 250, None)
        put(root, name, 2, 250, None)
        shifted = track(250, seed=10 + number)
        np.savez(root / f"{name}_speaker2.npz", **shifted)
    return root


def like_flame(path: Path) -> Path:
    """A file of FLAME's form, of the built-in head's numbers."""
    head = load_head()
    np.savez(
        path,
        v_template=head.v_template,
        f=head.faces,
        shapedirs=np.concatenate([head.shapedirs, head.exprdirs], axis=2),
        posedirs=np.moveaxis(head.posedirs, 0, 2),
        J_regressor=head.joint_regressor,
        kintree_table=np.array([[0, 0, 1, 1, 1], [0, 1, 2, 3, 4]]),
        weights=head.weights,
    )
    return path


def test_frames_are_those_of_the_moments_and_the_past_has_its_own(tmp_path):
    root = bare(tmp_path / "flat")
    head = HeadConfig(path=like_flame(tmp_path / "flame2020.npz"))
    drawing = Drawing(rate=2, size=28, head=head)
    clips = list(read_dualtalk(root, 4.0, 1.0, past=2.0, drawing=drawing))
    assert {clip.speaker_frames.shape for clip in clips} == {(8, 28, 28, 3)}
    first, later = clips[0], clips[3]
    assert first.past is None and later.start == 3 and later.clip_id == "a-listener1-000075"
    assert later.past.speaker_frames.shape == (4, 28, 28, 3)
    # One second on is two frames on, and the past ends where the clip begins.
    whole = np.concatenate([later.past.speaker_frames, later.speaker_frames])
    np.testing.assert_array_equal(first.speaker_frames[2:], whole[:6])
    # The third frame, at 1.25 s, shows the partner as the 32nd frame of motion has it.
    asset = load_head(head.path)
    pose = Motion(first.speaker.values[31:32], LAYOUT)
    vertices = FlameHead(asset).vertices_of(pose, first.speaker_shape)
    [image] = Rasterizer(asset, size=28, supersample=2).render(vertices)
    assert np.abs(image.astype(int) - first.speaker_frames[2]).max() <= 1


def test_on_another_head_frames_show_the_pose_only_and_it_is_said(tmp_path, caplog):
    root = bare(tmp_path / "flat")
    with caplog.at_level("WARNING", logger="rapport"):
        corpus = import_dualtalk(root, tmp_path / "c", drawing=Drawing(rate=2, size=28))
    assert corpus.manifest["source"]["counts"]["pose_only"] == 8
    assert "8 of 8 partners turn head and jaw, and no expression" in caplog.text
    assert "head.path=FLAME2020.pkl" in caplog.text
    kept = corpus.at("train", 0).speaker_frames
    # Same pose, other coefficients of expression and identity: the same picture.
    np.savez(
        root / "a_speaker2.npz",
        **(track(250, seed=10) | {key: track(250, seed=99)[key] for key in ("exp", "shape")}),
    )
    again = import_dualtalk(root, tmp_path / "d", drawing=Drawing(rate=2, size=28))
    np.testing.assert_array_equal(again.at("train", 0).speaker_frames, kept)


def test_words_come_from_the_transcript_of_the_partner_and_reach_back(published):
    said = [
        {"text": f"w{second}", "start": second + 0.4, "end": second + 0.6} for second in range(9)
    ]
    (published / "train" / "a_speaker1.json").write_text(json.dumps(said))
    counts = ReadCounts()
    clips = {c.clip_id: c for c in read_dualtalk(published, 2.0, 2.0, past=2.0, counts=counts)}
    assert clips["a-listener1-000000"].words is None and counts.without_words == 5
    clip = clips["a-listener2-000150"]
    assert clip.text == "w6 w7" and clip.words[0].start == pytest.approx(0.4)
    # What was said is remembered for longer than what was seen.
    assert [word.text for word in clip.past.words] == [f"w{second}" for second in range(6)]
    assert clip.past.words[0].start == pytest.approx(-5.6)
    assert len(clip.past.listener) == 50


def test_a_transcript_of_another_recording_is_refused(published):
    (published / "train" / "a_speaker1.srt").write_text("1\n00:01:00,000 --> 00:01:02,000\nhello\n")
    with pytest.raises(CorpusError, match=r"a_speaker1.srt: 'hello' ends at 62.00 s.*10.00 s"):
        list(read_dualtalk(published, 4.0, 4.0))


class Deaf:
    """A transcriber that hears nothing."""

    def __call__(self, audio, rate):
        return []


def test_a_transcriber_is_asked_about_sides_without_a_transcript(published, tmp_path):
    (published / "train" / "a_speaker1.txt").write_text("1 2 hello")
    corpus = import_dualtalk(published, tmp_path / "p" / "c", transcriber=f"{__name__}:Deaf")
    assert corpus.clip("a-listener2-000000").text == "hello"
    assert corpus.clip("a-listener1-000000").words == ()
    kept = sorted(path.name[:10] for path in (tmp_path / "p" / "transcripts").iterdir())
    assert kept == ["a_speaker2", "b_speaker1", "b_speaker2", "c_speaker1", "c_speaker2"]


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
