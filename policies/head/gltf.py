"""A head that moves as a binary glTF 2.0 file (.glb), which browsers, Blender and engines play.

The mesh is skinned to the head's five joints, and has a morph target for each of ARKit's shapes
that the head has, by ARKit's name. So the file plays by itself, and any source of ARKit's weights
can drive the head in it. The animation turns the joints by `rot`, `neck`, `jaw` and `eyepose`, and
moves the root by `trans`: its targets of jaw and eyes (`jawOpen`, `eyeLookInLeft`, ...) stay at 0,
as a joint turns on a circle and a target moves straight. Targets named `corrective_N` are the
head's pose correctives; their weights are what a rotation matrix has off the identity.

Khronos Group, "glTF 2.0 Specification", 2021.
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from rapport.files import atomic
from rapport.policies.head.arkit import BLINKS, EXPRESSIONS, NAMES, ArkitRig, arkit_layout
from rapport.policies.head.asset import N_EXPR, PARENTS, HeadAsset
from rapport.policies.head.flame import FlameHead
from rapport.policies.motion import Layout, LayoutError, Motion

JOINTS = ("root", "neck", "jaw", "leftEye", "rightEye")
FACE = len(JOINTS)  # the node of the mesh
SKINNED_BY = 4  # joints a vertex, as glTF has it
ROUGHNESS = 0.7

_MAGIC = b"glTF"
_VERSION = 2
# Numbers of the specification: component types, targets of buffer views, a mode of a sampler.
_COMPONENTS = {"float32": 5126, "uint32": 5125, "uint8": 5121}
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
_VERTICES = 34962
_INDICES = 34963
_CLAMPED = 33071
_LINEAR = 9729
_STILL = 1e-6  # metres: what moves no further does not move


def write_glb(
    path: str | Path, motion: Motion, asset: HeadAsset, shape: np.ndarray | None = None
) -> None:
    """Write a head and its motion.

    Expressions are shown as far as ARKit's weights can say them, see `ArkitRig.weights`; joints,
    blinks and place are as in the motion.

    Args:
        path: of the `.glb` file; it appears whole or not at all.
        motion: of this head, a frame at least.
        asset: the head.
        shape: (n,) identity, or None for the neutral head.

    Raises:
        TopologyError: the motion is of another head.
        LayoutError: the motion has no frame.
    """
    if not len(motion):
        raise LayoutError(f"a motion of no frames ({motion.layout}) cannot be written to {path}")
    rig = ArkitRig(asset)
    weights = rig.weights(motion)
    rest, targets = _arkit_targets(asset, rig, shape)
    curves = {name: _curve(weights, name) for name in targets}
    turns = _turns(motion)
    for number, curve in _correctives(asset, turns).items():
        targets[f"corrective_{number}"] = asset.posedirs[number]
        curves[f"corrective_{number}"] = curve
    joints = asset.joint_regressor @ rest

    document = _Document()
    document.json["scenes"] = [{"nodes": [0, FACE]}]
    document.json["nodes"] = _nodes(joints)
    document.json["skins"] = [_skin(document, joints)]
    document.json["materials"] = [_material(document, asset)]
    document.json["meshes"] = [_mesh(document, asset, rest=rest, targets=targets)]
    clip = _Clip(document, motion)
    clip.add(FACE, "weights", np.stack(list(curves.values()), axis=1))
    for joint, turn in turns.items():
        clip.add(joint, "rotation", Rotation.from_rotvec(turn).as_quat())
    if "trans" in motion.layout.names:
        clip.add(0, "translation", joints[0] + motion.group("trans"))
    document.json["animations"] = [clip.json]
    with atomic(Path(path)) as partial:
        partial.write_bytes(document.glb())


def _arkit_targets(
    asset: HeadAsset, rig: ArkitRig, shape: np.ndarray | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Vertices (V, 3) at rest, and how far each ARKit shape moves them at weight 1, (V, 3).

    Shapes that move nothing are left out.
    """
    alone = np.zeros((1 + len(NAMES), arkit_layout(1).dim))
    alone[1:, : len(NAMES)] = np.eye(len(NAMES))
    groups = [("expr", N_EXPR), ("jaw", 3), ("eyepose", 6)]
    if asset.eyelids is not None:
        groups.append(("eyelid", 2))
    shapes = rig.motion(Motion(alone, arkit_layout(1)), Layout(tuple(groups), 1, asset.topology))
    rest, *moved = FlameHead(asset).vertices_of(shapes, shape)
    ways = {name: vertices - rest for name, vertices in zip(NAMES, moved, strict=True)}
    return rest, {name: way for name, way in ways.items() if np.abs(way).max() > _STILL}


