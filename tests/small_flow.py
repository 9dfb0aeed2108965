"""The sizes of a small AR-Flow, what a window of it is conditioned on, and people to listen to."""

import numpy as np

from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.flow import config
from rapport.policies.motion import Layout, Motion

LAYOUT = Layout((("expr", 4), ("jaw", 2)), 25, "builtin")
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
