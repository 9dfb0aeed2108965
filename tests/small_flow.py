"""The sizes of a small AR-Flow, what a window of it is conditioned on, and people to listen to."""

import numpy as np
import torch

from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.flow import config
from rapport.policies.flow.config import FlowSizes, VaeSizes
from rapport.policies.flow.encoders import FeatureCache, LogMel, TextEncoder
from rapport.policies.flow.features import Features
from rapport.policies.flow.model import initialised
from rapport.policies.flow.policy import FlowPolicy, Sampler
from rapport.policies.flow.settings import EncodersConfig
from rapport.policies.flow.vae import MotionVAE
from rapport.policies.motion import Layout, Motion

LAYOUT = Layout((("expr", 4), ("jaw", 2)), 25, "builtin")
GROUPS = (("expr", 4), ("jaw", 2))
LATENTS = 9  # of a window of `small_policy`, three times its span
VOICE = config.VoiceSizes(16, look_back=9)
SIZES = config.FlowSizes(
    latent_dim=4,
    downsample=4,
    text_dim=5,
    audio_dim=6,
    hidden=32,
    layers=2,
    heads=4,
    mlp=48,
    window=12,
)
SHAPES = {
    "text": (5,),
    "partner_audio": (48, 6),
    "partner_motion": (12, 4),
    "actor_audio": (48, 6),
}


def _sizes(layout, latent_dim, text_dim, voice):
    return FlowSizes(
        latent_dim=latent_dim,
        text_dim=text_dim,
        audio_dim=LogMel().dim,
        hidden=32,
        layers=2,
        mlp=48,
        window=LATENTS,
        span=3,
        voice=voice,
        path=layout.dim,
    )


def _random_vae(layout, latent_dim, seed, wide):
    torch.manual_seed(seed)
    vae = MotionVAE(VaeSizes(layout, latent_dim=latent_dim, hidden=32)).eval()
    torch.nn.init.normal_(vae.posterior.weight, std=0.1)
    torch.nn.init.normal_(vae.patch_out.weight, std=wide)
    return vae


def small_policy(folder, fps=25, voice=VOICE, text_dim=8, groups=GROUPS):
    """An AR-Flow that can listen live, random weights throughout, those that begin as 0 too."""
    layout = Layout(groups, fps, "builtin")
    vae = _random_vae(layout, 4, seed=0, wide=0.1)
    vae.channel_mean.copy_(torch.randn(layout.dim))
    flow = initialised(_sizes(layout, 4, text_dim, voice), 0)
    torch.nn.init.normal_(flow.gain.weight, std=0.1)
    audio = LogMel()
    flow.fit_features([torch.randn(9, text_dim)], [20 * torch.randn(99, audio.dim) - 60])
    policy = FlowPolicy(flow, vae, EncodersConfig())
    policy.sampler = Sampler(evaluations=4)
    text = TextEncoder.tiny(text_dim)
    policy.__dict__["features"] = Features(text, audio, FeatureCache(folder, text.name))
    return policy


def saved_policy(folder, groups, seed=0):
    """The folder of an AR-Flow with random weights, the texts of which any process can encode."""
    layout = Layout(groups, 25, "builtin")
    vae = _random_vae(layout, 8, seed, wide=0.02)
    flow = initialised(_sizes(layout, 8, 32, VOICE), seed)
    flow.fit_features([torch.randn(9, 32)], [20 * torch.randn(99, LogMel().dim) - 60])
    FlowPolicy(flow, vae, EncodersConfig()).save(folder)
    return folder


def two_people(layout, frames, seed=0):
    """A clip of two people who move and sound at random; of the listener too there is a voice."""
    rng = np.random.default_rng(seed)
    motions = rng.normal(size=(2, frames, layout.dim)).cumsum(axis=1).astype(np.float32) / 5
    samples = round(frames * AUDIO_RATE / layout.fps)
    voices = rng.normal(size=(2, samples)).astype(np.float32) / 10
    return Clip(
        clip_id=f"talking {seed}",
        dyad_id="dyad",
        split="train",
        listener=Motion(motions[0], layout),
        speaker=Motion(motions[1], layout),
        listener_audio=voices[0],
        speaker_audio=voices[1],
        manner="happy",
    )
