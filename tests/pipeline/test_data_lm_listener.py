"""lm-listener's segments: fixtures in exactly the layout that its code reads, and files that must
not be trusted.
"""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from rapport.pipeline.data.corpora import open_corpus
from rapport.pipeline.data.readers.lm_listener import (
    LAYOUT,
    ReadCounts,
    import_lm_listener,
    read_lm_listener,
    read_segments,
)
from rapport.pipeline.data.readers.pictures import Filming
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import CorpusError, CorpusWriter
from rapport.policies.head.video import write_mp4

TREVOR = "trevor_videos/done_trevor_videos1/025YouTube/025YouTube.mp4"
TREVOR_ID = "trevor_videos_done_trevor_videos1_025YouTube_025YouTube.mp4"
CONAN = "conan_videos/done_conan_videos0/1YouTube/1YouTube.mp4"


def segment(
    fname: str = TREVOR, start: int = 0, frames: int = 240, seed: int = 0, **changes
) -> dict:
    """A segment with every published field; `changes` replace fields, None removes one."""
    generator = torch.Generator().manual_seed(seed)
    end = start + frames
    fields = {
        "fname": fname,
        "split_start_frame": start,
        "split_end_frame": end,
        "split_start_time": start / 30,
        "split_end_time": end / 30,
        "before_words": [{"text": "before", "end": start / 30 - 0.5}],
        "during_words": [
            {"text": " Hi,", "start": start / 30 + 0.2, "end": start / 30 + 0.4, "speaker": 1},
            {"text": "there", "end": start / 30 + 5.0},
        ],
    }
    for person in ("p0", "p1"):
        scale = torch.tensor([0.1, 0.1, 0.1, 0.08, 0.01, 0.01])
        fields[f"{person}_exp"] = torch.randn(frames, 50, generator=generator)
        fields[f"{person}_pose"] = torch.randn(frames, 6, generator=generator) * scale
        fields[f"{person}_shape"] = torch.randn(frames, 100, generator=generator)
        fields[f"{person}_detail"] = torch.zeros(frames, 128)
    return {key: value for key, value in {**fields, **changes}.items() if value is not None}


def publish(root: Path, **splits) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for split, segments in splits.items():
        torch.save(segments, root / f"segments_{split}.pth")
    np.save(root / "mean.npy", np.zeros(56, np.float32))
    np.save(root / "std.npy", np.ones(56, np.float32))
    return root


@pytest.fixture
def trevor(tmp_path):
    train = [segment(start=900, seed=1), segment(CONAN, start=30, seed=2)]
    return publish(
        tmp_path / "trevor",
        train=train,
        val=[segment(start=3000, seed=3)],
        test=[segment(start=6000)],
    )


def test_published_folder(trevor, tmp_path):
    corpus = import_lm_listener(trevor, tmp_path / "c", seconds=4, stride=2)
    assert corpus.layout == LAYOUT and corpus.fps == 30
    assert corpus.manifest["clips"] == {"test": 3, "train": 6, "validation": 3}
    assert corpus.manifest["source"]["files"] == {
        "train": "segments_train.pth",
        "validation": "segments_val.pth",
        "test": "segments_test.pth",
    }
    assert (
        corpus.manifest["source"]["counts"]["shared_recordings"] == 1
    )  # 025YouTube is in both, as published
    clip = corpus.clip(f"{TREVOR_ID}-000960")
    truth = segment(start=900, seed=1)
    assert clip.split == "train" and clip.dyad_id == TREVOR_ID and len(clip.listener) == 120
    assert clip.absent == ["speaker_frames", "speaker_audio", "listener_audio"]
    assert np.allclose(clip.speaker_shape, truth["p1_shape"].mean(0), atol=1e-6)
    assert len({c.dyad_id for c in corpus.clips("train")}) == 2


