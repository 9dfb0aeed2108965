"""Corpora on disk: what goes in comes out, what is absent stays absent, what is broken is named."""

import io
import json
from dataclasses import replace

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rapport.pipeline.data.columns import Truth
from rapport.pipeline.data.store import (
    MODALITIES,
    ROW_GROUP,
    Corpus,
    CorpusError,
    CorpusWriter,
    Listeners,
    load_appropriate,
    load_labels,
    load_points,
    load_truth,
)
from rapport.policies.clip import Clip, Past, Word
from rapport.policies.motion import Layout, Motion
from rapport.rewards.ratings.points import Point

LAYOUT = Layout(groups=(("expr", 4), ("rot", 3)), fps=25, topology="builtin")


def motion(seed: int, frames: int = 10, layout: Layout = LAYOUT) -> Motion:
    return Motion(np.random.default_rng(seed).normal(size=(frames, layout.dim)), layout)


def full_clip(name: str = "a", split: str = "train") -> Clip:
    rng = np.random.default_rng(len(name))
    return Clip(
        clip_id=name,
        dyad_id="d",
        split=split,
        listener=motion(1),
        speaker=motion(2),
        speaker_frames=pictures(rng, 2),
        speaker_audio=rng.uniform(-1, 1, 6400).astype(np.float32),
        listener_audio=np.zeros(6400, np.float32),
        words=(Word("hello", 0.0, 0.25), Word("you", 0.25, 0.5)),
        speaker_shape=np.arange(3, dtype=np.float32),
        speaker_id="s",
        start=1.5,
        past=Past(
            listener=motion(3, 20),
            speaker=motion(4, 20),
            speaker_frames=pictures(rng, 4),
            speaker_audio=rng.uniform(-1, 1, 12800).astype(np.float32),
            words=(Word("well", -9.0, -8.5),),
        ),
    )


def pictures(rng: np.random.Generator, count: int) -> np.ndarray:
    """Frames of one colour each, which JPEG keeps."""
    return np.broadcast_to(rng.integers(0, 256, (count, 1, 1, 3), np.uint8), (count, 6, 5, 3))


def bare_clip(name: str, split: str = "train", seed: int = 0, frames: int = 10) -> Clip:
    return Clip(clip_id=name, dyad_id="d", split=split, listener=motion(seed, frames))


def write(path, clips, **extra):
    with CorpusWriter(path, {"kind": "test"}) as writer:
        for clip in clips:
            writer.add(clip, **extra)
    return Corpus(path)


def test_every_modality_comes_back(tmp_path):
    clip = full_clip()
    back = write(tmp_path / "c", [clip]).clip("a")
    assert np.array_equal(back.listener.values, clip.listener.values)
    assert np.array_equal(back.speaker.values, clip.speaker.values)
    assert back.listener.layout == LAYOUT
    assert unlike(back.speaker_frames, clip.speaker_frames) <= 2  # grey levels
    assert np.abs(back.speaker_audio - clip.speaker_audio).max() <= 0.5 / 32767 + 1e-7  # 16 bit
    assert np.array_equal(back.listener_audio, np.zeros(6400))
    assert back.text == "hello you" and back.words[1].start == 0.25
    assert np.array_equal(back.speaker_shape, [0, 1, 2])
    assert back.absent == []
    assert back.moment == ("s", 1.5)
    assert np.array_equal(back.past.listener.values, clip.past.listener.values)
    assert np.array_equal(back.past.speaker.values, clip.past.speaker.values)
    assert unlike(back.past.speaker_frames, clip.past.speaker_frames) <= 2
    assert np.abs(back.past.speaker_audio - clip.past.speaker_audio).max() <= 0.5 / 32767 + 1e-7
    assert back.past.words == clip.past.words


def unlike(pictures: np.ndarray, others: np.ndarray) -> int:
    return np.abs(pictures.astype(int) - others.astype(int)).max()


def test_who_fits_whom_is_by_default_who_listens_to_the_same_moment(tmp_path):
    together = [replace(bare_clip(name), speaker_id="s", start=2.0) for name in "ab"]
    later = replace(bare_clip("c"), speaker_id="s", start=6.0)
    corpus = write(tmp_path / "c", [*together, later])
    assert load_appropriate(corpus.path) == {"a": ["a", "b"], "b": ["a", "b"], "c": ["c"]}


def test_points_come_back(tmp_path):
    points = (Point(-0.5, 0.75, "irony", known=False), Point(1.25, -1.0, "plain"))
    corpus = write(tmp_path / "c", [bare_clip("a")], points=points)
    assert load_points(corpus.path) == {"a": points}