def _curve(weights: Motion, name: str) -> np.ndarray:
    """Weights (time,) of a target; 0 where joints do its work."""
    if name not in (*EXPRESSIONS, *BLINKS):
        return np.zeros(len(weights))
    column: np.ndarray = weights.group("expr")[:, NAMES.index(name)]
    return column


def _turns(motion: Motion) -> dict[int, np.ndarray]:
    """Joint -> axis-angle (time, 3), of those that the motion turns."""
    turns = {}
    for joint, name in enumerate(("rot", "neck", "jaw")):
        if name in motion.layout.names:
            turns[joint] = motion.group(name)
    if "eyepose" in motion.layout.names:
        turns[3] = motion.group("eyepose")[:, :3]
        turns[4] = motion.group("eyepose")[:, 3:]
    return turns


def _correctives(asset: HeadAsset, turns: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Weights (time,) of the head's pose correctives by their number, of those that it has.

    FLAME, Eq. 4: correctives 9 (j - 1) to 9 j - 1 follow the entries of R - I of joint j.
    """
    weights = {}
    for joint, turn in turns.items():
        if joint == 0:
            continue
        entries = (Rotation.from_rotvec(turn).as_matrix() - np.eye(3)).reshape(-1, 9)
        for entry in range(9):
            number = 9 * (joint - 1) + entry
            if asset.posedirs[number].any():
                weights[number] = entries[:, entry]
    return weights


def _nodes(joints: np.ndarray) -> list[dict[str, Any]]:
    """The joints (5, 3), each placed from its parent, and the face."""
    nodes: list[dict[str, Any]] = []
    for joint, (name, parent) in enumerate(zip(JOINTS, PARENTS, strict=True)):
        place = joints[joint] - (joints[parent] if parent >= 0 else 0)
        node = {"name": name, "translation": place.tolist()}
        children = [child for child, of in enumerate(PARENTS) if of == joint]
        nodes.append(node | ({"children": children} if children else {}))
    return [*nodes, {"name": "face", "mesh": 0, "skin": 0}]


def _skin(document: _Document, joints: np.ndarray) -> dict[str, Any]:
    matrices = np.tile(np.eye(4, dtype=np.float32), (len(joints), 1, 1))
    matrices[:, 3, :3] = -joints  # columns first: the translation is the last row
    inverse = document.add(matrices.reshape(-1, 16))
    return {"joints": list(range(len(joints))), "inverseBindMatrices": inverse, "skeleton": 0}


def _material(document: _Document, asset: HeadAsset) -> dict[str, Any]:
    """Vertex colours, darkened by the head's texture where it has one."""
    surface: dict[str, Any] = {"metallicFactor": 0, "roughnessFactor": ROUGHNESS}
    if asset.texture is not None and asset.uv is not None:
        surface["baseColorTexture"] = {"index": 0}
        document.add_picture(1 - asset.texture)
    return {"name": "skin", "doubleSided": True, "pbrMetallicRoughness": surface}


def _mesh(
    document: _Document, asset: HeadAsset, rest: np.ndarray, targets: dict[str, np.ndarray]
) -> dict[str, Any]:
    strongest = np.argsort(-asset.weights, axis=1)[:, :SKINNED_BY]
    weights = np.take_along_axis(asset.weights, strongest, axis=1)
    weights = weights / weights.sum(axis=1, keepdims=True)
    strongest[weights == 0] = 0  # as glTF wants it of joints without influence
    attributes = {
        "POSITION": rest,
        "NORMAL": _normals(rest, asset.faces),
        "COLOR_0": asset.colors,
        "JOINTS_0": strongest.astype(np.uint8),
        "WEIGHTS_0": weights,
    }
    if asset.uv is not None:
        attributes["TEXCOORD_0"] = asset.uv
    places = {name: document.add(array, _VERTICES) for name, array in attributes.items()}
    primitive = {
        "attributes": places,
        "indices": document.add(asset.faces.reshape(-1, 1).astype(np.uint32), _INDICES),
        "material": 0,
        "targets": [{"POSITION": document.add(way, _VERTICES)} for way in targets.values()],
    }
    # Where names of targets stand is not in the specification, but everybody's custom.
    return {
        "name": "face",
        "primitives": [primitive],
        "weights": [0.0] * len(targets),
        "extras": {"targetNames": list(targets)},
    }


def _normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals, (V, 3)."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    areas = np.cross(b - a, c - a)
    normals = np.zeros(vertices.shape)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], areas)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    towards_viewer = np.array([0.0, 0.0, 1.0])
    return np.where(length > 0, normals / np.where(length > 0, length, 1), towards_viewer)


