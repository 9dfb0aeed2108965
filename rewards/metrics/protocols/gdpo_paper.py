"""Protocol `gdpo_paper`: LVE, MHD, FDD, PDD, JDD as the text of GDPO-Listener's supplement defines
them.

No code was published. The text and the only public code on the scale of its tables, that of
`unils`, disagree: velocities here, positions there; listening is "the partner speaks and the actor
is silent" here, "the actor is silent" there. The text names no factor either; ours is the 100 of
UniLS. Compare with the paper's tables with care."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rapport.rewards.metrics.measures.mesh import (
    MM_PER_M,
    Face,
    deviation,
    lve,
    mhd,
    vertex_distances,
    with_masks,
)
from rapport.rewards.metrics.protocols.protocol import Protocol, refuse, require_variant


def score(
    pred: Face | Sequence[Face],
    target: Face | Sequence[Face],
    partner: None = None,
    *,
    neighbours: None = None,
    speech_mask: Any = None,
    fps: float | None = None,
    variant: str = "reference",
    seed: int = 0,
) -> dict[str, float]:
    """LVE, MHD, FDD, PDD, JDD with the suffix `_speak`; FDD, PDD, JDD with the suffix `_listen`.

    Args:
        pred, target: one `rapport.rewards.metrics.measures.mesh.Face` a clip.
        speech_mask: (2, time) of each clip: where the actor, whose face it is, and where the
            partner speaks.

    FDD, PDD and JDD are 100 times the mean absolute difference of the standard deviations (ddof 1)
    of velocities, in mm and radians a frame. A clip needs 2 velocities in a part, else it is left
    out of its means; a part that no clip has is left out of the result."""
    require_variant(variant)
    refuse("gdpo_paper", partner=partner, neighbours=neighbours)
    values: dict[str, list[float]] = {}
    for x, y, (actor, other) in with_masks(pred, target, speech_mask, people=2):
        for part, frames in (("speak", actor), ("listen", other & ~actor)):
            steps = _steps(frames, across_gaps=variant == "reference")
            if len(steps) > 1:
                scores = _dynamics(x, y, steps)
                if part == "speak":
                    apart = vertex_distances(x.vertices[frames], y.vertices[frames])
                    scores |= {"LVE": lve(apart[:, list(x.regions.lip)]), "MHD": mhd(apart)}
                for name, value in scores.items():
                    values.setdefault(f"{name}_{part}", []).append(value)
    return {name: float(np.mean(given)) for name, given in values.items()}


def _steps(frames: np.ndarray, across_gaps: bool) -> np.ndarray:
    """(steps, 2) first and last frame of each velocity."""
    index = np.flatnonzero(frames)
    steps = np.stack([index[:-1], index[1:]], axis=1)
    return steps if across_gaps else steps[np.diff(steps, axis=1)[:, 0] == 1]


def _dynamics(x: Face, y: Face, steps: np.ndarray) -> dict[str, float]:
    upper = list(x.regions.upper)
    features = {
        "FDD": [MM_PER_M * face.vertices[:, upper] for face in (x, y)],
        "PDD": [x.rot, y.rot],
        "JDD": [x.jaw, y.jaw],
    }
    return {
        name: deviation(*(feature[steps[:, 1]] - feature[steps[:, 0]] for feature in both))
        for name, both in features.items()
    }


PROTOCOL = Protocol(
    name="gdpo_paper",
    source="GDPO-Listener, supplement, section 1 (text only, no code)",
    corrections={
        "no_velocity_across_gaps": "a velocity needs two frames in a row; `reference` joins the frames of a part as "
        "UniLS does, so that every pause adds a jump",
    },
    score=score,
)
