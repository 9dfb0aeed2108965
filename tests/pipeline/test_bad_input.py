"""Bad corpora and checkpoints: the message names the thing and the way out, and no library's
traceback comes through.

What a single reader refuses is tested with it (test_data_*.py); here are the ways a whole input
goes wrong."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from rapport.pipeline.data.corpora import open_corpus
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import Corpus, CorpusError, CorpusWriter, load_labels
from rapport.pipeline.data.vla import examples
from rapport.policies.clip import Clip, Word
from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.policies.policy import CheckpointError
from rapport.policies.vla.loading import load_checkpoint
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.text import build_text_tokenizer

LAYOUT = Layout((("expr", 4), ("rot", 3)), 25, "builtin")
SHARD = "train-00000.parquet"


def clip(name: str, layout: Layout = LAYOUT, split: str = "train") -> Clip:
    values = np.random.default_rng(len(name)).normal(size=(10, layout.dim))
    sound = np.random.default_rng(1).uniform(-1, 1, 6400).astype(np.float32)
    return Clip(
        name, "d", split, Motion(values, layout), speaker_audio=sound, words=(Word("hi", 0.0, 0.2),)
    )


def write(path, clips, **extra) -> Corpus:
    with CorpusWriter(path, {}) as writer:
        for one in clips:
            writer.add(one, **extra)
    return Corpus(path)


@pytest.fixture
def corpus(tmp_path):
    return write(
        tmp_path / "c", [clip("a" * n) for n in range(1, 20)], expressed_affect=np.zeros((10, 2))
    )


@pytest.mark.parametrize("kind", ["dualtalk", "lm_listener", "parquet"])
def test_prepare_names_a_missing_folder(tmp_path, kind):
    with pytest.raises(CorpusError, match=r"nowhere.*(must hold|'prepare' builds one)"):
        open_corpus(CorpusConfig(kind=kind, root=tmp_path / "nowhere"), tmp_path / "corpus")


@pytest.mark.parametrize("kind", ["dualtalk", "lm_listener", "parquet"])
def test_prepare_names_an_empty_folder(tmp_path, kind):
    (tmp_path / "void").mkdir()
    with pytest.raises(CorpusError, match="void has no .*(is it|rebuild)"):
        open_corpus(CorpusConfig(kind=kind, root=tmp_path / "void"), tmp_path / "corpus")


@pytest.mark.parametrize(
    "other",
    [
        replace(LAYOUT, fps=30),
        replace(LAYOUT, topology="flame2020"),
        Layout((("rot", 3), ("expr", 4)), 25, "builtin"),
        Layout((("expr", 5), ("rot", 3)), 25, "builtin"),
    ],
)
def test_clips_of_unlike_layouts_do_not_mix(tmp_path, other):
    with pytest.raises(
        CorpusError, match="clip 'bb' has motion in .*the corpus is in .*write two corpora"
    ):
        write(tmp_path / "c", [clip("a"), clip("bb", other)])
    with pytest.raises(
        CorpusError, match="clip 'a' has motion in"
    ):  # listener and speaker of one clip
        write(tmp_path / "c", [replace(clip("a"), speaker=clip("b", other).listener)])


def test_nan_cannot_enter_a_motion():
    values = np.zeros((10, 7), np.float32)
    values[4, 2] = np.inf
    with pytest.raises(LayoutError, match="frame 4, column 2; mark it missing"):
        Motion(values, LAYOUT)


def test_no_flipped_byte_of_a_shard_passes_for_data(corpus):
    """Wherever the byte is, clips come back as they were written or not at all."""
    file = corpus.path / SHARD
    intact = file.read_bytes()
    written = [c.listener.values for c in corpus.clips("train")]
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, len(intact), 60), *rng.integers(len(intact) - 5000, len(intact), 60)]
    refused = 0
    for place in places:
        damaged = bytearray(intact)
        damaged[place] ^= 0xFF
        file.write_bytes(damaged)
        try:
            read = [c.listener.values for c in Corpus(corpus.path).clips("train")]
        except CorpusError as error:
            refused += 1
            assert SHARD in str(error) and "rebuild the corpus" in str(error)
        else:
            assert all(np.array_equal(a, b) for a, b in zip(read, written, strict=True))
    assert refused > 80


def test_a_shard_of_another_corpus_is_refused(corpus, tmp_path):
    other = write(
        tmp_path / "other", [clip("a" * n, replace(LAYOUT, fps=50)) for n in range(1, 20)]
    )
    shutil.copy(other.path / SHARD, corpus.path / SHARD)
    entry = corpus.manifest["files"][SHARD] | {"bytes": (corpus.path / SHARD).stat().st_size}
    edit_manifest(corpus, files=corpus.manifest["files"] | {SHARD: entry})
    with pytest.raises(CorpusError, match=f"{SHARD} has other columns or another layout.*rebuild"):
        Corpus(corpus.path)


def test_damaged_labels_are_named(corpus):
    file = corpus.path / "labels.parquet"
    file.write_bytes(b"PAR1" + bytes(file.stat().st_size - 4))
    with pytest.raises(CorpusError, match="labels.parquet cannot be read as Parquet.*rebuild"):
        load_labels(corpus.path)
    table = pq.read_table(corpus.path / SHARD).select(["clip_id"])
    pq.write_table(table, file)
    edit_manifest(
        corpus, files=corpus.manifest["files"] | {file.name: {"bytes": file.stat().st_size}}
    )
    with pytest.raises(CorpusError, match="labels.parquet has other columns"):
        load_labels(corpus.path)


def edit_manifest(corpus: Corpus, drop: str | None = None, **changes) -> None:
    manifest = {key: value for key, value in {**corpus.manifest, **changes}.items() if key != drop}
    (corpus.path / "corpus.json").write_text(json.dumps(manifest))


def test_a_manifest_that_says_too_little_is_named(corpus):
    edit_manifest(corpus, drop="files")
    with pytest.raises(CorpusError, match=r"corpus.json lacks \['files'\]: rebuild"):
        Corpus(corpus.path)
    edit_manifest(corpus, layout={"groups": [["nose", 3]], "fps": 25, "topology": "builtin"})
    with pytest.raises(CorpusError, match="corpus.json: layout groups .*'nose'.*Rebuild"):
        Corpus(corpus.path)
    for text in (b"[]", b"\xff\xfe\x00"):
        (corpus.path / "corpus.json").write_bytes(text)
        with pytest.raises(CorpusError, match="corpus.json .*rebuild the corpus"):
            Corpus(corpus.path)


# Checkpoints


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "ck")


def edit_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "name", ["config.json", "action_space.json", "tokenizer_config.json", "tokenizer.json"]
)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_damaged_description_is_named(checkpoint, name, content):
    (checkpoint / name).write_bytes(content)
    what = "the tokenizer in .*ck" if "tokenizer" in name else f"ck/{name}"
    with pytest.raises(CheckpointError, match=f"{what}.*(save the policy again|`sft` or `dpo`)"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "action_space.json", "tokenizer.json"])
def test_an_empty_description_is_named(checkpoint, name):
    test_a_damaged_description_is_named(checkpoint, name, b"{}")


def test_a_missing_tokenizer_is_named_and_not_looked_for_elsewhere(checkpoint):
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(
        CheckpointError, match="ck has no tokenizer_config.json: copy the whole folder again"
    ):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights_are_named(checkpoint, size):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(
        CheckpointError,
        match="ck/model.safetensors cannot be read.*truncated.*save the policy again",
    ):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "'llama' model, expected 'facevla': name the folder"),
        ({"action_token_start": 10_000}, "describes no policy .*vocabulary"),
        (
            {"action_steps": 6},
            r"disagree on \(first, bins, dims, steps\).*another policy's.*save the policy again",
        ),
        ({"act_token_id": 4}, "is another policy's.*save the policy again"),
        (
            {"slot_embeddings": False},
            "weights do not fit config.json.*slots.*save the policy again",
        ),
    ],
)
def test_a_config_of_another_model_is_refused(checkpoint, changes, message):
    edit_json(checkpoint / "config.json", **changes)
    with pytest.raises(CheckpointError, match=f"ck.*{message}"):
        load_checkpoint(checkpoint)


def test_weights_of_another_model_are_refused(checkpoint):
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    save_file({f"model.{name}": value for name, value in weights.items()}, file)
    with pytest.raises(
        CheckpointError, match=f"ck: {2 * len(weights)} weights do not fit.*copy the whole folder"
    ):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("text_vocabulary", [300, 500])
def test_a_tokenizer_of_another_size_is_refused(checkpoint, text_vocabulary):
    build_text_tokenizer(["hello there"], checkpoint, text_vocabulary=text_vocabulary)
    with pytest.raises(
        CheckpointError, match=f"tokenizer in .*ck is another policy's: {text_vocabulary + 256} ids"
    ):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "content", [{"bins": 128}, {"first_token": 300}, {"seconds": 2.0}, {"low": [0.0]}]
)
def test_an_action_space_of_another_policy_is_refused(checkpoint, content):
    edit_json(checkpoint / "action_space.json", **content)
    with pytest.raises(CheckpointError, match="ck.*action_space.json.*save the policy again"):
        load_checkpoint(checkpoint)


def test_a_corpus_outside_the_policys_action_space_names_the_clip(tiny_corpus, tiny_checkpoint):
    policy = VlaPolicy.load(tiny_checkpoint)
    known = next(tiny_corpus.clips("train"))
    other = replace(known.listener.layout, fps=30.0)
    unlike = replace(known, listener=Motion(known.listener.values, other))
    short = replace(known, listener=known.listener.window(0, 10))
    for bad, why in ((unlike, "frame rate or topology differ"), (short, "this motion has 10")):
        where = f"clip '{known.clip_id}' is not in the policy's action space"
        message = f"{where}.*{why}.*Take a policy of this corpus"
        with pytest.raises(LayoutError, match=message):
            next(examples([bad], policy))


def test_the_undamaged_checkpoint_loads(checkpoint):
    assert load_checkpoint(checkpoint).model.dtype == torch.float32
