"""Who simulated raters are: what each of them expects, and how each of them grades."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from rapport.rewards.ratings.ratings import HIGHEST, LOWEST


@dataclass(frozen=True, eq=False)
class RaterTraits:
    """Who the raters are. Every field is (raters,), but `thresholds` is (raters, 4).

    Args:
        face_weight: weight of the speaker's face, against words, in the affect that is perceived.
        gain: how much of the speaker's affect a listener should show.
        warmth: affect expected from a listener when nothing happens.
        patience: longest delay of a reaction that seems natural, seconds.
        leniency: added to every rating.
        stretch: use of the scale, 1 = full.
        halo: how far the whole impression colours each criterion, 0 to 1.
        noise: standard deviation between two ratings of the same thing.
        thresholds: where one grade ends and the next begins.
    """

    face_weight: np.ndarray
    gain: np.ndarray
    warmth: np.ndarray
    patience: np.ndarray
    leniency: np.ndarray
    stretch: np.ndarray
    halo: np.ndarray
    noise: np.ndarray
    thresholds: np.ndarray


def draw_raters(count: int, seed: int) -> RaterTraits:
    """`count` different raters. Rater i is the same whatever `count`."""
    people = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        people.append(
            {
                "face_weight": rng.uniform(0.45, 0.75),
                "gain": rng.uniform(0.65, 0.95),
                "warmth": rng.normal(0.05, 0.05),
                "patience": rng.uniform(1.0, 1.6),
                "leniency": rng.normal(0.0, 0.3),
                "stretch": np.exp(rng.normal(0.0, 0.12)),
                "halo": rng.uniform(0.05, 0.25),
                "noise": rng.uniform(0.2, 0.5),
                "thresholds": np.sort(
                    np.arange(LOWEST, HIGHEST) + 0.5 + rng.normal(0.0, 0.12, HIGHEST - LOWEST)
                ),
            }
        )
    traits = [field.name for field in fields(RaterTraits)]
    return RaterTraits(**{name: np.array([person[name] for person in people]) for name in traits})