def test_p0_listens_and_pose_is_rotation_then_jaw(trevor):
    clip = next(c for c in read_lm_listener(trevor, 4, 2) if c.clip_id.endswith("-000900"))
    truth = segment(start=900, seed=1)
    for motion, person in ((clip.listener, "p0"), (clip.speaker, "p1")):
        assert np.array_equal(motion.group("expr"), truth[f"{person}_exp"][:120])
        assert np.array_equal(motion.group("rot"), truth[f"{person}_pose"][:120, :3])
        assert np.array_equal(motion.group("jaw"), truth[f"{person}_pose"][:120, 3:])
    # Columns in lm-listener's own order: exp, then pose. Its metrics and predictions use the same
    # 56.
    assert np.array_equal(
        clip.listener.values, torch.cat([truth["p0_exp"], truth["p0_pose"]], dim=1)[:120]
    )


def test_words_count_from_the_recording_and_land_in_their_window(trevor):
    clips = {c.clip_id[-6:]: c for c in read_lm_listener(trevor, 4, 2, past=2)}
    assert clips["000900"].text == "Hi,"  # " there" ends at 5 s, `before` is not this clip's
    assert [word.text for word in clips["000960"].past.words] == ["before", "Hi,"]
    assert clips["000960"].past.words[0].end == pytest.approx(-2.5)
    assert clips["000900"].words[0].start == pytest.approx(0.2)
    assert clips["000960"].text == "there" and clips["000960"].words[0].end == pytest.approx(3.0)
    assert clips["001020"].text == "there"


def test_dtypes_and_lengths_vary(tmp_path):
    frames = {"start": 0, "frames": 130}
    half, double = segment("a", **frames, seed=1), segment("b", **frames, seed=2)
    half |= {key: half[key].bfloat16() for key in ("p0_exp", "p0_pose")}
    double |= {key: double[key].double() for key in ("p0_exp", "p1_pose", "p1_shape")}
    double["split_start_frame"] = torch.tensor(0)
    integer = segment("c", **frames, p0_exp=torch.ones(130, 50, dtype=torch.int64))
    ragged = segment("d", **frames)
    ragged["p1_exp"], ragged["p1_pose"] = ragged["p1_exp"][:125], ragged["p1_pose"][:125]
    short = segment("e", frames=119)
    exact = segment("f", frames=120).copy()
    exact["p0_exp"] = torch.nn.Parameter(exact["p0_exp"])
    root = publish(
        tmp_path / "x", train=[half, double, integer, ragged, short, exact], val=[segment("v")]
    )
    counts = ReadCounts()
    clips = {c.dyad_id: c for c in read_lm_listener(root, 4, 4, counts=counts) if c.split != "test"}
    assert (
        set(clips) == {"a", "b", "c", "d", "f"}
        and counts.too_short == 1
        and counts.lengths.lost_seconds == pytest.approx(5 / 30)
    )
    assert all(c.listener.values.dtype == np.float32 for c in clips.values())
    assert np.array_equal(clips["a"].listener.group("expr"), half["p0_exp"][:120].float())
    assert clips["c"].listener.group("expr").min() == 1


def test_what_a_segment_lacks_is_absent_not_zero(tmp_path):
    bare = segment("a", p1_exp=None, p1_pose=None, p1_shape=None, during_words=None, p0_detail=None)
    silent = segment("b", during_words=[])
    clips = list(
        read_lm_listener(publish(tmp_path / "x", train=[bare, silent], val=[segment("v")]), 4, 8)
    )
    first = next(c for c in clips if c.dyad_id == "a")
    assert first.speaker is None and first.words is None and first.speaker_shape is None
    assert next(c for c in clips if c.dyad_id == "b").words == ()


def test_no_training_clip_shares_frames_with_the_held_out_ones(tmp_path):
    train = [segment("a", start=0, frames=480), segment("b", start=0, frames=240)]
    root = publish(tmp_path / "x", train=train, val=[segment("a", start=300, frames=120)])
    counts = ReadCounts()
    clips = list(read_lm_listener(root, 4, 2, counts=counts))
    starts = [int(c.clip_id[-6:]) for c in clips if c.split == "train" and c.dyad_id == "a"]
    assert (
        starts == [0, 60, 120, 180]
        and counts.held_out_overlap == 3
        and counts.clips == len(clips) == 8
    )