def test_absent_is_not_zero_and_silence_is_not_absent(tmp_path):
    quiet = replace(full_clip("quiet"), words=(), speaker=None)
    corpus = write(tmp_path / "c", [bare_clip("bare"), quiet, full_clip("full")])
    bare, back, _ = corpus.clips("train")
    assert bare.absent == ["speaker", "speaker_frames", "speaker_audio", "listener_audio", "words"]
    assert bare.speaker_shape is None
    assert back.words == () and back.text == "" and back.absent == ["speaker"]
    assert corpus.manifest["present"]["speaker"] == 1 and corpus.manifest["present"]["words"] == 2


def test_order_counts_and_random_access_across_row_groups(tmp_path):
    n = 2 * ROW_GROUP + 3
    clips = [bare_clip(f"c{i}", seed=i, frames=5 + i % 3) for i in range(n)] + [
        bare_clip("t", "test", seed=99)
    ]
    corpus = write(tmp_path / "c", clips)
    assert (
        len(corpus) == n + 1 and corpus.count("train") == n and corpus.splits == ["test", "train"]
    )
    assert (
        [c.clip_id for c in corpus.clips("train")]
        == corpus.clip_ids("train")
        == [f"c{i}" for i in range(n)]
    )
    for i in (0, n - 1, ROW_GROUP, 1):
        assert np.array_equal(corpus.at("train", i).listener.values, clips[i].listener.values)
    with pytest.raises(IndexError, match=str(n)):
        corpus.at("train", n)
    with pytest.raises(CorpusError, match="no clip 'zzz'"):
        corpus.clip("zzz")
    with pytest.raises(CorpusError, match="no split 'ood'"):
        corpus.count("ood")


def test_clips_stream_by_row_group(tmp_path):
    corpus = write(tmp_path / "c", [bare_clip(f"c{i}") for i in range(3 * ROW_GROUP)])
    footer = pq.ParquetFile(corpus.path / "train-00000.parquet").metadata
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [ROW_GROUP] * 3


def test_many_clips_go_to_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("rapport.pipeline.data.store.SHARD", 2 * ROW_GROUP)
    corpus = write(tmp_path / "c", [bare_clip(f"c{i}") for i in range(5 * ROW_GROUP)])
    rows = {name: entry["rows"] for name, entry in corpus.manifest["files"].items()}
    assert rows == {
        "appropriate.parquet": 5 * ROW_GROUP,
        "rests.parquet": 5 * ROW_GROUP,
        "train-00000.parquet": 2 * ROW_GROUP,
        "train-00001.parquet": 2 * ROW_GROUP,
        "train-00002.parquet": ROW_GROUP,
    }
    assert corpus.at("train", 3 * ROW_GROUP).clip_id == f"c{3 * ROW_GROUP}"
    assert len(list(corpus.clips("train"))) == 5 * ROW_GROUP


def test_a_face_at_rest_is_what_it_mostly_is_in_the_clips_of_a_dyad(tmp_path):
    clips = [replace(full_clip("a" * n), dyad_id="a") for n in (1, 2, 3)]
    other = replace(bare_clip("b", seed=9), dyad_id="b")
    corpus = write(tmp_path / "c", [*clips, other])
    mostly = [
        np.median(np.concatenate([clip.past.listener.values, clip.listener.values]), axis=0)
        for clip in clips
    ]
    for clip in (*clips, other):
        wanted = np.median(mostly, axis=0) if clip in clips else np.median(other.listener.values, 0)
        found = corpus.clip(clip.clip_id, ()).rest
        np.testing.assert_allclose(found.values, wanted[None], atol=1e-6)
        assert found.layout == corpus.layout


def test_both_people_of_a_conversation_have_faces_of_their_own(tmp_path):
    clips = [
        replace(bare_clip(name, seed=n, split=split), dyad_id="talk", speaker_id=speaker)
        for n, (name, speaker, split) in enumerate(
            [("a", "bert", "train"), ("b", "anna", "train"), ("later", "bert", "test")]
        )
    ]
    corpus = write(tmp_path / "c", clips)
    for clip in clips:
        own = np.median(clip.listener.values, axis=0)
        np.testing.assert_allclose(corpus.clip(clip.clip_id, ()).rest.values, own[None], atol=1e-6)


