"""The frozen encoders: shapes, alignment in time, what they tell apart, and the cache."""

import numpy as np
import pytest
import torch

from rapport.policies.clip import AUDIO_RATE
from rapport.policies.flow.encoders import (
    CHUNK,
    HOPS,
    FeatureCache,
    LogMel,
    TextEncoder,
    _receptive_field,
)
from rapport.policies.flow.features import Features
from rapport.policies.sound import BANDS, WINDOW, band_levels
from tests.hearing import random_wav2vec2


@pytest.fixture(scope="module")
def text():
    return TextEncoder.tiny()


@pytest.fixture(scope="module")
def audio():
    """A wav2vec2 with random weights."""
    return random_wav2vec2(32, layers=2)


@pytest.fixture(params=["log-mel", "wav2vec2"])
def encoder(request):
    """Whatever hears."""
    return LogMel() if request.param == "log-mel" else request.getfixturevalue("audio")


def sound(frames, fps=25, seed=0):
    return (
        np.random.default_rng(seed).normal(size=round(frames * AUDIO_RATE / fps)).astype(np.float32)
    )


def test_texts_are_one_vector_each_whatever_they_are_batched_with(text):
    together = text(["joyful, smiling", "sad", ""])
    assert together.shape == (3, text.dim) and together.dtype == torch.float32
    torch.testing.assert_close(together[1:2], text(["sad"]), atol=1e-5, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.05
    assert torch.equal(TextEncoder.tiny()(["sad"]), text(["sad"]))
    assert not any(p.requires_grad for p in text.model.parameters())


def test_wav2vec2_sees_400_samples_every_320():
    assert _receptive_field((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)) == (400, 320)


@pytest.mark.parametrize(("frames", "fps"), [(25, 25), (30, 30), (1, 25), (7, 29.97)])
def test_one_token_per_video_frame(encoder, frames, fps):
    tokens = encoder(sound(frames, fps), frames, fps)
    assert tokens.shape == (frames, encoder.dim)
    assert tokens.dtype == torch.float32 and tokens.isfinite().all()


@pytest.mark.parametrize("end", [8, 12, 16])
def test_features_know_nothing_of_later_sound(encoder, end):
    """Neither of what is said later nor of how loud it is; at the ends of chunks, which all delays
    of AR-Flow are.
    """
    x = sound(24)
    for later in (np.zeros_like(x), 8 * x, sound(24, seed=1)):
        other = np.concatenate([x[: end * 640], later[end * 640 :]])
        before, after = encoder(x, 24, 25), encoder(other, 24, 25)
        assert torch.equal(before[:end], after[:end])
        assert not torch.equal(before[end:], after[end:])


def test_a_clip_as_it_comes_in_is_the_clip_at_once(encoder):
    x = sound(24)
    whole = encoder(x, 24, 25)
    for end in range(CHUNK, 24, CHUNK):
        heard = encoder(x[: end * 640], end, 25)
        torch.testing.assert_close(heard, whole[:end], atol=1e-5, rtol=1e-5)


def test_log_mel_bands_are_those_of_windows_that_end_in_the_frame():
    x = sound(10)
    got = LogMel()(x, 10, 25).reshape(10, HOPS, BANDS)
    for frame in range(10):
        for hop in range(HOPS):
            end = frame * 640 + 320 * (hop + 1)
            window = np.pad(x[:end], (WINDOW, 0))[-WINDOW:].astype(np.float64)
            power = np.abs(np.fft.rfft(window * np.hanning(WINDOW), 512)) ** 2
            mel = 2595 * np.log10(1 + np.fft.rfftfreq(512, 1 / AUDIO_RATE) / 700)
            edges = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 7600 / 700), 34)
            for band in (5, 20):
                low, mid, high = edges[band : band + 3]
                weight = np.clip(
                    np.minimum((mel - low) / (mid - low), (high - mel) / (high - mid)), 0, 1
                )
                level = 10 * np.log10((power * weight).sum() / (np.hanning(WINDOW).sum() / 2) ** 2)
                assert got[frame, hop, band].item() == pytest.approx(max(level, -90), abs=1e-3)


