"""Protocol `gdpo_paper`: LVE, MHD, FDD, PDD, JDD as GDPO-Listener's supplement words them.

No code was published. The text and the only public code on the scale of its tables, that of
`unils`, disagree: velocities here, positions there; listening is "the partner speaks and the actor
is silent" here, "the actor is silent" there. The text names no factor either; ours is the 100 of
UniLS. Compare with the paper's tables with care.
"""

from __future__ import annotations

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
from rapport.rewards.metrics.protocols.protocol import Inputs, Protocol


def score(inputs: Inputs) -> dict[str, float]:
    """LVE, MHD, FDD, PDD, JDD with the suffix `_speak`; FDD, PDD, JDD with the suffix `_listen`.

    FDD, PDD and JDD are 100 times the mean absolute difference of the standard deviations (ddof 1)
    of velocities, in mm and radians a frame. A clip needs 2 velocities in a part, else it is left
    out of its means; a part that no clip has is left out of the result.

    Args:
        inputs: `pred`, `target`: one `rapport.rewards.metrics.measures.mesh.Face` a clip.
            `speech_mask`: (2, time) of each clip: where the actor, whose face it is, and where the
            partner speaks.

    Raises:
        ValueError: clips and masks that do not go together.
    """
    inputs.refuse("gdpo_paper", "partner", "neighbours")
    values_by_name: dict[str, list[float]] = {}
    for x, y, (actor, other) in with_masks(
        inputs.pred, inputs.target, inputs.speech_mask, people=2
    ):
        for part, frames in (("speak", actor), ("listen", other & ~actor)):
            steps = _steps(frames, across_gaps=not inputs.is_corrected)
            if len(steps) < 2:
                continue
            scores = _deviations(x, y, steps)
            if part == "speak":
                apart = vertex_distances(x.vertices[frames], y.vertices[frames])
                scores["LVE"] = lve(apart[:, list(x.regions.lip)])
                scores["MHD"] = mhd(apart)
            for name, value in scores.items():
                values_by_name.setdefault(f"{name}_{part}", []).append(value)
    return {name: float(np.mean(values)) for name, values in values_by_name.items()}


def _steps(frames: np.ndarray, across_gaps: bool) -> np.ndarray:
    """(steps, 2) first and last frame of each velocity."""
    index = np.flatnonzero(frames)
    steps = np.stack([index[:-1], index[1:]], axis=1)
    return steps if across_gaps else steps[np.diff(steps, axis=1)[:, 0] == 1]


def _deviations(x: Face, y: Face, steps: np.ndarray) -> dict[str, float]:
    upper = list(x.regions.upper)

    def of_velocities(x: np.ndarray, y: np.ndarray) -> float:
        return deviation(x[steps[:, 1]] - x[steps[:, 0]], y[steps[:, 1]] - y[steps[:, 0]])

    return {
        "FDD": of_velocities(MM_PER_M * x.vertices[:, upper], MM_PER_M * y.vertices[:, upper]),
        "PDD": of_velocities(x.rot, y.rot),
        "JDD": of_velocities(x.jaw, y.jaw),
    }


PROTOCOL = Protocol(
    name="gdpo_paper",
    source="GDPO-Listener, supplement, section 1 (text only, no code)",
    corrections={
        "no_velocity_across_gaps": (
            "a velocity needs two frames in a row; `reference` joins the frames of a part as "
            "UniLS does, so that every pause adds a jump"
        ),
    },
    score=score,
)