def test_segments_that_overlap_give_each_window_once(tmp_path):
    root = publish(
        tmp_path / "x",
        train=[segment("a", frames=180), segment("a", start=60, frames=180)],
        val=[segment("v")],
        test=[segment("t")],
    )
    counts = ReadCounts()
    clips = [c.clip_id for c in read_lm_listener(root, 4, 2, counts=counts) if c.split == "train"]
    assert clips == ["a-000000", "a-000060", "a-000120"] and counts.repeated == 1


@pytest.mark.parametrize("splits", [["train", "val"], ["train", "test"]])
def test_either_held_out_file_will_do(tmp_path, splits):
    """Validation is then a tenth of training, by recordings."""
    train = [segment(f"r{number:02d}", seed=number) for number in range(20)]
    root = publish(tmp_path / "x", train=train, **{splits[1]: [segment("held out")]})
    corpus = import_lm_listener(root, tmp_path / "c")
    assert corpus.manifest["source"]["files"]["test"] == f"segments_{splits[1]}.pth"
    assert {c.dyad_id for c in corpus.clips("test")} == {"held_out"}
    assert {c.dyad_id for c in corpus.clips("validation")} == {"r18", "r19"}
    assert len({c.dyad_id for c in corpus.clips("train")}) == 18


def test_validation_of_a_single_recording_is_its_last_part_with_no_frame_of_training(tmp_path):
    root = publish(tmp_path / "x", train=[segment("a", frames=600)], test=[segment("t")])
    clips = [c for c in read_lm_listener(root, 4, 1, past=2) if c.dyad_id == "a"]
    first = {"train": 0, "validation": 450}
    for clip in clips:
        start = int(clip.clip_id[-6:])
        past = 0 if clip.past is None else len(clip.past.listener)
        assert start - past >= first[clip.split]
        assert clip.split == "validation" or start + len(clip.listener) <= 450
        assert past == (60 if start - first[clip.split] >= 60 else 0)
    assert {c.split for c in clips} == {"train", "validation"}


def test_the_past_of_a_training_clip_has_no_held_out_frame_either(tmp_path):
    train = [segment("a", frames=600), segment("b")]
    root = publish(tmp_path / "x", train=train, val=[segment("v")], test=[segment("a", frames=60)])
    clips = [c for c in read_lm_listener(root, 4, 1, past=2) if c.split == "train"]
    starts = [int(c.clip_id[-6:]) for c in clips if c.dyad_id == "a"]
    assert starts[0] == 120, "60 is not held out, but its past is"


@pytest.mark.parametrize("splits", [["train"], ["val", "test"]])
def test_a_missing_split_is_named(tmp_path, splits):
    root = publish(tmp_path / "x", **{split: [segment()] for split in splits})
    with pytest.raises(CorpusError, match=f"has only .*segments_{splits[0]}.pth.*are needed"):
        list(read_lm_listener(root, 4, 2))


def test_missing_folders_are_named(trevor, tmp_path):
    with pytest.raises(CorpusError, match="no folder .*nowhere.*segments_train.pth"):
        list(read_lm_listener(tmp_path / "nowhere", 4, 2))
    with pytest.raises(CorpusError, match=r"must be one of its folders \['trevor'\]"):
        list(read_lm_listener(tmp_path, 4, 2))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="no segments_.*lm-listener's folders"):
        list(read_lm_listener(tmp_path / "empty", 4, 2))