def test_hugging_face_datasets_reads_the_clips_of_the_folder_and_nothing_else(tmp_path):
    clips = [full_clip("full"), bare_clip("bare", seed=5, frames=7)]
    affect = np.zeros((10, 2))
    write(
        tmp_path / "c",
        [*clips, bare_clip("held", split="test")],
        expressed_affect=affect,
        truth=Truth(affect, "muted", {}),
        captions={"listener": "Calm."},
    )
    read = datasets.load_dataset(str(tmp_path / "c"), cache_dir=str(tmp_path / "cache"))
    assert {split: read[split]["clip_id"][:] for split in read} == {
        "train": ["full", "bare"],
        "test": ["held"],
    }
    streamed = datasets.load_dataset(str(tmp_path / "c"), split="train", streaming=True)
    rows = list(streamed)
    assert np.array_equal(np.array(rows[1]["listener"], np.float32), clips[1].listener.values)
    assert rows[1]["speaker"] is None and rows[1]["words"] is None
    assert [w["text"] for w in rows[0]["words"]] == ["hello", "you"]
    frame = np.asarray(Image.open(io.BytesIO(rows[0]["speaker_frames"][1])))
    assert unlike(frame, clips[0].speaker_frames[1]) <= 2


def test_the_card_says_what_is_there_and_whose_it_is(tmp_path):
    for kind, said in (("synthetic", "Made, not recorded"), ("react", "the terms of whoever made")):
        with CorpusWriter(tmp_path / kind, {"kind": kind}) as writer:
            writer.add(full_clip())
        text = (tmp_path / kind / "README.md").read_text()
        assert said in text and "| train | 1 |" in text and "expr 4, rot 3 at 25 fps" in text


def test_schema_and_layout_travel_in_the_file(tmp_path):
    corpus = write(tmp_path / "c", [bare_clip("a")])
    metadata = pq.read_schema(corpus.path / "train-00000.parquet").metadata
    assert Layout.from_json(metadata[b"layout"].decode()) == LAYOUT
    assert metadata[b"schema_version"] == corpus.manifest["schema_version"].encode()


def test_labels_and_truth_are_files_of_their_own(tmp_path):
    affect = np.linspace(-1, 1, 20).reshape(10, 2)
    truth = Truth(-affect, "muted", {"delay_s": 0.5})
    corpus = write(tmp_path / "c", [bare_clip("a")], expressed_affect=affect, truth=truth)
    assert np.allclose(load_labels(corpus.path)["a"], affect)
    back = load_truth(corpus.path)["a"]
    assert np.allclose(back.appropriate_affect, -affect)
    assert (back.manner, back.style) == ("muted", {"delay_s": 0.5})
    shard = pq.read_schema(corpus.path / "train-00000.parquet").names
    assert not {"appropriate_affect", "expressed_affect", "manner", "style"} & set(shard)


def test_corpus_without_labels_says_so(tmp_path):
    corpus = write(tmp_path / "c", [bare_clip("a")])
    with pytest.raises(CorpusError, match="affect labels"):
        load_labels(corpus.path)
    with pytest.raises(CorpusError, match="hidden truth"):
        load_truth(corpus.path)


def test_digest_depends_on_content_only(tmp_path):
    one = write(tmp_path / "one", [bare_clip("a")])
    same = write(tmp_path / "same", [bare_clip("a")], expressed_affect=np.zeros((10, 2)))
    other = write(tmp_path / "other", [bare_clip("a", seed=1)])
    assert one.digest == same.digest != other.digest


def test_failure_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), CorpusWriter(tmp_path / "c", {}) as writer:
        writer.add(bare_clip("a"))
        raise RuntimeError("boom")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([bare_clip("a"), bare_clip("a")], "'a' was added twice"),
        ([replace(bare_clip("a"), split="dev")], "'dev' is none of"),
        ([], "empty corpus is not written"),
        (
            [
                bare_clip("a"),
                replace(bare_clip("b"), listener=motion(0, layout=replace(LAYOUT, fps=30))),
            ],
            "'b' has motion in .* 30 fps.*two corpora",
        ),
        (
            [
                full_clip("a"),
                replace(full_clip("b"), speaker_frames=np.zeros((2, 4, 4, 3), np.uint8)),
            ],
            "'b' has frames",
        ),
    ],
)
def test_bad_clips_are_refused_by_name(tmp_path, clips, message):
    with pytest.raises(CorpusError, match=message):
        write(tmp_path / "c", clips)
    assert not (tmp_path / "c").exists()


def test_existing_folder_is_not_overwritten(tmp_path):
    write(tmp_path / "c", [bare_clip("a")])
    with pytest.raises(CorpusError, match="already there"):
        CorpusWriter(tmp_path / "c", {})


