"""Tracks of one face as trackers leave them in an npz, recognised by names and shapes.

| tracker | keys and columns |
| --- | --- |
| EMOCA, DECA | expcode: expr 50, posecode: rot 3, jaw 3 |
| VHAP | expr 100, rotation 3, jaw_pose 3, neck_pose 3, eyes_pose 6, translation 3 |
| SMIRK | expression_params 50, pose_params: rot 3, jaw_params 3, eyelid_params 2 |

Keys are those of radekd91/emoca: gdl_apps/EMOCA/utils/io.py, ShenhanQian/VHAP (GaussianAvatars'):
vhap/export_as_nerf_dataset.py and georgeretsi/smirk: src/smirk_encoder.py. Rotations are axis-angle
in radians. Identity, texture, camera and light stand beside them and are no motion. None of them
says at how many frames per second it was tracked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rapport.arrays import described
from rapport.pipeline.data.store import CorpusError
from rapport.policies.motion import Layout, Motion, Topology, require_radians

Groups = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Tracker:
    """How a tracker writes a track.

    Args:
        name: of the tracker.
        topology: of its coefficients.
        keys: key -> groups of its columns.
        optional: those of `keys` that a file may lack.
    """

    name: str
    topology: Topology
    keys: dict[str, Groups]
    optional: tuple[str, ...] = ()

    @property
    def needed(self) -> set[str]:
        """Keys by which its files are known."""
        return self.keys.keys() - set(self.optional)

    def __str__(self) -> str:
        widths = {key: sum(width for _, width in groups) for key, groups in self.keys.items()}
        return ", ".join(f"{key} (T, {width})" for key, width in widths.items())


TRACKERS = (
    Tracker(
        "EMOCA",
        "flame2020",
        {"expcode": (("expr", 50),), "posecode": (("rot", 3), ("jaw", 3))},
    ),
    Tracker(
        "VHAP",
        "flame2023",
        {
            "expr": (("expr", 100),),
            "rotation": (("rot", 3),),
            "neck_pose": (("neck", 3),),
            "jaw_pose": (("jaw", 3),),
            "eyes_pose": (("eyepose", 6),),
            "translation": (("trans", 3),),
        },
        optional=("neck_pose", "eyes_pose", "translation"),
    ),
    Tracker(
        "SMIRK",
        "flame2020",
        {
            "expression_params": (("expr", 50),),
            "pose_params": (("rot", 3),),
            "jaw_params": (("jaw", 3),),
            "eyelid_params": (("eyelid", 2),),
        },
        optional=("eyelid_params",),
    ),
)


def tracker_of(arrays: dict[str, np.ndarray]) -> Tracker | None:
    """The tracker that writes these keys; None where none does."""
    return next((known for known in TRACKERS if known.needed <= arrays.keys()), None)


def read_track(
    tracker: Tracker, arrays: dict[str, np.ndarray], path: Path, fps: float | None
) -> Motion:
    """The motion of a track, in the order of the tracker's keys.

    Args:
        tracker: that wrote it.
        arrays: of the file.
        path: of the file, for messages.
        fps: frames per second.

    Raises:
        CorpusError: other shapes, fewer than two frames, values that are not finite or no radians,
            or nobody says the rate; names the file.
    """
    keys = [key for key in tracker.keys if key in arrays]
    frames = max(len(arrays[key]) if arrays[key].ndim else 0 for key in keys)
    for key in keys:
        width = sum(width for _, width in tracker.keys[key])
        if arrays[key].shape != (frames, width):
            raise CorpusError(
                f"{path} has the keys of {tracker.name} in other shapes: {tracker} are needed, it "
                f"has {described(arrays)}"
            )
    if frames < 2:
        raise CorpusError(
            f"{path} holds {frames} frame of {tracker.name}: put all frames of a recording into "
            f"one npz, as {tracker}"
        )
    if fps is None:
        raise CorpusError(
            f"{path} is a track of {tracker.name}, which does not say its frame rate: give it, "
            "say --fps 25 (files.fps=25)"
        )
    groups = tuple(group for key in keys for group in tracker.keys[key])
    try:
        layout = Layout(groups, fps=fps, topology=tracker.topology)
        motion = Motion(np.concatenate([arrays[key] for key in keys], axis=1), layout)
        require_radians(motion)
    except (ValueError, TypeError) as error:
        raise CorpusError(f"{path} ({tracker.name}): {error}") from error
    return motion
