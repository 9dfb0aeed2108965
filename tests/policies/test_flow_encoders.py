"""The frozen encoders: shapes, alignment in time, what they tell apart, and the cache."""

import numpy as np
import pytest
import torch

from rapport.policies.flow.encoders import (
    AUDIO_RATE,
    AudioEncoder,
    FeatureCache,
    TextEncoder,
    _receptive_field,
)


@pytest.fixture(scope="module")
def text():
    return TextEncoder.tiny()


@pytest.fixture(scope="module")
def audio():
    return AudioEncoder.tiny()


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


@pytest.mark.parametrize(("frames", "fps"), [(25, 25), (100, 25), (30, 30), (1, 25)])
def test_one_token_per_video_frame(audio, frames, fps):
    tokens = audio(sound(frames, fps), frames, fps)
    assert (
        tokens.shape == (frames, audio.dim)
        and tokens.dtype == torch.float32
        and tokens.isfinite().all()
    )


def test_loudness_of_the_recording_does_not_matter_but_sound_does(audio):
    x = sound(50)
    torch.testing.assert_close(audio(x, 50, 25), audio(3 * x + 1, 50, 25), atol=1e-3, rtol=1e-3)
    assert (audio(x, 50, 25) - audio(sound(50, seed=1), 50, 25)).abs().max() > 0.05


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


def test_streaming_features_know_nothing_of_later_sound(audio):
    x = sound(24)
    later = x.copy()
    later[16 * 640 :] = 0
    a, b = (audio.stream(y, 24, 25, downsample=8) for y in (x, later))
    assert a.shape == (24, audio.dim)
    assert torch.equal(a[:16], b[:16]) and not torch.equal(a[16:], b[16:])
    assert not torch.equal(audio(x, 24, 25)[:16], audio(later, 24, 25)[:16])
    torch.testing.assert_close(a[16:], audio(x, 24, 25)[16:])
    assert len(audio.stream(sound(20), 20, 25, downsample=8)) == 20


def test_bad_audio_is_refused(audio):
    with pytest.raises(
        ValueError, match=r"32000 audio samples at 16000 Hz, got an array of shape \(16000,\)"
    ):
        audio(sound(25), 50, 25)
    x = sound(25)
    x[7] = np.nan
    with pytest.raises(ValueError, match="sample 7"):
        audio(x, 25, 25)


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
