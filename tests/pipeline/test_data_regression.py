"""A corpus described where there is little or nothing to regress on."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from rapport.files import strict_json
from rapport.pipeline.data.collapse import regression_collapse
from rapport.pipeline.data.regression import RegressionError, RegressionListener, cues
from rapport.pipeline.data.store import Corpus, CorpusError, CorpusWriter
from rapport.pipeline.recipes.prepare import describe_corpus
from rapport.policies.clip import AUDIO_RATE, Clip, Past
from rapport.policies.motion import Layout, Motion

LAYOUT = Layout((("expr", 4), ("rot", 3)), 25, "builtin")


def clip(index: int, split: str = "train", frames: int = 50) -> Clip:
    rng = np.random.default_rng([index, split == "train"])
    own, heard = np.tanh(np.cumsum(rng.normal(scale=0.1, size=(2, frames, LAYOUT.dim)), axis=1))
    speaker = Motion(heard, LAYOUT)
    listener = Motion(0.5 * heard + 0.5 * own, LAYOUT)
    return Clip(f"{split}{index}", f"d{index}", split, listener, speaker=speaker)


def write(path, clips) -> Corpus:
    with CorpusWriter(path, {}) as writer:
        for one in clips:
            writer.add(one)
    return Corpus(path)


def with_still(one: Clip, columns: slice, value: float) -> Clip:
    values = one.listener.values.copy()
    values[:, columns] = value
    return replace(one, listener=Motion(values, LAYOUT))


def described(corpus: Corpus) -> tuple[dict, list[str]]:
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = describe_corpus.__wrapped__(SimpleNamespace(say=said.append), corpus)
    return result.value, said


@pytest.mark.parametrize("value", [0.0, 0.1, -123.4])
def test_constant_columns_stay_out_of_the_regression(tmp_path, value):
    """As float32 has them: their mean is not exactly they."""
    clips = [clip(i) for i in range(40)] + [clip(i, "test") for i in range(16)]
    expected = regression_collapse(write(tmp_path / "a", clips))
    assert expected["columns"] == LAYOUT.dim and 0 <= expected["variance_ratio"] <= 1
    still = [with_still(one, slice(0, 2), value) for one in clips]
    figures = regression_collapse(write(tmp_path / "b", still))
    assert figures["columns"] == LAYOUT.dim - 2
    assert 0 <= figures["variance_ratio"] <= 1 and 0 <= figures["variation_ratio"] <= 1
    fitted = RegressionListener.fit(still[:40], LAYOUT)
    np.testing.assert_allclose(fitted(still[0]).values[:, :2], value, rtol=1e-6)


def test_a_column_that_rests_in_the_held_out_clips_stays_out(tmp_path):
    clips = [clip(i) for i in range(40)]
    clips += [with_still(clip(i, "test"), slice(3, 4), 0.3) for i in range(16)]
    figures = regression_collapse(write(tmp_path / "c", clips))
    assert figures["columns"] == LAYOUT.dim - 1 and figures["variance_ratio"] <= 1


def test_too_little_to_regress_on_is_said_and_the_rest_described(tmp_path):
    everything = slice(0, LAYOUT.dim)
    corpora = {
        "4 training clips, a regression needs 8": [clip(i) for i in range(4)],
        "neither speaker motion nor sound": [replace(clip(i), speaker=None) for i in range(9)],
        "no column of the listeners' motion varies": [
            with_still(clip(i), everything, 0.1) for i in range(9)
        ],
        "clips are shorter than the 0.2 s": [clip(i, frames=4) for i in range(9)],
        "clips are shorter than the 0.2 s that": [clip(i, frames=1) for i in range(9)],
    }
    for number, (why, clips) in enumerate(corpora.items()):
        last = clips[-1]
        held_out = replace(last, clip_id="held_out", split="test")
        metrics, said = described(write(tmp_path / str(number), [*clips, held_out]))
        assert len(said) == 1 and said[0].startswith("how far a regression collapses is not known")
        assert why in said[0] and why in metrics["regression_collapse"]["missing"]
        assert "NaN" not in strict_json(metrics)


def test_answers_that_vary_more_than_the_listeners_are_no_share(tmp_path):
    clips = [clip(i) for i in range(9)]
    # Held-out listeners who hardly move, with speakers who were answered by much motion.
    calm = [replace(one, clip_id=f"t{one.clip_id}", split="test") for one in clips[:4]]
    calm = [
        replace(one, listener=Motion(one.listener.values * np.float32(0.03), LAYOUT))
        for one in calm
    ]
    with pytest.raises(RegressionError, match="9 training and 4 held-out clips are too few"):
        regression_collapse(write(tmp_path / "c", clips + calm))


def test_a_corpus_in_degrees_is_named_by_its_clip(tmp_path):
    clips = [clip(i) for i in range(2)] + [clip(0, "test")]
    values = clips[1].listener.values.copy()
    values[3, 5] = 30
    clips[1] = replace(clips[1], listener=Motion(values, LAYOUT))
    with pytest.raises(CorpusError, match="clip 'train1': rot turns by 30 at frame 3, column 1"):
        described(write(tmp_path / "c", clips))


def test_a_listeners_own_voice_is_heard_where_the_clip_has_it():
    """After as much silence as there is past."""
    one = clip(0, frames=50)
    voice = np.zeros(2 * AUDIO_RATE, np.float32)
    voice[AUDIO_RATE:] = 0.1
    past = Past(listener=clip(1, frames=25).listener, speaker=clip(2, frames=25).speaker)
    heard = replace(one, listener_audio=voice, past=past)
    own = cues(heard)[:, -1]
    assert cues(heard).shape == (15, LAYOUT.dim + 1)
    np.testing.assert_allclose(own[:10], -6)
    np.testing.assert_allclose(own[10:], -2, atol=1e-3)
    np.testing.assert_array_equal(cues(heard)[:, :-1], cues(replace(one, past=past)))