class Payload:
    """What an attacker's pickle looks like: loading it runs a command."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["top", "field"])
def test_a_malicious_file_is_refused_and_not_run(trevor, tmp_path, legacy, place):
    payload = Payload(tmp_path / "ran")
    content = payload if place == "top" else [segment(fname=payload)]
    file = trevor / "segments_train.pth"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CorpusError, match=r"segments_train.pth is refused: it holds \S*system"
    ) as raised:
        import_lm_listener(trevor, tmp_path / "c")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "c").exists()
    assert (
        "weights_only" not in str(raised.value) and raised.value.__suppress_context__
    )  # no advice to unlock it
    torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists()  # the payload was live


@pytest.mark.parametrize("legacy", [False, True])
def test_no_environment_variable_unlocks_a_malicious_file(tmp_path, monkeypatch, legacy):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(
        [Payload(tmp_path / "ran")], tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(CorpusError, match="refused"):
        read_segments(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_is_not_run(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps([Payload(tmp_path / "ran")], protocol=2))
    with pytest.raises(CorpusError, match="x.pth"):
        read_segments(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_numpy_inside_is_refused_with_the_way_out(tmp_path):
    torch.save([segment(p0_exp=np.zeros((240, 50)))], tmp_path / "x.pth")
    with pytest.raises(
        CorpusError, match="holds numpy.*torch tensors.*save it again with these only"
    ):
        read_segments(tmp_path / "x.pth")


def test_a_legacy_torch_file_is_read(trevor):
    torch.save([segment()], trevor / "segments_train.pth", _use_new_zipfile_serialization=False)
    assert len(list(read_lm_listener(trevor, 4, 2))) == 9


def damage(kind: str, intact: bytes) -> bytes:
    pickled = intact.find(b"data.pkl") + 70
    return {
        "truncated": intact[: len(intact) // 2],
        "flipped": intact[:pickled]
        + bytes(byte ^ 0xFF for byte in intact[pickled : pickled + 20])
        + intact[pickled + 20 :],
        "empty": b"",
        "text": b"<html>404 not found</html>" * 20,
    }[kind]


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty", "text"])
def test_damaged_files_are_named(trevor, kind):
    file = trevor / "segments_val.pth"
    file.write_bytes(damage(kind, file.read_bytes()))
    with pytest.raises(
        CorpusError, match="segments_val.pth cannot be read as torch segments.*Get it again"
    ):
        list(read_lm_listener(trevor, 4, 2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"p0_exp": torch.zeros(3, 50)}, "no list of dicts"),
        ([torch.zeros(3)], "no list of dicts"),
        ([], "empty list"),
        (
            [segment(), segment(p0_exp=None)],
            r"segment 1 \('trevor.*from frame 0\): p0_exp must be .*not NoneType",
        ),
        (
            [segment(p0_pose=torch.zeros(240, 3))],
            r"p0_pose must be a dense tensor \(T, 6\), not .*\(240, 3\)",
        ),
        ([segment(p1_exp=torch.zeros(240, 50).to_sparse())], "p1_exp must be a dense"),
        ([segment(p1_exp=torch.zeros(200, 50))], "p1_exp has 200 frames, p1_pose 240"),
        ([segment(p1_shape=torch.zeros(100))], "p1_shape must be"),
        ([segment(fname=None)], "segment 0 .*fname.*needed"),
        ([segment(split_end_frame=0)], r"frames \[0, 0\) are none"),
        ([segment(during_words=[{"word": "hi"}])], "during_words must be.*text and end"),
        ([segment(during_words="hi there")], "during_words must be"),
    ],
)
def test_bad_segments_are_named(trevor, content, message):
    torch.save(content, trevor / "segments_train.pth")
    with pytest.raises(CorpusError, match=f"segments_train.pth.*{message}"):
        list(read_lm_listener(trevor, 4, 2))


def test_nan_names_segment_person_and_frame(trevor):
    bad = segment(start=60)
    bad["p1_exp"][7, 3] = float("nan")
    torch.save([segment(), bad], trevor / "segments_train.pth")
    with pytest.raises(
        CorpusError,
        match="segment 1 .*from frame 60.*p1: .*frame 7, column 3.*take the segment out",
    ):
        list(read_lm_listener(trevor, 4, 2))


def test_z_scores_are_refused_and_raw_values_are_not_touched(trevor):
    z = segment()
    z["p0_pose"] = (z["p0_pose"] - z["p0_pose"].mean(0)) / z["p0_pose"].std(0)
    torch.save([z], trevor / "segments_train.pth")
    with pytest.raises(
        CorpusError, match=r"segments_train.pth holds z-scores.*x \* std \+ mean.*mean.npy"
    ):
        list(read_lm_listener(trevor, 4, 2))
    for name in ("mean.npy", "std.npy"):
        (trevor / name).unlink()  # raw segments do not need them
    torch.save([segment(seed=5)], trevor / "segments_train.pth")
    clip = next(c for c in read_lm_listener(trevor, 4, 2) if c.split == "train")
    assert np.array_equal(clip.listener.group("expr"), segment(seed=5)["p0_exp"][:120])


def test_the_frame_rate_is_what_the_files_say_and_no_other(tmp_path):
    realtalk = {"split_start_time": 0.0, "split_end_time": 240 / 25}
    train = [segment("a", **realtalk), segment("b", **realtalk)]
    root = publish(tmp_path / "x", train=train, val=[segment("v", **realtalk)])
    with pytest.raises(CorpusError, match=r"25 fps by its own times, not 30: give corpus\.fps=25"):
        list(read_lm_listener(root, 4, 2, fps=30))
    corpus = import_lm_listener(root, tmp_path / "c")
    assert corpus.fps == 25 and len(corpus.at("train", 0).listener) == 100
    torch.save([segment("v")], root / "segments_val.pth")  # 30 fps
    with pytest.raises(CorpusError, match=r"segments_val.pth has 30 fps .*not 25"):
        list(read_lm_listener(root, 4, 2))


def test_files_that_do_not_say_their_rate_are_read_at_the_given_one(tmp_path):
    silent = {"split_start_time": None}
    parts = {split: [segment(split, **silent)] for split in ("train", "val", "test")}
    root = publish(tmp_path / "x", **parts)
    assert import_lm_listener(root, tmp_path / "c").fps == 30
    corpus = import_lm_listener(root, tmp_path / "d", fps=25)
    assert corpus.fps == 25 and len(corpus.at("train", 0).listener) == 100


def test_times_that_say_nothing_are_not_believed(tmp_path):
    root = publish(tmp_path / "x", train=[segment("a")], val=[segment("v")])
    milliseconds = {"split_start_time": 0, "split_end_time": 8000}
    torch.save([segment("a", **milliseconds)], root / "segments_train.pth")
    torch.save([segment("v", split_start_time=None)], root / "segments_val.pth")
    assert list(read_lm_listener(root, 4, 2))  # times that say nothing are not believed


def film(path: Path, seconds: float, fps: int = 10) -> Path:
    """A video whose left half is dark and whose right half brightens by 2 a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.zeros((round(seconds * fps), 32, 128, 3), np.uint8)
    frames[:, :, 64:] = (20 + 2 * np.arange(len(frames)))[:, None, None, None]
    return write_mp4(path, frames, fps, crf=10)


