"""The corpus section: what each kind opens, and what it says when it cannot."""

import inspect
from dataclasses import asdict

import pytest

from rapport.pipeline.data.corpora import design_of, look_at_corpus, open_corpus
from rapport.pipeline.data.readers.dualtalk import import_dualtalk
from rapport.pipeline.data.readers.dyads import Cutting
from rapport.pipeline.data.readers.lm_listener import import_lm_listener
from rapport.pipeline.data.settings import CorpusConfig
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.data.synthetic.generate import DESIGN, generate_corpus

SMALL = {
    "train_clips": 8,
    "validation_clips": 2,
    "test_clips": 4,
    "seconds": 1,
    "past": 1,
    "listeners": 2,
    "image_size": 16,
    "frames": 1,
}


def test_every_key_says_what_it_is():
    for name, field in CorpusConfig.model_fields.items():
        assert field.description, name


def test_the_library_has_the_defaults_of_the_section():
    config = CorpusConfig()
    defaults = {
        function: {name: p.default for name, p in inspect.signature(function).parameters.items()}
        for function in (generate_corpus, import_dualtalk, import_lm_listener)
    }
    assert defaults[generate_corpus]["n_train"] == config.train_clips
    assert defaults[generate_corpus]["n_validation"] == config.validation_clips
    assert defaults[generate_corpus]["n_test"] == config.test_clips
    assert defaults[generate_corpus]["seed"] == config.seed
    assert design_of(config) == DESIGN
    for importer in (import_dualtalk, import_lm_listener):
        assert defaults[importer]["seconds"] == config.seconds
        assert defaults[importer]["stride"] == config.stride
    assert asdict(Cutting()) == config.model_dump(include={"seconds", "stride", "past"})


def test_a_synthetic_corpus_is_generated_and_opened_again_where_it_lies(tmp_path):
    config = CorpusConfig(**SMALL, seed=3)
    corpus = open_corpus(config, tmp_path / "corpus")
    assert corpus.path == tmp_path / "corpus"
    assert corpus.manifest["clips"] == {"test": 8, "train": 16, "validation": 4}
    source = corpus.manifest["source"]
    assert (source["seed"], source["seconds"], source["image_size"], source["frames"]) == (
        3,
        1,
        16,
        1,
    )
    again = open_corpus(CorpusConfig(kind="parquet", root=corpus.path), tmp_path / "unused")
    assert again.digest == corpus.digest and not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    "kind", ["dualtalk", "lm_listener", "livelink", "react", "mars", "parquet"]
)
def test_files_need_a_folder(kind, tmp_path):
    message = f"corpus.kind={kind} needs corpus.root=FOLDER"
    with pytest.raises(CorpusError, match=message):
        open_corpus(CorpusConfig(kind=kind), tmp_path / "corpus")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seconds": 3.99}, "whole frames at 25 fps"),
        ({"past": 30}, "past=30"),
        ({"seconds": 1.2, "past": 0}, "2 frames of video a second"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_anything_starts(keys, message):
    with pytest.raises(CorpusError, match=message):
        look_at_corpus(CorpusConfig(**keys))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_synthetic_corpus_has_all_splits(tmp_path, monkeypatch, split):
    there = [name for name in ("train", "validation", "test") if name != split]
    monkeypatch.setattr("rapport.pipeline.data.store.Corpus.splits", there)
    with pytest.raises(CorpusError, match=f"no {split} clip"):
        open_corpus(CorpusConfig(**SMALL), tmp_path / "corpus")


def test_a_corpus_without_held_out_clips_is_refused(tmp_path, monkeypatch):
    corpus = open_corpus(CorpusConfig(**SMALL), tmp_path / "corpus")
    monkeypatch.setattr("rapport.pipeline.data.store.Corpus.splits", ["train"])
    with pytest.raises(CorpusError, match=r"corpus: no test clip of 4 s.*lower corpus\.seconds"):
        open_corpus(CorpusConfig(kind="parquet", root=corpus.path), tmp_path / "unused")
