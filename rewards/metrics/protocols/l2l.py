"""Protocol `l2l`: the one number that Learning2Listen's released code prints.

Source: Ng et al. 2022. Its FD, SI and diversity code was never released, so they
are not here: see `dim` and `lm_listener`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import numpy as np

from rapport.policies.motion import Motion
from rapport.rewards.metrics.clips import Clips, as_array, as_list, paired
from rapport.rewards.metrics.protocols.protocol import Inputs, Protocol, Variant

CONTEXT = 32  # frames that the model is given and that are not judged


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Z-scores of the 56 channels.

    Args:
        mean: (dim,).
        std: (dim,).
    """

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, train: Clips, variant: Variant) -> Normaliser:
        """From training clips (time, dim).

        The reference divides by how much the clips' standard deviations differ from each other, and
        not by how much the motion varies. "corrected" takes the standard deviation of all frames.
        """
        clips = [
            as_array(clip, f"training clip {i}") for i, clip in enumerate(as_list(train, "train"))
        ]
        if variant == "corrected":
            frames = np.concatenate(clips)
            return cls(frames.mean(axis=0), frames.std(axis=0) + 1e-10)
        mean: np.ndarray = np.mean([clip.mean(axis=0) for clip in clips], axis=0)
        std: np.ndarray = np.std([clip.std(axis=0) for clip in clips], axis=0) + 1e-10
        return cls(mean, std)


def score(
    inputs: Inputs, normalisers: Mapping[Variant, Normaliser] | None = None
) -> dict[str, float]:
    """L2: mean over the frames of all clips, after the first 32, of the distance over channels.

    Args:
        inputs: `pred`, `target`: clips (time, 56) as the reference has them, z-scored and smoothed
            by its bilateral filter; or raw with `normalisers`. Clips longer than 32 frames.
        normalisers: by variant, see `with_training`; without them both variants are the same.

    Raises:
        ValueError: clips that do not go together or are too short.
        LayoutError: typed motion of unlike layouts.
    """
    inputs.refuse("l2l", "partner", "neighbours", "speech_mask")
    distances = []
    for index, (x, y) in enumerate(paired(inputs.pred, inputs.target)):
        if len(x) <= CONTEXT:
            raise ValueError(
                f"clip {index}: l2l judges the frames after the first {CONTEXT}, the clip has "
                f"{len(x)}"
            )
        difference = (x - y)[CONTEXT:]
        if normalisers is not None:
            difference = difference / normalisers[inputs.variant].std
        distances.append(np.linalg.norm(difference, axis=1))
    return {"L2": float(np.concatenate(distances).mean())}


def with_training(train: Sequence[np.ndarray | Motion]) -> Protocol:
    """The protocol on raw coefficients, z-scored as the code does with these training clips."""
    normalisers: dict[Variant, Normaliser] = {
        variant: Normaliser.fit(train, variant) for variant in get_args(Variant)
    }
    return replace(PROTOCOL, score=partial(score, normalisers=normalisers))


PROTOCOL = Protocol(
    name="l2l",
    source="evonneng/learning2listen: src/test_vq_decoder.py (Ng et al., CVPR 2022)",
    corrections={
        "pooled_std": (
            "z-scores divide by the standard deviation of all training frames, not by that of the "
            "clips' standard deviations (`with_training`)"
        ),
    },
    score=score,
)