def test_frames_come_from_the_video_of_the_recording_at_their_moments(tmp_path):
    parts = {split: [segment(f"old/{split}.avi")] for split in ("val", "test")}
    train = [segment("v/a.mp4", start=60, frames=240), segment("v/none.mp4")]
    root = publish(tmp_path / "x", train=train, **parts)
    film(tmp_path / "videos" / "v" / "a.mp4", seconds=10.0)
    filming = Filming(tmp_path / "videos", rate=2, size=16, side="right")
    counts = ReadCounts()
    clips = read_lm_listener(root, 4, 2, past=2, filming=filming, counts=counts)
    clips = {clip.clip_id: clip for clip in clips}
    assert counts.without_frames == 3 and clips["v_none.mp4-000000"].speaker_frames is None
    clip = clips["v_a.mp4-000120"]  # from 4 s of the video on; its past from 2 s on
    moments = np.concatenate([2 + np.arange(4) / 2, 4 + np.arange(8) / 2]) + 0.25
    shown = np.concatenate([clip.past.speaker_frames, clip.speaker_frames])
    assert shown.shape == (12, 16, 16, 3)
    # The picture of that moment, and none that comes after it.
    expected = 20 + 2 * np.floor(10 * moments + 1e-6)
    np.testing.assert_allclose(shown.mean(axis=(1, 2, 3)), expected, atol=2.5)
    left = Filming(tmp_path / "videos", rate=2, size=16, side="left")
    dark = next(c for c in read_lm_listener(root, 4, 2, filming=left) if c.dyad_id == "v_a.mp4")
    assert dark.speaker_frames.max() < 12