class _Document:
    """A glTF document and its one buffer, whose parts begin at multiples of four bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.json: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "rapport"},
            "scene": 0,
            "accessors": [],
            "bufferViews": [],
        }

    def add(self, array: np.ndarray, target: int | None = None) -> int:
        """The accessor of an array (count, columns).

        Args:
            array: uint8 and uint32 are kept, all else becomes float32.
            target: what the buffer view is for, where the specification asks for it.
        """
        kept = array.dtype.name if array.dtype.name in _COMPONENTS else "float32"
        array = np.ascontiguousarray(array, kept)
        view: dict[str, Any] = {} if target is None else {"target": target}
        accessor = {
            "bufferView": self._add_view(array.tobytes(), view),
            "componentType": _COMPONENTS[kept],
            "count": len(array),
            "type": _TYPES[array.shape[1]],
            "min": array.min(axis=0).tolist(),
            "max": array.max(axis=0).tolist(),
        }
        self.json["accessors"].append(accessor)
        return len(self.json["accessors"]) - 1

    def add_picture(self, light: np.ndarray) -> None:
        """The document's texture: linear light (height, width) in [0, 1], as a PNG in sRGB."""
        low, high = light * 12.92, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
        pixels = np.round(255 * np.where(light <= 0.0031308, low, high)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        view = self._add_view(file.getvalue(), {})
        self.json["images"] = [{"mimeType": "image/png", "bufferView": view}]
        self.json["samplers"] = [
            # No mipmaps: they bleed over the seams of the texture.
            {"wrapS": _CLAMPED, "wrapT": _CLAMPED, "minFilter": _LINEAR}
        ]
        self.json["textures"] = [{"source": 0, "sampler": 0}]

    def _add_view(self, data: bytes, view: dict[str, Any]) -> int:
        self._buffer += b"\0" * (-len(self._buffer) % 4)
        place = {"buffer": 0, "byteOffset": len(self._buffer), "byteLength": len(data)}
        self._buffer += data
        self.json["bufferViews"].append(place | view)
        return len(self.json["bufferViews"]) - 1

    def glb(self) -> bytes:
        """The file: a header, the JSON chunk, the chunk of the buffer."""
        text = json.dumps(self.json | {"buffers": [{"byteLength": len(self._buffer)}]}).encode()
        chunks = b"".join(
            struct.pack("<I4s", len(data), kind) + data
            for data, kind in (
                (text + b" " * (-len(text) % 4), b"JSON"),
                (self._buffer + b"\0" * (-len(self._buffer) % 4), b"BIN\0"),
            )
        )
        return struct.pack("<4sII", _MAGIC, _VERSION, 12 + len(chunks)) + chunks


class _Clip:
    """An animation with a key at every frame of a motion.

    Args:
        document: that holds its numbers.
        motion: whose frames they are.
    """

    def __init__(self, document: _Document, motion: Motion) -> None:
        self._document = document
        seconds = np.arange(len(motion)) / motion.layout.fps
        self._times = document.add(seconds.reshape(-1, 1))
        self.json: dict[str, Any] = {"name": "motion", "samplers": [], "channels": []}

    def add(self, node: int, path: str, values: np.ndarray) -> None:
        """Move a node.

        Args:
            node: which.
            path: "weights", "rotation" (quaternions x, y, z, w) or "translation".
            values: (time, columns); weights of all targets.
        """
        if path == "weights":
            values = values.reshape(-1, 1)
        sampler = {"input": self._times, "output": self._document.add(values)}
        channel = {"sampler": len(self.json["samplers"]), "target": {"node": node, "path": path}}
        self.json["samplers"].append(sampler)
        self.json["channels"].append(channel)
