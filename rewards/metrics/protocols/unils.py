"""Protocol `unils`: LVE, MHD, FDD, PDD, JDD, speaking and listening apart.

Source: Chu et al. 2025.
"""

from __future__ import annotations

import numpy as np

from rapport.rewards.metrics.measures.mesh import (
    Face,
    deviation,
    fdd,
    fdd_of_sums,
    lve,
    lve_rms,
    mhd,
    mhd_rms,
    vertex_distances,
    with_masks,
)
from rapport.rewards.metrics.protocols.protocol import Inputs, Protocol


def score(inputs: Inputs) -> dict[str, float]:
    """LVE, MHD, FDD, PDD, JDD with the suffix `_speak`; FDD, PDD, JDD with the suffix `_listen`.

    LVE and MHD are mm; FDD, PDD and JDD are 100 times mm and radians. The frames of a part are
    taken as if they followed each other. A clip with fewer than 2 frames of a part is left out of
    its means; a part that no clip has is left out of the result.

    Args:
        inputs: `pred`, `target`: one `rapport.rewards.metrics.measures.mesh.Face` a clip, which
            holds vertices (time, V, 3), rotations and the lists of lip and upper-face vertices; see
            `Regions.from_unils` for the reference's lists. `speech_mask`: (time,) of each clip,
            true where the person shown speaks. Listening is the rest.

    Raises:
        ValueError: clips and masks that do not go together.
    """
    inputs.refuse("unils", "partner", "neighbours")
    values_by_name: dict[str, list[float]] = {}
    for x, y, (speaks,) in with_masks(inputs.pred, inputs.target, inputs.speech_mask, people=1):
        for part, frames in (("speak", speaks), ("listen", ~speaks)):
            if frames.sum() < 2:
                continue
            scores: dict[str, float] = {}
            if part == "speak":
                scores |= _distances(x, y, frames, corrected=inputs.is_corrected)
            scores |= _deviations(x, y, frames, corrected=inputs.is_corrected)
            for name, value in scores.items():
                values_by_name.setdefault(f"{name}_{part}", []).append(value)
    return {name: float(np.mean(values)) for name, values in values_by_name.items()}


def _distances(x: Face, y: Face, frames: np.ndarray, corrected: bool) -> dict[str, float]:
    regions = x.regions.unique if corrected else x.regions
    apart = vertex_distances(x.vertices[frames], y.vertices[frames])
    lips = apart[:, list(regions.lip)]
    if corrected:
        return {"LVE": lve(lips), "MHD": mhd(apart)}
    return {"LVE": lve_rms(lips), "MHD": mhd_rms(apart)}


def _deviations(x: Face, y: Face, frames: np.ndarray, corrected: bool) -> dict[str, float]:
    regions = x.regions.unique if corrected else x.regions
    upper = list(regions.upper)
    face_deviation = fdd if corrected else fdd_of_sums
    return {
        "FDD": face_deviation(x.vertices[frames][:, upper], y.vertices[frames][:, upper]),
        "PDD": deviation(x.rot[frames], y.rot[frames]),
        "JDD": deviation(x.jaw[frames], y.jaw[frames]),
    }


PROTOCOL = Protocol(
    name="unils",
    source=(
        "xg-chu/UniLS: core/models/modules/metrics.py, core/trainer/inferencer.py "
        "(Chu et al., 2025)"
    ),
    corrections={
        "mean_lip_distance": (
            "LVE is the mean over frames of the largest lip distance, not the root of the mean "
            "square"
        ),
        "mean_head_distance": (
            "MHD is the mean distance that its name says, not the root of the mean square"
        ),
        "fdd_in_all_directions": (
            "FDD compares how far a vertex spreads in space, not the standard deviation of "
            "x + y + z, which is 0 for motion along (1, -1, 0)"
        ),
        "unique_vertices": "a vertex listed twice in a region counts once",
    },
    score=score,
)