def test_a_louder_voice_is_louder_in_decibels_and_silence_is_the_floor():
    x = 0.01 * sound(10)
    louder = LogMel()(4 * x, 10, 25) - LogMel()(x, 10, 25)
    torch.testing.assert_close(louder, torch.full_like(louder, 20 * np.log10(4)), atol=1e-3, rtol=0)
    assert (LogMel()(np.zeros(6400), 10, 25) == -90).all()


def test_a_sine_of_full_scale_has_level_0_in_its_band():
    sine = np.sin(2 * np.pi * 1000 * np.arange(AUDIO_RATE) / AUDIO_RATE)
    levels = band_levels(sine, np.array([AUDIO_RATE]))[0]
    assert abs(levels.max()) < 3 and levels.argmax() == 10 and levels[20] < -80


def test_wav2vec2_hears_neither_loudness_nor_more_than_its_context(audio):
    x = sound(150)
    torch.testing.assert_close(audio(x, 150, 25), audio(3 * x, 150, 25), atol=1e-3, rtol=1e-3)
    before = x.copy()
    before[: 46 * 640] = 0
    changed = audio(before, 150, 25)
    assert torch.equal(changed[-CHUNK:], audio(x, 150, 25)[-CHUNK:])
    assert not torch.equal(
        changed[-3 * CHUNK : -2 * CHUNK], audio(x, 150, 25)[-3 * CHUNK : -2 * CHUNK]
    )


def test_a_click_is_felt_at_its_frame(audio):
    """Alignment, before attention spreads things: against the convolutions alone."""
    quiet = 0.01 * sound(50)
    click = quiet.copy()
    click[20 * 640 + 300 : 20 * 640 + 340] += 0.3
    features = [
        audio.model.feature_extractor(torch.from_numpy(x)[None])[0].T for x in (quiet, click)
    ]
    change = (features[1] - features[0]).abs().sum(1)
    assert abs(float(change.argmax()) * 320 + 200 - (20 * 640 + 320)) <= 320
    louder = (LogMel()(click, 50, 25) - LogMel()(quiet, 50, 25)).abs().sum(1)
    assert louder.argmax() == 20


def test_bad_audio_is_refused(encoder):
    with pytest.raises(
        ValueError, match=r"32000 audio samples at 16000 Hz, got an array of shape \(16000,\)"
    ):
        encoder(sound(25), 50, 25)
    x = sound(25)
    x[7] = np.nan
    with pytest.raises(ValueError, match="sample 7"):
        encoder(x, 25, 25)


def test_features_are_computed_once_per_clip_and_encoder(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return torch.full((2, 3), float(len(calls)))

    cache = FeatureCache(tmp_path, "facebook/wav2vec2-large")
    first = cache.get("dyad/0 speaker", compute)
    assert torch.equal(cache.get("dyad/0 speaker", compute), first)
    assert cache.get("dyad/0 listener", compute)[0, 0] == 2
    assert FeatureCache(tmp_path, "other").get("dyad/0 speaker", compute)[0, 0] == 3
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_voice_of_another_corpus_is_not_taken_for_its_namesake(text, audio, tmp_path):
    """Ids of clips come again where a corpus is made by another seed."""
    voices = FeatureCache(tmp_path, audio.name)
    features = Features(text, audio, FeatureCache(tmp_path, text.name), voices)
    one, other = sound(25, seed=1), sound(25, seed=2)
    first, second, again = (features.of_voice("a", "speaker", s, 25, 25) for s in (one, other, one))
    assert torch.equal(first, again) and not torch.equal(first, second)
    torch.testing.assert_close(second, audio(other, 25, 25))
    assert len(list(tmp_path.rglob("*.npy"))) == 2
