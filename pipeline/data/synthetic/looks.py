"""How affect and events look on a face, in ARKit's shapes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_PAIRS = (
    "mouthSmile",
    "cheekSquint",
    "mouthFrown",
    "browDown",
    "browOuterUp",
    "eyeSquint",
    "eyeWide",
    "mouthPress",
    "mouthUpperUp",
)
CHANNELS = ("browInnerUp", *(f"{name}{side}" for name in _PAIRS for side in ("Left", "Right")))
LAUGH_JAW = 0.10  # radians of jaw opening in a full laugh

# The shapes of what a listener's face does; a name of `_PAIRS` stands for both sides.
EVENTS: dict[str, dict[str, float]] = {
    "smile": {"mouthSmile": 0.85, "cheekSquint": 0.4, "eyeSquint": 0.25},
    "concern": {"mouthFrown": 0.9, "browInnerUp": 0.9},
    "disapproval": {"mouthFrown": 0.9, "browDown": 0.8, "mouthPress": 0.2},
    "flash": {"browInnerUp": 0.6, "browOuterUp": 0.7, "eyeWide": 0.3},
    "press": {"mouthPress": 0.7},
    "laugh": {"mouthUpperUp": 0.35, "eyeSquint": 0.2},
}


def event_weights(tracks: Mapping[str, np.ndarray]) -> np.ndarray:
    """ARKit weights (time, len(CHANNELS)) in [0, 1] of events.

    Args:
        tracks: name of `EVENTS` -> how much of it there is, (time,).
    """
    weights: dict[str, np.ndarray] = {}
    for event, amount in tracks.items():
        for shape, weight in EVENTS[event].items():
            weights[shape] = weights.get(shape, 0.0) + weight * amount
    return _channels(weights, frames=len(next(iter(tracks.values()))))


def expression_of(affect: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How valence and arousal look on a speaker.

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
    weights = {
        "browInnerUp": 1.0 * bad * calm + 0.2 * excited * glad,
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
    return _channels(weights, frames=len(affect)), LAUGH_JAW * glad * excited


def _channels(weights: Mapping[str, np.ndarray], frames: int) -> np.ndarray:
    """(time, len(CHANNELS)) in [0, 1]; shapes that are not named are at rest."""
    columns = np.zeros((frames, len(CHANNELS)))
    for column, channel in enumerate(CHANNELS):
        shape = channel.removesuffix("Left").removesuffix("Right")
        columns[:, column] = weights.get(shape, 0.0)
    return np.clip(columns, 0, 1)
