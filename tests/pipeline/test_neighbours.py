"""Who is appropriate to whom: by the corpus, by speakers alike, and how right either is."""

import numpy as np
import pytest

from rapport.pipeline.data import neighbours
from rapport.pipeline.data.columns import Truth
from rapport.pipeline.data.neighbours import (
    appropriate_to,
    in_words,
    matrix_rows,
    precision,
    precisions,
    session_rows,
    speaker_features,
    without_own,
)
from rapport.pipeline.data.store import Corpus, CorpusError, CorpusWriter, load_appropriate
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.motion import Layout, Motion

LAYOUT = Layout((("expr", 2),), 25, "builtin")
KINDS = 3  # of speakers, each with its own level


def clip_of(who, number, level, **changes):
    """Two seconds of a speaker whose face and voice tell the level."""
    rng = np.random.default_rng([*map(ord, who), number])
    motion = Motion(level + 0.01 * rng.normal(size=(50, 2)), LAYOUT)
    sound = (0.1 + 0.2 * level) * np.sin(np.arange(2 * AUDIO_RATE) / 5)
    fields = {
        "clip_id": f"{who}-{number}",
        "dyad_id": f"{who}-{number}",
        "split": "train",
        "listener": Motion(np.zeros((50, 2)), LAYOUT),
        "speaker": motion,
        "speaker_audio": sound.astype(np.float32),
        "speaker_id": who,
    }
    return Clip(**fields | changes)


@pytest.fixture
def corpus(tmp_path):
    """Twelve speakers of three kinds, two listeners each, of whom one shows nothing."""
    with CorpusWriter(tmp_path / "c", {"kind": "test"}) as writer:
        for number in range(12):
            level = number % KINDS
            fitting = np.full((50, 2), 0.4 * level, np.float32)
            for listener in range(2):
                writer.add(
                    clip_of(f"s{number:02d}", listener, level),
                    expressed_affect=fitting * (listener == 0),
                    truth=Truth(fitting, "", {}),
                    appropriate=[f"s{number:02d}-0"],
                )
    return Corpus(tmp_path / "c")


def test_the_recorded_listener_comes_first_even_where_the_corpus_knows_better(corpus):
    appropriate = appropriate_to(corpus, "train")
    assert appropriate["s04-1"] == ["s04-1", "s04-0"] and appropriate["s04-0"] == ["s04-0"]
    assert load_appropriate(corpus.path)["s04-1"] == ["s04-0"]
    assert without_own(appropriate)["s04-0"] == []
    assert appropriate_to(corpus, "train", "recorded")["s04-1"] == ["s04-1"]
    words = in_words("corpus", appropriate, ["s04-0", "s04-1"])
    assert words == "the recorded reaction and those that the corpus names; 1.5 to a speaker"


def test_alike_takes_all_who_listen_to_the_nearest_speakers_and_never_the_own(corpus):
    alike = appropriate_to(corpus, "train", "alike", count=3)
    for number in range(12):
        same = [f"s{n:02d}" for n in range(12) if n % KINDS == number % KINDS and n != number]
        for listener in range(2):
            own = f"s{number:02d}-{listener}"
            first, *others = alike[own]
            assert first == own
            assert set(others) == {f"{speaker}-{i}" for speaker in same for i in range(2)}


def test_another_moment_of_the_same_speaker_is_not_another_speaker(tmp_path):
    with CorpusWriter(tmp_path / "c", {"kind": "test"}) as writer:
        for speaker in "ab":
            for moment in range(3):
                changes = {"start": 2.0 * moment, "clip_id": f"{speaker}{moment}"}
                writer.add(clip_of(speaker, 0, level=speaker == "b", **changes))
    alike = appropriate_to(Corpus(tmp_path / "c"), "train", "alike", count=20)
    assert set(alike["a0"]) == {"a0", "b0", "b1", "b2"}


def test_random_draws_other_speakers_by_its_seed(corpus):
    one = appropriate_to(corpus, "train", "random", count=4, seed=1)
    assert one == appropriate_to(corpus, "train", "random", count=4, seed=1)
    assert one != appropriate_to(corpus, "train", "random", count=4, seed=2)
    for own, (first, *others) in one.items():
        assert first == own and len(set(others)) == 8
        assert all(other[:3] != own[:3] for other in others)


