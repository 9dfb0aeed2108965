"""Protocol `l2l`: the one number that Learning2Listen's released code prints (Ng et al. 2022).

Its FD, SI and diversity code was never released, so they are not here: see `dim` and `lm_listener`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from rapport.rewards.metrics.clips import Clips, as_array, as_list, paired
from rapport.rewards.metrics.protocols.protocol import Protocol, refuse, require_variant

CONTEXT = 32  # frames that the model is given and that are not judged


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Z-scores of the 56 channels: `mean` and `std`, (dim,) each."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, train: Clips, variant: str) -> Normaliser:
        """From training clips (time, dim).

        The reference (`mean_std_swap`) divides by how much the clips' standard deviations differ
        from each other, and not by how much the motion varies. `corrected` takes the standard
        deviation of all frames."""
        clips = [
            as_array(clip, f"training clip {i}") for i, clip in enumerate(as_list(train, "train"))
        ]
        if variant == "corrected":
            frames = np.concatenate(clips)
            return cls(frames.mean(axis=0), frames.std(axis=0) + 1e-10)
        mean = np.mean([clip.mean(axis=0) for clip in clips], axis=0)
        return cls(mean, np.std([clip.std(axis=0) for clip in clips], axis=0) + 1e-10)


def score(
    pred: Clips,
    target: Clips,
    partner: None = None,
    *,
    neighbours: None = None,
    speech_mask: None = None,
    fps: float | None = None,
    variant: str = "reference",
    seed: int = 0,
    normalisers: Mapping[str, Normaliser] | None = None,
) -> dict[str, float]:
    """L2: mean over the frames of all clips, after the first 32, of the distance over channels.

    Args:
        pred, target: clips (time, 56) as the reference has them, z-scored and smoothed by its
            bilateral filter; or raw with `normalisers`. Clips longer than 32 frames.
        normalisers: by variant, see `with_training`; without them both variants are the same.
    """
    require_variant(variant)
    refuse("l2l", partner=partner, neighbours=neighbours, speech_mask=speech_mask)
    normaliser = None if normalisers is None else normalisers[variant]
    distances = []
    for index, (x, y) in enumerate(paired(pred, target)):
        if len(x) <= CONTEXT:
            raise ValueError(
                f"clip {index}: l2l judges the frames after the first {CONTEXT}, the clip has "
                f"{len(x)}"
            )
        difference = (x - y)[CONTEXT:]
        distances.append(
            np.linalg.norm(
                difference if normaliser is None else difference / normaliser.std, axis=1
            )
        )
    return {"L2": float(np.concatenate(distances).mean())}


def with_training(train: Sequence[np.ndarray]) -> Protocol:
    """The protocol on raw coefficients, z-scored as the code does with these training clips."""
    normalisers = {
        variant: Normaliser.fit(train, variant) for variant in ("reference", "corrected")
    }
    return Protocol(
        PROTOCOL.name,
        PROTOCOL.source,
        PROTOCOL.corrections,
        partial(score, normalisers=normalisers),
    )


PROTOCOL = Protocol(
    name="l2l",
    source="evonneng/learning2listen: src/test_vq_decoder.py (Ng et al., CVPR 2022)",
    corrections={
        "pooled_std": "z-scores divide by the standard deviation of all training frames, not by that of the clips' "
        "standard deviations (`with_training`)",
    },
    score=score,
)
