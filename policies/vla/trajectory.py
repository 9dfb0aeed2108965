"""What a rollout hands on: sampled action tokens with everything needed to trust them later."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt ready for any engine.

    Args:
        prompt_id: the clip it was made from.
        ids: (prompt length,) token ids, one <image> id per patch.
        frames: (frames, height, width, 3) uint8, or None where the clip has no video.
    """

    prompt_id: str
    ids: np.ndarray
    frames: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One sampled reaction.

    Args:
        prompt_id, sample: which prompt, and which of its K candidates.
        tokens: (steps * dims,) action token ids in the vocabulary.
        log_probs: (steps * dims,) float32, over the 256-bin support, at the sampling temperature.
        weight_version: version of the weights that sampled it.
        seed: seed of the sampler.
    """

    prompt_id: str
    sample: int
    tokens: np.ndarray
    log_probs: np.ndarray
    weight_version: int
    seed: int
