"""Protocol `unils`: LVE, MHD, FDD, PDD, JDD, speaking and listening apart (Chu et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        pred, target: one `rapport.rewards.metrics.measures.mesh.Face` a clip, which holds vertices
            (time, V, 3), rotations and the lists of lip and upper-face vertices; see
            `Regions.from_unils` for the reference's lists.
        speech_mask: (time,) of each clip, true where the person shown speaks. Listening is the
            rest.

    LVE and MHD are mm; FDD, PDD and JDD are 100 times mm and radians. The frames of a part are
    taken as if they followed each other. A clip with fewer than 2 frames of a part is left out of
    its means; a part that no clip has is left out of the result."""
    require_variant(variant)
    refuse("unils", partner=partner, neighbours=neighbours)
    corrected = variant == "corrected"
    values: dict[str, list[float]] = {}
    for x, y, (speaking,) in with_masks(pred, target, speech_mask, people=1):
        for part, frames in (("speak", speaking), ("listen", ~speaking)):
            if frames.sum() > 1:
                for name, value in _part(x, y, frames, part == "speak", corrected).items():
                    values.setdefault(f"{name}_{part}", []).append(value)
    return {name: float(np.mean(given)) for name, given in values.items()}


def _part(
    x: Face, y: Face, frames: np.ndarray, distances: bool, corrected: bool
) -> dict[str, float]:
    regions = x.regions.unique if corrected else x.regions
    upper = list(regions.upper)
    scores = {}
    if distances:
        apart = vertex_distances(x.vertices[frames], y.vertices[frames])
        scores["LVE"] = (lve if corrected else lve_rms)(apart[:, list(regions.lip)])
        scores["MHD"] = (mhd if corrected else mhd_rms)(apart)
    scores["FDD"] = (fdd if corrected else fdd_of_sums)(
        x.vertices[frames][:, upper], y.vertices[frames][:, upper]
    )
    scores["PDD"] = deviation(x.rot[frames], y.rot[frames])
    scores["JDD"] = deviation(x.jaw[frames], y.jaw[frames])
    return scores


PROTOCOL = Protocol(
    name="unils",
    source="xg-chu/UniLS: core/models/modules/metrics.py, core/trainer/inferencer.py (Chu et al., 2025)",
    corrections={
        "mean_lip_distance": "LVE is the mean over frames of the largest lip distance, not the root of the mean square",
        "mean_head_distance": "MHD is the mean distance that its name says, not the root of the mean square",
        "fdd_in_all_directions": "FDD compares how far a vertex spreads in space, not the standard deviation of "
        "x + y + z, which is 0 for motion along (1, -1, 0)",
        "unique_vertices": "a vertex listed twice in a region counts once",
    },
    score=score,
)
