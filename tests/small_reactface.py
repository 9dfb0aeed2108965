"""A small ReactFace with random weights, and people for it to listen to."""

from dataclasses import replace

import numpy as np
import torch

from rapport.policies.clip import AUDIO_RATE
from rapport.policies.flow.encoders import LogMel
from rapport.policies.motion import Layout, Motion
from rapport.policies.reactface.config import ReactFaceSizes
from rapport.policies.reactface.policy import ReactFacePolicy
from tests.small_flow import two_people

W = 8
WINDOWS = 9  # of a clip, three times the span
GROUPS = (("expr", 4), ("jaw", 2))


def small_reactface(fps=25, seed=0, clips=(), groups=GROUPS, **sizes):
    """Its face heeds what it hears, sees and draws far more than an untrained one."""
    layout = Layout(groups, fps, "builtin")
    small = {"hidden": 32, "latent": 4, "layers": 2, "span": 3} | sizes
    config = ReactFaceSizes(layout, LogMel().dim, **small)
    people = list(clips) or [talking(layout, n) for n in range(3)]
    policy = ReactFacePolicy.untrained(layout, people, seed, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, weight in policy.model.named_parameters():
            if weight.ndim == 2 and name != "prior":
                torch.nn.init.normal_(weight, std=1.2 / weight.shape[1] ** 0.5)
    policy.model.eval()
    return policy


def talking(layout, seed=0, windows=WINDOWS):
    return two_people(layout, windows * W, seed)


def shown(clip, seed=0, count=13):
    """The same clip with pictures of the speaker."""
    rng = np.random.default_rng(seed)
    return replace(clip, speaker_frames=rng.integers(0, 256, (count, 20, 20, 3), dtype=np.uint8))


def changed_from(clip, frame):
    """From a frame on the speaker moves otherwise and is eight times as loud."""
    layout = clip.listener.layout
    other = two_people(layout, len(clip.listener), seed=1)
    motion = np.concatenate([clip.speaker.values[:frame], other.speaker.values[frame:]])
    sample = round(frame * AUDIO_RATE / layout.fps)
    audio = np.concatenate([clip.speaker_audio[:sample], 8 * clip.speaker_audio[sample:]])
    return replace(clip, speaker=Motion(motion, layout), speaker_audio=audio)