def test_a_corpus_that_somebody_else_wrote_meanwhile_stays(tmp_path):
    with pytest.raises(CorpusError, match="already there"), CorpusWriter(tmp_path / "c", {}) as one:
        one.add(bare_clip("a"))
        other = write(tmp_path / "c", [bare_clip("b")])
    assert Corpus(other.path).clip_ids("train") == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_nothing_is_at_the_place_of_a_corpus_before_it_is_whole(tmp_path):
    with CorpusWriter(tmp_path / "c", {}) as writer:
        for index in range(2 * ROW_GROUP):
            writer.add(bare_clip(f"c{index}"))
        assert not (tmp_path / "c").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_missing_and_half_written_folders(tmp_path):
    with pytest.raises(CorpusError, match="does not exist"):
        Corpus(tmp_path / "nowhere")
    corpus = write(tmp_path / "c", [bare_clip("a")])
    (corpus.path / "corpus.json").rename(tmp_path / "aside.json")
    with pytest.raises(CorpusError, match="half-written"):
        Corpus(corpus.path)


def test_damaged_files_are_named(tmp_path):
    corpus = write(tmp_path / "c", [bare_clip(f"c{i}") for i in range(40)])
    shard = corpus.path / "train-00000.parquet"
    intact = shard.read_bytes()
    shard.write_bytes(intact[:-9])
    with pytest.raises(CorpusError, match="train-00000.parquet has not the"):
        Corpus(corpus.path)
    shard.write_bytes(intact[:-8] + b"\xff" * 8)
    with pytest.raises(CorpusError, match="train-00000.parquet cannot be read as Parquet"):
        Corpus(corpus.path)
    shard.write_bytes(b"PAR1" + bytes(1000) + intact[1004:])
    with pytest.raises(CorpusError, match="train-00000.parquet"):
        list(Corpus(corpus.path).clips("train"))
    shard.unlink()
    with pytest.raises(CorpusError, match="train-00000.parquet is missing"):
        Corpus(corpus.path)


def test_other_schema_version_and_empty_manifest(tmp_path):
    corpus = write(tmp_path / "c", [bare_clip("a")])
    manifest = json.loads((corpus.path / "corpus.json").read_text())
    (corpus.path / "corpus.json").write_text(json.dumps({**manifest, "schema_version": "0"}))
    with pytest.raises(CorpusError, match="schema version '0'"):
        Corpus(corpus.path)
    (corpus.path / "corpus.json").write_text(json.dumps({**manifest, "clips": {"train": 0}}))
    with pytest.raises(CorpusError, match="empty corpus"):
        Corpus(corpus.path)
    (corpus.path / "corpus.json").write_text("{")
    with pytest.raises(CorpusError, match="not JSON"):
        Corpus(corpus.path)


def test_nan_in_stored_motion_names_the_clip(tmp_path):
    poisoned = bare_clip("bad")
    poisoned.listener.values[3, 1] = np.nan  # after its own check, as a foreign writer might
    corpus = write(tmp_path / "c", [bare_clip("good"), poisoned])
    with pytest.raises(CorpusError, match="clip 'bad'.*frame 3, column 1"):
        list(corpus.clips("train"))


def test_a_clip_may_be_read_without_some_of_its_modalities(tiny_corpus, monkeypatch):
    read = []
    whole = Corpus._read

    def watched(self, group, columns=None):
        read.append(columns)
        return whole(self, group, columns)

    monkeypatch.setattr(Corpus, "_read", watched)
    corpus = Corpus(tiny_corpus.path)
    some = ("speaker", "words")
    [first] = corpus.clip_ids("train")[:1]
    own = tiny_corpus.at("train", 0)
    read.clear()
    for clip in (next(corpus.clips("train", some)), corpus.at("train", 0, some)):
        assert clip.absent == ["speaker_frames", "speaker_audio", "listener_audio"]
        np.testing.assert_array_equal(clip.speaker.values, own.speaker.values)
        np.testing.assert_array_equal(clip.listener.values, own.listener.values)
        assert (clip.clip_id, clip.text) == (first, own.text)
    assert corpus.clip(first, ()).absent == list(MODALITIES)
    assert not any({"speaker_frames", "speaker_audio"} & set(columns) for columns in read)


def test_listeners_are_read_when_they_are_asked_for(tiny_corpus):
    layout = tiny_corpus.layout.subset({"jaw": 3})
    listeners = Listeners(tiny_corpus, "train", layout)
    clips = list(tiny_corpus.clips("train"))
    assert len(listeners) == 8 and listeners.lengths == [len(clip.listener) for clip in clips]
    for motion, clip in zip(
        [*listeners[:5], listeners[5], listeners[6], listeners[7]], clips, strict=True
    ):
        np.testing.assert_array_equal(motion.values, clip.listener.subset(layout).values)
    with pytest.raises(IndexError):
        listeners[8]
