"""Faces as vertices and rotations, and what is measured on them: LVE, MHD, FDD, PDD, JDD."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rapport.rewards.metrics.clips import as_array, finite, same_count
from rapport.rewards.metrics.measures.speech import as_mask, mask_list

MM_PER_M = 1000.0
DEVIATION_SCALE = 100.0  # that of UniLS's FDD, PDD and JDD; it has no unit


@dataclass(frozen=True)
class Regions:
    """Vertex indices of the lips and of the upper face; a vertex listed twice counts twice.

    Published results depend on the lists and few come with them: say which ones yours were.

    Raises:
        ValueError: a list that is empty or holds something other than indices.
    """

    lip: tuple[int, ...]
    upper: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("lip", "upper"):
            region = getattr(self, name)
            indices = np.asarray(region)
            is_list = indices.ndim == 1 and indices.size > 0 and indices.dtype.kind in "iu"
            if not is_list or indices.min() < 0:
                raise ValueError(
                    f"region {name!r} must be a list of vertex indices, got {region!r:.80}"
                )
            object.__setattr__(self, name, tuple(int(i) for i in indices))

    @property
    def unique(self) -> Regions:
        """Each vertex once."""
        return Regions(tuple(sorted(set(self.lip))), tuple(sorted(set(self.upper))))

    @classmethod
    def from_unils(cls, path: str | Path) -> Regions:
        """UniLS's own lists, out of `core/models/modules/metrics.py` of its repository.

        That code is read, not run.

        Raises:
            ValueError: the file lacks the lists.
        """
        lists = {}
        for node in ast.parse(Path(path).read_text()).body:
            if not isinstance(node, ast.Assign):
                continue
            name = ast.unparse(node.targets[0])
            if name in ("lip_indices", "upper_indices"):
                lists[name] = ast.literal_eval(node.value)
        if len(lists) < 2:
            raise ValueError(
                f"{path} has no lip_indices and upper_indices: is it metrics.py of UniLS?"
            )
        return cls(lists["lip_indices"], lists["upper_indices"])


@dataclass(frozen=True, eq=False)
class Face:
    """One clip of a face.

    Args:
        vertices: (time, vertices, 3) metres, zero shape, the head's rotation set to zero.
        rot: (time, 3) the head's rotation, radians.
        jaw: (time, 1) or (time, 3) the jaw's rotation, radians.
        regions: which vertices LVE and FDD look at.

    Raises:
        ValueError: arrays that do not go together, values that are not finite, or a region of
            another topology.
    """

    vertices: np.ndarray
    rot: np.ndarray
    jaw: np.ndarray
    regions: Regions

    def __post_init__(self) -> None:
        # In their own precision: a minute of FLAME is 90 MB in float32.
        vertices = np.asarray(self.vertices)
        if vertices.ndim != 3 or vertices.shape[2] != 3 or 0 in vertices.shape:
            raise ValueError(f"vertices have shape {vertices.shape}, expected (time, vertices, 3)")
        object.__setattr__(self, "vertices", finite(vertices, "vertices"))
        for name in ("rot", "jaw"):
            x = as_array(getattr(self, name), name)
            if len(x) != len(vertices):
                raise ValueError(f"{name} has {len(x)} frames, the vertices {len(vertices)}")
            object.__setattr__(self, name, x)
        last = max(self.regions.lip + self.regions.upper)
        if last >= vertices.shape[1]:
            raise ValueError(
                f"a region has vertex {last}, the mesh only {vertices.shape[1]}: another topology?"
            )

    def __len__(self) -> int:
        return len(self.vertices)


def face_pairs(
    pred: Face | Sequence[Face], target: Face | Sequence[Face]
) -> Iterator[tuple[int, Face, Face]]:
    """(index, prediction, target) of each clip.

    One clip is in memory at a time where the sequences load them so.

    Raises:
        ValueError: they do not go together.
    """
    predicted = [pred] if isinstance(pred, Face) else pred
    recorded = [target] if isinstance(target, Face) else target
    for what, faces in (("pred", predicted), ("target", recorded)):
        if faces is None or not len(faces):
            raise ValueError(f"{what} has no clip")
    same_count(predicted, recorded, what="pred", like_what="target")
    for index, (x, y) in enumerate(zip(predicted, recorded, strict=True)):
        for what, face in (("pred", x), ("target", y)):
            if not isinstance(face, Face):
                raise ValueError(
                    f"{what} clip {index} is no rapport.rewards.metrics.measures.mesh.Face but a "
                    f"{type(face).__name__}"
                )
        x_shapes = (x.vertices.shape, x.rot.shape, x.jaw.shape)
        y_shapes = (y.vertices.shape, y.rot.shape, y.jaw.shape)
        if x_shapes != y_shapes:
            raise ValueError(
                f"clip {index}: pred has vertices {x.vertices.shape}, rot {x.rot.shape}, jaw "
                f"{x.jaw.shape}, target {y.vertices.shape}, {y.rot.shape}, {y.jaw.shape}"
            )
        if x.regions != y.regions:
            raise ValueError(
                f"clip {index}: pred and target have other regions, their LVE and FDD mean nothing"
            )
        yield index, x, y


def with_masks(
    pred: Face | Sequence[Face], target: Face | Sequence[Face], speech_mask: Any, people: int
) -> Iterator[tuple[Face, Face, np.ndarray]]:
    """(prediction, target, speech mask (people, time)) of each clip.

    Raises:
        ValueError: they do not go together.
    """
    masks = mask_list(speech_mask, 1 if isinstance(pred, Face) else len(pred or ()), people)
    for index, x, y in face_pairs(pred, target):
        yield x, y, as_mask(masks[index], frames=len(x), people=people, clip=index)


def vertex_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distances in mm, (time, vertices), of vertices (time, vertices, 3) in metres."""
    apart = np.subtract(x, y, dtype=np.float64)
    # Of axes so short `np.linalg.norm` takes twice as long.
    distances: np.ndarray = MM_PER_M * np.sqrt(np.einsum("tvk,tvk->tv", apart, apart))
    return distances


