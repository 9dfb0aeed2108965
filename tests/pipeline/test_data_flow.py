"""Windows of a clip: the actor, what is absent, who speaks when, what the table holds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapport.pipeline.data import flow
from rapport.pipeline.data.flow import (
    WINDOW_SCHEMA,
    _speaks,
    condition_row,
    describe_face,
    whole_latents,
    window_rows,
    windows,
)
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.flow.conditions import MODALITIES
from rapport.policies.flow.config import VaeSizes
from rapport.policies.flow.encoders import FeatureCache, LogMel, TextEncoder
from rapport.policies.flow.features import Features
from rapport.policies.flow.training import from_bytes
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import Layout, LayoutError, Motion
from rapport.policies.tables import read_table, write_table


@pytest.fixture
def clip(tiny_corpus):
    return tiny_corpus.at("train", 0)  # 25 frames


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    text, audio = TextEncoder.tiny(8), LogMel()
    return Features(text, audio, FeatureCache(folder, text.name), FeatureCache(folder, audio.name))


@pytest.fixture(scope="module")
def vae(tiny_corpus):
    torch.manual_seed(0)
    return MotionVAE(VaeSizes(tiny_corpus.layout, hidden=32, latent_dim=4)).eval()


def test_a_window_is_whole_latents():
    assert [whole_latents(frames, 8) for frames in (100, 96, 8, 15)] == [96, 96, 8, 8]
    with pytest.raises(LayoutError, match="7 frames holds no latent of 8; raise corpus.seconds"):
        whole_latents(7, 8)


def test_both_people_are_actors_and_each_is_the_others_partner(clip):
    listener, speaker = windows(clip, 8)
    assert (listener.window_id, speaker.window_id) == (
        f"{clip.clip_id}/listener",
        f"{clip.clip_id}/speaker",
    )
    assert len(listener.motion) == len(listener.partner) == 24
    np.testing.assert_array_equal(listener.motion.values, clip.listener.values[:24])
    np.testing.assert_array_equal(speaker.motion.values, listener.partner.values)
    assert listener.actor_audio is clip.listener_audio and speaker.actor_audio is clip.speaker_audio
    np.testing.assert_array_equal(listener.actor_speaks, speaker.partner_speaks)
    np.testing.assert_array_equal(
        listener.listening, listener.partner_speaks & ~listener.actor_speaks
    )
    assert not (listener.listening & speaker.listening).any()
    assert [w.window_id for w in windows(clip, 8, both=False)] == [listener.window_id]
    assert len(list(windows(replace(clip, speaker=None), 8))) == 1, (
        "nobody's motion cannot be learnt"
    )


def test_speech_is_heard_frame_by_frame():
    audio = np.zeros(2 * AUDIO_RATE, np.float32)
    audio[AUDIO_RATE:] = 0.3 * np.sin(np.arange(AUDIO_RATE) / 5)
    speaks = _speaks(audio, 50, 25.0, otherwise=False)
    assert not speaks[:24].any() and speaks[26:49].all()


def test_without_sound_the_roles_of_the_corpus_count(clip):
    silent = replace(clip, speaker_audio=None, listener_audio=None)
    listener, speaker = windows(silent, 8)
    assert listener.listening.all() and not speaker.listening.any() and speaker.actor_speaks.all()


def test_the_prompt_names_what_the_face_shows(clip):
    affect = {clip.clip_id: np.array([[0.5, -0.3], [0.7, -0.1]])}
    listener, speaker = windows(clip, 8, affect=affect)
    assert listener.text == "happy and calm, " + describe_face(listener.motion)
    assert speaker.text == describe_face(speaker.motion), "the speaker's affect is not labelled"


def test_the_prompt_names_emotion_gaze_and_nods():
    layout = Layout((("expr", 1), ("neck", 3), ("eyepose", 6), ("rot", 3)), 25.0, "builtin")
    still = np.zeros((100, layout.dim), np.float32)
    assert describe_face(Motion(still, layout), np.array([[-0.4, 0.5]])) == (
        "sad and excited, looking ahead, with a still head"
    )
    aside = still.copy()
    aside[:30, layout.columns("rot")] = (0, 0.3, 0)  # yaw
    assert describe_face(Motion(aside, layout), np.zeros((3, 2))).startswith(
        "neutral and attentive, glancing away"
    )
    followed = aside.copy()
    followed[:30, layout.columns("eyepose")] = (0, -0.3, 0) * 2  # the head turns, the eyes stay
    assert "looking ahead" in describe_face(Motion(followed, layout))
    nodding = still.copy()
    nodding[:, layout.columns("neck")] = np.outer(
        0.05 * np.sin(2 * np.pi * 2 * np.arange(100) / 25), (1, 0, 0)
    )
    assert describe_face(Motion(nodding, layout)) == "looking ahead, nodding"
    assert describe_face(Motion(still[:, :1], Layout((("expr", 1),), 25.0, "builtin"))) is None


def test_the_table_holds_conditions_latents_and_masks(clip, features, vae, tmp_path):
    given = list(windows(clip, 8))
    assert write_table(tmp_path / "t.arrow", window_rows(given, features, vae), WINDOW_SCHEMA) == 2
    listener, speaker = read_table(tmp_path / "t.arrow")
    assert from_bytes(listener["partner_audio"], 24, 64).equal(
        from_bytes(speaker["actor_audio"], 24, 64)
    )
    assert from_bytes(listener["partner_motion"], 3, 4).equal(from_bytes(speaker["latents"], 3, 4))
    latents = vae.encode(torch.from_numpy(given[0].motion.values)[None])[0]
    torch.testing.assert_close(from_bytes(listener["latents"], 3, 4), latents)
    assert listener["listening"] == given[0].listening.tolist()
    assert from_bytes(speaker["text"], 8).isfinite().all()


def test_rows_do_not_depend_on_the_batch_and_a_face_is_encoded_once(
    tiny_corpus, features, vae, monkeypatch
):
    given = [window for i in range(2) for window in windows(tiny_corpus.at("train", i), 8)]
    alone = [row for window in given for row in window_rows([window], features, vae)]
    encoded = []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda frames: encoded.append(len(frames)) or encode(frames))
    monkeypatch.setattr(flow, "BATCH", 3)
    for row, expected in zip(window_rows(given, features, vae), alone, strict=True):
        for name in ("latents", "partner_motion"):
            own, other = (from_bytes(each.pop(name), 3, 4) for each in (row, expected))
            torch.testing.assert_close(own, other, atol=1e-5, rtol=0)
        assert row == expected
    assert encoded == [4, 2]


def test_what_a_clip_lacks_is_null(clip, features, vae):
    bare = replace(clip, speaker=None, speaker_audio=None, listener_audio=None, words=None)
    [row] = window_rows(windows(bare, 8), features, vae)
    assert (
        all((row[name] is None) == (name != "text") for name in MODALITIES)
        and row["latents"] is not None
    )


def test_features_are_computed_once(clip, features, vae):
    window = next(windows(clip, 8))
    [partner] = vae.latents_of([window.partner])
    first = condition_row(window, features, partner)
    again = condition_row(window, replace(features, text=None, audio=None), partner)
    assert all(again[name] == first[name] for name in first)
    assert all(first[name] is not None for name in MODALITIES)
