"""Nothing that the speaker does later changes what AR-Flow did before: through the whole path, to
the bit, in training mode too.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapport.policies.clip import AUDIO_RATE
from rapport.policies.flow.conditions import LEADS, MODALITIES
from rapport.policies.flow.config import FlowSizes, VaeSizes, VoiceSizes
from rapport.policies.flow.encoders import FeatureCache, LogMel, TextEncoder
from rapport.policies.flow.features import Features
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.flow.rollouts import NoisyWindow, PaperSde
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import Layout, Motion
from tests.hearing import random_wav2vec2
from tests.small_flow import two_people

LAYOUT = Layout((("expr", 4), ("jaw", 2)), 25, "builtin")
LATENTS = 6
FRAMES = LATENTS * 8


def small_policy(folder, hears):
    """Random weights throughout, those that begin as 0 too; statistics of some other corpus."""
    audio = LogMel()
    if hears == "wav2vec2":
        audio = random_wav2vec2(16, layers=1)
    torch.manual_seed(0)
    vae = MotionVAE(VaeSizes(LAYOUT, latent_dim=4, hidden=32)).eval()
    torch.nn.init.normal_(vae.posterior.weight, std=0.1)
    sizes = FlowSizes(
        latent_dim=4,
        text_dim=8,
        audio_dim=audio.dim,
        hidden=32,
        layers=2,
        mlp=48,
        window=LATENTS,
        span=3,
        voice=VoiceSizes(16) if hears == "log-mel" else None,
        path=LAYOUT.dim if hears == "log-mel" else None,
    )
    flow = initialised(sizes, 0)
    flow.fit_features([torch.randn(9, 8)], [20 * torch.randn(99, audio.dim) - 60])
    policy = FlowPolicy(flow, vae, EncodersConfig())
    text = TextEncoder.tiny(8)
    # A cache would give the first clip's features to the second, which has its name.
    policy.__dict__["features"] = Features(text, audio, FeatureCache(folder, text.name))
    return policy


@pytest.fixture(scope="module", params=["log-mel", "wav2vec2"])
def policy(request, tmp_path_factory):
    return small_policy(tmp_path_factory.mktemp("texts"), request.param)


def talking(seed=0):
    return two_people(LAYOUT, FRAMES, seed)


def changed_from(clip, frame):
    """From a frame on the speaker moves otherwise and is eight times as loud."""
    other = talking(seed=1)
    motion = np.concatenate([clip.speaker.values[:frame], other.speaker.values[frame:]])
    sample = round(frame * AUDIO_RATE / LAYOUT.fps)
    audio = np.concatenate([clip.speaker_audio[:sample], 8 * clip.speaker_audio[sample:]])
    return replace(clip, speaker=Motion(motion, LAYOUT), speaker_audio=audio)


def known_at(frame, lead):
    """Latents whose lead is heard before a frame."""
    return sum(latent * 8 + lead <= frame for latent in range(LATENTS))


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("frame", [8, 19, 24])
def test_latents_whose_lead_is_heard_do_not_know_what_comes_after(policy, lead, frame):
    for exploration in (None, NoisyWindow("midpoint", 4, 0.5), PaperSde(2, 0.5)):
        asked = policy.with_sampler(lead=lead, evaluations=4, exploration=exploration)
        clips = talking(), changed_from(talking(), frame)
        first, other = (asked.sample([policy.encode(clip)], 2, [4])[0] for clip in clips)
        known = known_at(frame, lead)
        for before, after in zip(first, other, strict=True):
            np.testing.assert_array_equal(before.actions[:known], after.actions[:known])
            assert (before.actions[known] != after.actions[known]).any()
        # A frame of the face needs half of the latent after its own.
        shown = [asked.to_motion(reaction).values for reaction in (first[0], other[0])]
        final = max(known * 8 - 4, 0)
        np.testing.assert_array_equal(shown[0][:final], shown[1][:final])


@pytest.mark.parametrize("training", [False, True])
def test_errors_of_training_do_not_know_what_comes_after(policy, training):
    module = policy.module().train(training)
    draws = torch.Generator().manual_seed(0)
    latents = torch.from_numpy(policy.coded(talking().listener))[None, None]
    noise = torch.randn(1, 1, LATENTS, 3, 4, generator=draws)
    time = torch.rand(1, 1, LATENTS, 3, generator=draws)
    for lead in LEADS:
        errors = []
        for clip in (talking(), changed_from(talking(), 20)):
            batch = policy.collate([policy.encode(clip).row])
            conditions = {name: batch[name] for name in (*MODALITIES, "present")}
            heard = torch.tensor([lead])
            errors.append(module("errors", conditions, heard, latents, noise, time, None)[0, 0])
        known = known_at(20, lead)
        assert torch.equal(errors[0][:known], errors[1][:known])
        assert not torch.equal(errors[0][known], errors[1][known])
    module.eval()


def test_with_the_whole_window_the_first_latent_knows_the_last_frame(policy):
    """So that the others can fail."""
    asked = policy.with_sampler(lead=None, evaluations=2)
    clips = talking(), changed_from(talking(), FRAMES - 1)
    first, other = (asked.sample([policy.encode(clip)], 1, [4])[0][0] for clip in clips)
    assert (first.actions[0] != other.actions[0]).any()