def test_videos_that_do_not_belong_are_named(tmp_path):
    parts = {split: [segment("v/a.mp4", start=30)] for split in ("train", "val", "test")}
    root = publish(tmp_path / "x", **parts)
    folder = tmp_path / "videos"
    folder.mkdir()

    def read():
        list(read_lm_listener(root, 4, 2, filming=Filming(folder, rate=2, size=16)))

    with pytest.raises(CorpusError, match=r"corpus.videos=.*videos: no .mp4"):
        read()
    film(folder / "a.mp4", seconds=3.0)
    with pytest.raises(CorpusError, match=r"a.mp4 ends before .*corpus.fps"):
        read()
    (folder / "b").mkdir()
    (folder / "b" / "a.webm").write_bytes(b"another")
    with pytest.raises(CorpusError, match="could all be the video of 'v/a.mp4'"):
        read()
    (folder / "b" / "a.webm").unlink()
    (folder / "a.mp4").write_bytes(b"no video")
    with pytest.raises(CorpusError, match=r"a.mp4 cannot be decoded as a video"):
        read()


def test_clips_of_another_corpus_do_not_mix_in(trevor, tmp_path):
    clip = next(read_lm_listener(trevor, 4, 2))
    slower = import_lm_listener(trevor, tmp_path / "slow", fps=28.8).at("train", 0)
    with pytest.raises(CorpusError, match="28.8 fps.*30 fps.*write two corpora"):  # noqa: SIM117
        with CorpusWriter(tmp_path / "c", {}) as writer:
            writer.add(clip)
            writer.add(slower)


def test_word_times_that_fit_nothing_are_an_error(tmp_path):
    relative = segment("a", start=90_000, during_words=[{"text": "hi", "end": 1.0}])
    root = publish(tmp_path / "x", train=[relative], val=[segment("v", during_words=[])])
    with pytest.raises(CorpusError, match="1 of 1 words lie outside.*start of the recording"):
        import_lm_listener(root, tmp_path / "c")


def test_nothing_long_enough_is_an_error(trevor, tmp_path):
    with pytest.raises(CorpusError, match="gave no clip of 60 s: lower corpus.seconds"):
        import_lm_listener(trevor, tmp_path / "c", seconds=60)
    assert not (tmp_path / "c").exists()


def test_ids_are_safe_names_of_files(tmp_path):
    root = publish(tmp_path / "x", train=[segment("../../etc/pass wd")], val=[segment("v")])
    assert {Path(c.clip_id).name for c in read_lm_listener(root, 4, 2)} >= {
        ".._.._etc_pass_wd-000000"
    }


def test_clips_and_strides_under_a_frame_are_refused(trevor):
    for seconds, stride in ((0.0, 1.0), (4.0, 0.01)):
        with pytest.raises(ValueError, match="under a frame at 30 fps"):
            list(read_lm_listener(trevor, seconds, stride))


def test_prepare_opens_it(trevor, tmp_path):
    config = CorpusConfig(kind="lm_listener", root=trevor, seconds=4, stride=4)
    corpus = open_corpus(config, tmp_path / "corpus")
    assert corpus.manifest["source"]["kind"] == "lm_listener"