def lve_rms(distances: np.ndarray) -> float:
    """UniLS's LVE, mm: root mean square over frames of the largest distance of a lip vertex.

    The root of torchmetrics' `lip_vertex_error`. `distances`: (time, lip vertices).
    """
    return float(np.sqrt(np.mean(distances.max(axis=1) ** 2)))


def lve(distances: np.ndarray) -> float:
    """LVE as GDPO-Listener words it, mm: mean over frames of the largest lip distance."""
    return float(distances.max(axis=1).mean())


def mhd_rms(distances: np.ndarray) -> float:
    """UniLS's MHD, mm: root mean square over frames and vertices. `distances`: (time, vertices)."""
    return float(np.sqrt(np.mean(distances**2)))


def mhd(distances: np.ndarray) -> float:
    """MHD as its name says, mm: mean distance over frames and vertices."""
    return float(distances.mean())


def deviation(x: np.ndarray, y: np.ndarray) -> float:
    """100 times the mean over channels of |std_t x - std_t y|, ddof 1, of (time, ...) arrays.

    FDD, PDD and JDD are this, of other things.

    Raises:
        ValueError: fewer than 2 frames.
    """
    _require_two_frames(x)
    std_x = np.std(x, axis=0, ddof=1, dtype=np.float64)
    std_y = np.std(y, axis=0, ddof=1, dtype=np.float64)
    return DEVIATION_SCALE * float(np.abs(std_x - std_y).mean())


def fdd_of_sums(x: np.ndarray, y: np.ndarray) -> float:
    """UniLS's FDD: `deviation` of x + y + z of each vertex in mm.

    A vertex that moves along (1, -1, 0) does not move for it. Arrays: (time, upper vertices, 3) in
    metres.
    """
    sums_x = np.asarray(MM_PER_M * np.sum(x, axis=-1, dtype=np.float64))
    sums_y = np.asarray(MM_PER_M * np.sum(y, axis=-1, dtype=np.float64))
    return deviation(sums_x, sums_y)


def fdd(x: np.ndarray, y: np.ndarray) -> float:
    """100 times the mean over vertices of the difference of how far they stray, in mm.

    How far a vertex strays is the root of its variances along x, y and z added. Arrays: (time,
    upper vertices, 3) in metres.

    Raises:
        ValueError: fewer than 2 frames.
    """
    _require_two_frames(x)
    stray_x = MM_PER_M * np.sqrt(np.var(x, axis=0, ddof=1, dtype=np.float64).sum(axis=-1))
    stray_y = MM_PER_M * np.sqrt(np.var(y, axis=0, ddof=1, dtype=np.float64).sum(axis=-1))
    return DEVIATION_SCALE * float(np.abs(stray_x - stray_y).mean())


def _require_two_frames(x: np.ndarray) -> None:
    if len(x) < 2:
        raise ValueError(f"a deviation over time needs at least 2 frames, got {len(x)}")
