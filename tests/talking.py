"""Clips made by hand for the VLA: noise for pictures, voice and motion, with or without a past."""

from dataclasses import replace

import numpy as np
import torch

from rapport.pipeline.bench.workload import random_prompts
from rapport.policies.clip import AUDIO_RATE, Clip, Past, Word
from rapport.policies.motion import Layout, Motion
from rapport.policies.vla.actions import ActionSpace, ActionTokenizer
from rapport.policies.vla.loading import SequenceSizes, build_tiny, tiny_config
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.sequence import seen_of
from rapport.policies.vla.text import build_text_tokenizer

LAYOUT = Layout((("expr", 3), ("rot", 3)), 25, "builtin")
TOKENIZER = build_text_tokenizer(["hello there how is it going"] * 4, text_vocabulary=300)
SEQUENCE = SequenceSizes(frames=1, chunk=0.4, context=0.8, history=0.8, text_tokens=6, chunk_text=3)


def small_policy(
    seconds: float = 1.6, sequence: SequenceSizes = SEQUENCE, seed: int = 0, **sizes
) -> VlaPolicy:
    """Chunks of 2 steps of 6 dimensions; two of them make a context."""
    space = ActionSpace(LAYOUT, rate=5, seconds=seconds)
    small = {"image_size": 28, "hidden": 32, "layers": 2, "heads": 2, "tower_hidden": 16}
    config = tiny_config(TOKENIZER, space, sequence, **small | sizes)
    bound = np.full(space.dims, 2.0)
    rest = np.linspace(-0.2, 0.3, space.dims)  # of whom nothing is known
    actions = ActionTokenizer(space, -bound, bound, config.action_token_start, rest=rest)
    model = build_tiny(config, seed=seed).eval()
    return VlaPolicy(model, TOKENIZER, actions)


def talking(
    seconds: float = 1.6, past: float = 1.2, seed: int = 0, frame_rate: float = 5.0
) -> Clip:
    """A clip in which everything is there; `past` seconds before it are known."""
    rng = np.random.default_rng(seed)
    whole = seconds + past
    listener = rng.normal(size=(round(whole * LAYOUT.fps), LAYOUT.dim)).cumsum(axis=0) / 10
    frames = rng.integers(0, 256, (round(whole * frame_rate), 28, 28, 3), dtype=np.uint8)
    audio = rng.normal(size=round(whole * AUDIO_RATE)).astype(np.float32) / 10
    words = [
        Word(str(rng.choice(["hello", "there", "how", "going"])), end - 0.2, end)
        for end in np.arange(-past + 0.15, seconds, 0.3).round(3)
    ]
    cut = round(past * LAYOUT.fps)
    shown = round(past * frame_rate)
    heard = round(past * AUDIO_RATE)
    before = Past(
        listener=Motion(listener[:cut], LAYOUT),
        speaker_frames=frames[:shown],
        speaker_audio=audio[:heard],
        words=tuple(word for word in words if word.end <= 0),
    )
    return Clip(
        clip_id=f"talking-{seed}",
        dyad_id=f"dyad-{seed}",
        split="train",
        listener=Motion(listener[cut:], LAYOUT),
        speaker_frames=frames[shown:],
        speaker_audio=audio[heard:],
        words=tuple(word for word in words if word.end > 0),
        past=before if past else None,
        rest=Motion(np.median(listener[:cut], axis=0)[None], LAYOUT) if past else None,
    )


def changed_after(clip: Clip, moment: float, seed: int = 9) -> Clip:
    """The clip with everything of the speaker after a moment made up anew."""
    other = talking(clip.seconds, seed=seed, past=0)
    rate = len(clip.speaker_frames) / clip.seconds
    taken = (np.arange(len(clip.speaker_frames)) + 0.5) / rate
    frames = np.where(
        (taken > moment)[:, None, None, None], 255 - clip.speaker_frames, clip.speaker_frames
    )
    sample = round(moment * AUDIO_RATE)
    audio = np.concatenate([clip.speaker_audio[:sample], other.speaker_audio[sample:]])
    words = [word for word in clip.words if word.end <= moment]
    words += [replace(word, text="other") for word in clip.words if word.end > moment]
    return replace(clip, speaker_frames=frames, speaker_audio=audio, words=tuple(words))


def made_up(config, count=1, filmed=True):
    """Prompts of any policy, and actions that could be an answer: (prompts, actions) tensors."""
    prompts = random_prompts(config, count, seed=0, filmed=filmed)
    rng = np.random.default_rng(1)
    tokens = config.action_token_start + rng.integers(
        0, config.action_bins, (count, config.action_tokens)
    )
    return seen_of(config, prompts), torch.from_numpy(tokens)
