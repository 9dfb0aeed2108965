"""Motion as vertices of the configured head, for metrics on meshes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rapport.log import logger
from rapport.policies.head.asset import HeadAsset, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.landmarks import face_regions
from rapport.policies.head.settings import HeadConfig
from rapport.policies.motion import Motion
from rapport.rewards.metrics.measures.mesh import Face, Regions

PROTOCOLS = {"unils": 1, "gdpo_paper": 2}  # whose speech masks: of the actor, or of both
POSE = ("rot", "neck", "trans")  # of the head, which is no motion of the face
BATCH = 256  # frames at once: the skinning of 5,000 vertices takes 60 MB


@dataclass(frozen=True, eq=False)
class Faces:
    """Motion as vertices, where the head is and how it is turned apart.

    Args:
        head: the FLAME layer.
        regions: of the face.
        used: the vertices of the regions, sorted.
    """

    head: FlameHead
    regions: Regions
    used: np.ndarray

    def __call__(self, motions: Sequence[Motion], *, whole: bool, lids: bool = True) -> list[Face]:
        """The face of each motion.

        Args:
            motions: (time, dim), all of one layout.
            whole: all vertices, or a fifth of the work: only those of the regions.
            lids: false = the lids stay open, whatever the motion says.
        """
        layout = motions[0].layout
        still = np.concatenate([motion.values for motion in motions])
        for name in layout.names:
            if name in POSE or (name == "eyelid" and not lids):
                still[:, layout.columns(name)] = 0
        turning = next(name for name in ("rot", "neck") if name in layout.names)
        vertices = np.concatenate(
            [
                self.head.vertices_of(
                    Motion(still[first : first + BATCH], layout),
                    vertices=None if whole else self.used,
                )
                for first in range(0, len(still), BATCH)
            ]
        )
        regions = self.regions
        if not whole:
            parts = (regions.lip, regions.upper)
            regions = Regions(*(tuple(np.searchsorted(self.used, part)) for part in parts))
        ends = np.cumsum([len(motion) for motion in motions])[:-1]
        return [
            Face(part, motion.group(turning), motion.group("jaw"), regions=regions)
            for part, motion in zip(np.split(vertices, ends), motions, strict=True)
        ]


def faces_of(config: HeadConfig, topology: str, device: str = "cpu") -> Faces | None:
    """The configured head, if motion of this topology means something on it.

    Args:
        config: of the head.
        topology: of the motion.
        device: that computes vertices.
    """
    asset: HeadAsset = load_head(config.path, config.topology)
    if asset.topology != topology or not asset.arkit:
        logger.info(
            f"[judge] no vertices of {topology} motion on the {asset.topology} head: LVE, MHD, "
            "FDD, PDD, JDD are left out; give head.path=FILE"
        )
        return None
    regions = face_regions(asset)
    used = np.unique(np.concatenate(list(regions.values())))
    lip, upper = (tuple(regions[name].tolist()) for name in ("lip", "upper"))
    return Faces(FlameHead(asset).to(device), Regions(lip, upper), used)
