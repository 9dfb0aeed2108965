"""Affects: what a speaker feels, what fits as an answer, and how both look on a face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Affect:
    """An affect of the speaker.

    Args:
        name: also names the sentences that go with it (`words.SENTENCES`).
        frequency: relative frequency of its episodes.
        felt: valence and arousal of the speaker, in [-1, 1].
        answer: valence and arousal of a fitting listener: smiles are shared, grief is met with
            concern, anger at a third party with disapproval and not with rage.
    """

    name: str
    frequency: float
    felt: tuple[float, float]
    answer: tuple[float, float]


AFFECTS = (
    Affect("neutral", 0.22, (0.05, -0.05), (0.10, -0.05)),
    Affect("joy", 0.18, (0.75, 0.40), (0.60, 0.25)),
    Affect("amusement", 0.14, (0.85, 0.80), (0.75, 0.50)),
    Affect("sadness", 0.18, (-0.70, -0.45), (-0.50, -0.25)),
    Affect("anger", 0.14, (-0.70, 0.75), (-0.45, 0.25)),
    Affect("worry", 0.14, (-0.50, 0.40), (-0.40, 0.10)),
)

CHANNELS = (
    "mouthSmileLeft",
    "mouthSmileRight",
    "cheekSquintLeft",
    "cheekSquintRight",
    "mouthFrownLeft",
    "mouthFrownRight",
    "browInnerUp",
    "browDownLeft",
    "browDownRight",
    "browOuterUpLeft",
    "browOuterUpRight",
    "eyeSquintLeft",
    "eyeSquintRight",
    "eyeWideLeft",
    "eyeWideRight",
    "mouthPressLeft",
    "mouthPressRight",
    "mouthUpperUpLeft",
    "mouthUpperUpRight",
)
_JAW_LAUGH = 0.10  # radians of jaw opening in full, excited joy


def expression_of(affect: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How valence and arousal look.

    Smiles with raised cheeks carry positive valence; a frown with raised inner brows carries
    sadness and concern, with lowered brows and pressed lips anger and disapproval; arousal opens
    eyes and, in joy, the mouth.

    Args:
        affect: (time, 2) valence and arousal.

    Returns:
        ARKit weights (time, len(CHANNELS)) in [0, 1] and jaw opening (time,) in radians.
    """
    valence = affect[:, 0]
    arousal = affect[:, 1]
    glad = np.maximum(valence, 0)
    bad = np.maximum(-valence, 0)
    tense = np.clip(0.5 + arousal, 0, 1.3)
    calm = np.clip(0.5 - arousal, 0, 1)
    excited = np.maximum(arousal, 0)
    paired = {
        "mouthSmile": 0.85 * glad,
        "cheekSquint": 0.45 * glad * tense,
        "mouthFrown": 0.9 * bad,
        "browDown": 0.8 * bad * tense,
        "browOuterUp": 0.35 * glad * excited,
        "eyeSquint": 0.25 * glad + 0.25 * bad * tense,
        "eyeWide": 0.35 * excited * (1 - glad),
        "mouthPress": 0.45 * bad * excited,
        "mouthUpperUp": 0.35 * glad * excited,
    }
    weights = {"browInnerUp": 1.0 * bad * calm + 0.2 * excited * glad}
    for name, value in paired.items():
        weights[f"{name}Left"] = value
        weights[f"{name}Right"] = value
    arkit = np.clip(np.stack([weights[name] for name in CHANNELS], axis=1), 0, 1)
    jaw = _JAW_LAUGH * glad * excited
    return arkit, jaw
