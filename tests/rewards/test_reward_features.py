"""What a reward model sees and hears: it can tell who answers this speaker, and when."""

from dataclasses import replace

import numpy as np
import pytest

from rapport.policies.clip import AUDIO_RATE
from rapport.rewards.ratings.speaker_cues import SpeakerCues
from rapport.rewards.ratings.visible import Expression, VisibleMotion
from rapport.rewards.reward_features import reward_features

FPS, FRAMES = 25.0, 150
PATH = np.cumsum(np.random.default_rng(0).normal(size=FRAMES)) * 0.4  # mm


def face(smile, pitch=None):
    """Somebody whose mouth's corners and head go along paths (time,)."""
    still = np.zeros((FRAMES, 2))
    both = np.repeat(np.asarray(smile, float)[:, None], 2, axis=1)
    head = np.zeros((FRAMES, 3))
    if pitch is not None:
        head[:, 0] = pitch
    expression = Expression(both, still, np.zeros(FRAMES), still, still, 1 + still)
    return VisibleMotion(FPS, head, expression)


def late(path, seconds):
    return path[np.maximum(np.arange(FRAMES) - round(seconds * FPS), 0)]


def test_who_mirrors_this_speaker_is_told_from_who_mirrors_another():
    listener = face(0.7 * late(PATH, 0.6))
    own = reward_features(SpeakerCues(face(PATH)), listener)
    another = reward_features(SpeakerCues(face(PATH[::-1])), listener)
    assert own["smile: follows by 0.6 s"] == pytest.approx(1, abs=0.02)
    assert own["smile: follows by 0.6 s"] > own["smile: follows by 1.6 s"]
    assert another["smile: follows by 0.6 s"] < 0.8
    assert own["mirror"] > another["mirror"]
    same = {name for name in own if own[name] == another[name]}
    manner = ("mean", "away", "slow", "middle", "fast")
    assert {name for name in own if name.endswith(manner)} <= same, "of the listener alone"
    assert "movement" in same and "mirror" not in same


def test_nods_where_the_speaker_pauses_are_heard():
    speaks = (np.arange(FRAMES) // 25) % 2 == 0  # seconds of speech and of silence
    sound = np.repeat(speaks, round(AUDIO_RATE / FPS))
    audio = 0.1 * sound * np.random.default_rng(1).normal(size=len(sound))
    nods = 0.05 * np.sin(2 * np.pi * 3 * np.arange(FRAMES) / FPS)
    speaker = SpeakerCues(face(PATH), audio=audio)
    smile = np.zeros(FRAMES)
    middle = (np.arange(FRAMES) % 50 > 35) & ~speaks
    spoken = (np.arange(FRAMES) % 50 > 11) & (np.arange(FRAMES) % 50 < 14)
    polite = reward_features(speaker, face(smile, nods * middle))
    rude = reward_features(speaker, face(smile, nods * spoken))
    assert polite["nods in pauses"] > 0.5 and rude["nods in pauses"] < 0
    assert polite["moves in pauses"] > rude["moves in pauses"]


def test_what_is_absent_is_nan_under_the_same_names():
    listener = face(PATH)
    whole = reward_features(
        SpeakerCues(face(PATH), audio=np.zeros(AUDIO_RATE * 6, np.float32)), listener
    )
    assert np.isfinite(list(whole.values())).all()
    unseen = reward_features(SpeakerCues(), listener)
    hidden = reward_features(SpeakerCues(face(PATH)), replace(listener, expression=None))
    assert list(unseen) == list(hidden) == list(whole)
    assert np.isnan(unseen["mirror"]) and np.isnan(unseen["nods in pauses"])
    assert np.isfinite(unseen["smile: mean"]) and np.isnan(hidden["smile: mean"])
    assert np.isfinite(hidden["pitch: fast"]) and np.isfinite(hidden["movement"])


def test_a_face_that_stands_still_and_a_single_frame_have_numbers():
    still = reward_features(SpeakerCues(face(PATH)), face(np.zeros(FRAMES)))
    assert np.isfinite([value for name, value in still.items() if "pauses" not in name][:-1]).all()
    assert still["smile: follows by 0.6 s"] == 0
    single = reward_features(
        SpeakerCues(face(PATH).window(0, 1)), face(np.zeros(FRAMES)).window(0, 1)
    )
    assert np.isfinite(single["movement"])