def test_features_are_standardised_means_of_whole_seconds_of_what_all_have(tmp_path):
    with CorpusWriter(tmp_path / "c", {"kind": "test"}) as writer:
        for number, ramp in enumerate((0.0, 1.0, 3.0)):
            values = np.repeat(ramp * np.arange(50) / 25, 2).reshape(50, 2)
            motion = Motion(values, LAYOUT)
            sound = None if number else np.zeros(2 * AUDIO_RATE, np.float32)
            writer.add(clip_of(f"s{number}", 0, 0, speaker=motion, speaker_audio=sound))
    features = speaker_features(Corpus(tmp_path / "c"), "train")
    # Means .48 and 1.48 of the ramps 0, 1, 3: standardised alike, in both seconds and channels.
    expected = (np.array([0, 1, 3]) - 4 / 3) / np.std([0, 1, 3])
    np.testing.assert_allclose(
        np.stack(list(features.values())), np.repeat(expected[:, None], 4, axis=1), atol=1e-6
    )


def test_speakers_without_anything_in_common_cannot_be_alike(tmp_path):
    with CorpusWriter(tmp_path / "c", {"kind": "test"}) as writer:
        writer.add(clip_of("a", 0, 0, speaker=None))
        writer.add(clip_of("b", 0, 0, speaker_audio=None))
    with pytest.raises(CorpusError, match="nothing tells which speakers are alike"):
        appropriate_to(Corpus(tmp_path / "c"), "train", "alike")
    with CorpusWriter(tmp_path / "d", {"kind": "test"}) as writer:
        writer.add(clip_of("a", 0, 0, speaker_audio=None))
        longer = Motion(np.zeros((75, 2)), LAYOUT)
        writer.add(clip_of("b", 0, 0, speaker=longer, listener=longer, speaker_audio=None))
    with pytest.raises(CorpusError, match="unlike lengths"):
        appropriate_to(Corpus(tmp_path / "d"), "train", "alike")


def test_precision_by_hand():
    def fits(speaker, listeners):
        return np.array([listener != "bad" for listener in listeners])

    assert precision({"a": ["x", "bad"], "b": ["y", "z"], "c": []}, fits) == 0.75
    assert np.isnan(precision({"a": []}, fits))


def test_labels_by_likeness_against_the_truth(corpus):
    """Half of the listeners fit their own speaker, and so do those of another of its kind.

    Of kind 0 nothing is asked, which both listeners show; the affect of kinds is .4 apart.
    """
    found = precisions(corpus, "train", count=3)
    fit = 8 + 4 * 2  # of kind 0 both, of the others every other one
    assert found["recorded"] == pytest.approx(fit / 24)
    assert found["alike"] == found["truth"] == pytest.approx(fit / 24)
    # All of kind 0 and the first listener to each speaker of another kind.
    assert found["corpus"] == pytest.approx(1)
    # All other speakers at once.
    of_others = {
        0: 2 * 3 + 4 + 4,
        1: 3 + 0,
        2: 3 + 0,
    }
    expected = sum(4 * count for count in of_others.values()) / (12 * 22)
    everybody = precisions(corpus, "train", count=11)
    assert everybody["random"] == everybody["alike"] == pytest.approx(expected)


def test_a_corpus_without_truth_says_so(tmp_path):
    with CorpusWriter(tmp_path / "c", {"kind": "test"}) as writer:
        writer.add(clip_of("a", 0, 0))
    with pytest.raises(CorpusError, match="has no affect labels"):
        precisions(Corpus(tmp_path / "c"), "train")


def test_rows_of_matrices_and_sessions():
    matrix = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]])
    assert [row.tolist() for row in matrix_rows(matrix, 2, "m")] == [[0, 2], [1], [2], [0, 1, 3]]
    for wrong, message in (
        (np.eye(3), r"m has shape \(3, 3\), 2 pairs are listed: it must be \(4, 4\)"),
        (np.eye(4) * 0.5, "m holds 0.5 in row 0, column 0"),
        (np.roll(np.eye(4), 2, 0), "only 0% of the recorded listeners"),
    ):
        with pytest.raises(CorpusError, match=message):
            matrix_rows(wrong, 2, "m")
    assert [row.tolist() for row in session_rows("abab")] == [[0, 2], [1, 3], [0, 2], [1, 3]]


def test_rows_are_compared_in_batches(corpus, monkeypatch):
    whole = appropriate_to(corpus, "train", "alike", count=3)
    monkeypatch.setattr(neighbours, "_ROWS", 5)
    assert appropriate_to(corpus, "train", "alike", count=3) == whole
