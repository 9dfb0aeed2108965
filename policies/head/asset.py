"""Heads in FLAME's layout: the built-in CC0 head, or the FLAME 2020 / 2023 file a user gives.

The built-in head has FLAME's array shapes and vertex count but its own topology: no coefficient,
landmark index or mask of one head means anything on another. `HeadAsset.topology` says which head
it is.
"""

from __future__ import annotations

import copyreg
import hashlib
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from rapport.arrays import ArrayFileError, load_array, load_named
from rapport.policies.motion import LayoutError, Topology

BUILTIN_ASSET = Path(__file__).parent / "assets" / "builtin_head.npz"
BUILTIN_CHECKSUM = BUILTIN_ASSET.with_suffix(".sha256")
# Arrays of the built-in asset that are kept as they are in `HeadAsset`.
STORED_AS_IS = (
    "v_template",
    "faces",
    "weights",
    "joint_regressor",
    "colors",
    "eyelids",
    "uv",
    "texture",
)

# Parents of root, neck, jaw, left and right eye; FLAME's kintree_table.
PARENTS = (-1, 0, 1, 1, 1)
N_SHAPE = 300
N_EXPR = 100

# Linear albedo of the parts of a face, and how far iris and pupil reach from the gaze axis.
SKIN = (0.60, 0.47, 0.40)
SCLERA = (0.78, 0.78, 0.76)
IRIS = (0.10, 0.16, 0.20)
PUPIL = (0.01, 0.01, 0.01)
IRIS_ANGLE = np.radians(22.0)
PUPIL_ANGLE = np.radians(8.0)


class TopologyError(LayoutError):
    """Coefficients or an operation of one head were used on a head where they mean nothing."""


class AssetError(ValueError):
    """A head file is damaged, incomplete or not what it claims to be."""


@dataclass(frozen=True, eq=False)
class HeadAsset:
    """A head as arrays: metres, y up, z towards the viewer, +x the head's own left.

    All are float32 but for `faces`.

    Args:
        topology: what the coefficients mean.
        v_template: (V, 3) resting vertices.
        faces: (F, 3) int32, counter-clockwise from outside.
        shapedirs: (V, 3, 300) identity directions per standard deviation.
        exprdirs: (V, 3, 100) expression directions.
        posedirs: (36, V, 3) pose correctives on the entries of R - I of neck, jaw and both eyes,
            row-major.
        weights: (V, 5) skinning weights of root, neck, jaw, left and right eye.
        joint_regressor: (5, V) joints from shaped vertices.
        colors: (V, 3) linear albedo in [0, 1].
        eyelids: (2, V, 3) left and right lid closing at 1, or None (FLAME has none).
        uv: (V, 2) in [0, 1], outside = untextured, or None.
        texture: (height, width) darkness in [0, 1] laid over the albedo (brows), row 0 at v = 0, or
            None.
        arkit: expression coefficients (100,) by ARKit shape name; empty where nobody has fitted
            them. Blinks, gaze and jaw opening are not among them: those are eyelids and joints.
    """

    topology: Topology
    v_template: np.ndarray
    faces: np.ndarray
    shapedirs: np.ndarray
    exprdirs: np.ndarray
    posedirs: np.ndarray
    weights: np.ndarray
    joint_regressor: np.ndarray
    colors: np.ndarray
    eyelids: np.ndarray | None = None
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None
    arkit: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.v_template)
        expected = {
            "v_template": (count, 3),
            "faces": (len(self.faces), 3),
            "shapedirs": (count, 3, N_SHAPE),
            "exprdirs": (count, 3, N_EXPR),
            "posedirs": (36, count, 3),
            "weights": (count, 5),
            "joint_regressor": (5, count),
            "colors": (count, 3),
            "eyelids": (2, count, 3),
            "uv": (count, 2),
        }
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise AssetError(f"head asset: {name} has shape {array.shape}, expected {shape}")
        if self.faces.min() < 0 or self.faces.max() >= count:
            raise AssetError(f"head asset: faces point outside the {count} vertices")

    @property
    def joints(self) -> np.ndarray:
        """Resting joint positions, (5, 3) metres."""
        positions: np.ndarray = self.joint_regressor @ self.v_template
        return positions

    def expr(self, **shapes: float) -> np.ndarray:
        """Expression coefficients (100,) of weighted ARKit shapes.

        Args:
            shapes: weights by name, e.g. `expr(mouthSmileLeft=0.8)`.

        Raises:
            TopologyError: the head has no ARKit table, or lacks one of the shapes.
        """
        missing = [name for name in shapes if name not in self.arkit]
        if missing:
            known = ", ".join(sorted(self.arkit))
            known = known or f"none: nobody has fitted ARKit shapes to {self.topology}"
            raise TopologyError(f"this head has no ARKit shape {missing}; it has {known}")
        coefficients: np.ndarray = np.zeros(N_EXPR, np.float32)
        for name, weight in shapes.items():
            coefficients = coefficients + np.float32(weight) * self.arkit[name]
        return coefficients


def load_head(
    path: str | Path | None = None,
    topology: Topology | None = None,
    eyelids: str | Path | None = None,
) -> HeadAsset:
    """The built-in head (no path), or a FLAME head from its `.pkl` or `.npz`.

    FLAME 2020 and 2023 files have the same keys and shapes, so nothing inside says which it is. The
    file name does: `2023` in it means flame2023; `2020` or `generic_model` means flame2020; for any
    other name, or to overrule the name, pass `topology`.

    Args:
        path: a FLAME model file; pickles are read without running anything found in them.
        topology: "flame2020" or "flame2023".
        eyelids: `.npy` of (2, 5023, 3), left and right lid directions in metres, as fitted by
            trackers with blinks. Without it a FLAME head cannot show motion that has an `eyelid`
            group.

    Raises:
        AssetError: the file is damaged or not a FLAME model.
        TopologyError: the topology cannot be told.
    """
    if path is None:
        if topology not in (None, "builtin") or eyelids is not None:
            raise TopologyError(
                f"the built-in head has topology 'builtin' and its own eyelids, not {topology!r}"
            )
        return _load_builtin()
    path = Path(path)
    topology = topology or _topology_of(path)
    if topology not in ("flame2020", "flame2023"):
        raise TopologyError(
            f"{path} is a FLAME file: topology must be flame2020 or flame2023, not {topology!r}"
        )
    directions = None if eyelids is None else _read_eyelids(Path(eyelids))
    return _from_flame(path, topology, directions)


def _load_builtin(path: Path = BUILTIN_ASSET, checksum: Path = BUILTIN_CHECKSUM) -> HeadAsset:
    """Read the committed asset, as `infra/head/build_builtin.py` writes it."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = checksum.read_text().split()[0]
    if digest != expected:
        raise AssetError(
            f"{path}: sha256 {digest[:12]} is not the recorded {expected[:12]}: the file is "
            "damaged (a Git LFS pointer, a cut download); restore it from git, or build it in a "
            "checkout by infra/head/build_builtin.py"
        )
    data = _read_npz(path)
    # Directions are int8 with one scale each.
    directions = data["directions"].T.astype(np.float32) * data["direction_scale"]
    directions = directions.reshape(-1, 3, N_SHAPE + N_EXPR)
    return HeadAsset(
        topology="builtin",
        shapedirs=directions[..., :N_SHAPE],
        exprdirs=directions[..., N_SHAPE:],
        posedirs=data["posedirs"].astype(np.float32),
        arkit=dict(zip(data["arkit_names"].tolist(), data["arkit"], strict=True)),
        **{name: data[name] for name in STORED_AS_IS},
    )


def _topology_of(path: Path) -> Topology:
    if "2023" in path.name:
        return "flame2023"
    if "2020" in path.name or "generic_model" in path.name:
        return "flame2020"
    raise TopologyError(
        f"{path}: FLAME 2020 and 2023 files look alike inside and this name does not say which "
        'it is; pass topology="flame2020" or "flame2023"'
    )


def _from_flame(path: Path, topology: Topology, eyelids: np.ndarray | None) -> HeadAsset:
    data = _read_npz(path) if path.suffix == ".npz" else _read_pickle(path)
    keys = ("v_template", "f", "shapedirs", "posedirs", "J_regressor", "kintree_table", "weights")
    missing = [key for key in keys if key not in data]
    if missing:
        has = sorted(map(str, data))
        raise AssetError(f"{path} is not a FLAME model: it lacks {missing}, it has {has}")
    try:
        return _flame_asset(data, topology, eyelids)
    except AssetError as error:
        raise AssetError(f"{path}: {error}") from error
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise AssetError(f"{path} is not a FLAME model: {error}") from error


def _flame_asset(data: dict[str, Any], topology: Topology, eyelids: np.ndarray | None) -> HeadAsset:
    parents = np.asarray(data["kintree_table"])[0, 1:].astype(np.int64).tolist()
    if parents != list(PARENTS[1:]):
        raise AssetError(f"joint parents {parents} are not FLAME's {list(PARENTS[1:])}")
    shapedirs = _array(data["shapedirs"])
    if shapedirs.ndim != 3 or shapedirs.shape[2] != N_SHAPE + N_EXPR:
        raise AssetError(
            f"shapedirs of shape {shapedirs.shape}, expected (V, 3, 400): 300 shape + 100 expr"
        )
    v_template = _array(data["v_template"])
    weights = _array(data["weights"])
    regressor = _array(data["J_regressor"])
    return HeadAsset(
        topology=topology,
        v_template=v_template,
        faces=np.ascontiguousarray(data["f"], dtype=np.int32),
        shapedirs=shapedirs[..., :N_SHAPE],
        exprdirs=shapedirs[..., N_SHAPE:],
        posedirs=np.ascontiguousarray(np.moveaxis(_array(data["posedirs"]), 2, 0)),
        weights=weights,
        joint_regressor=regressor,
        colors=_flame_colors(v_template, weights, regressor @ v_template),
        eyelids=None if eyelids is None else _array(eyelids),
    )


def _flame_colors(vertices: np.ndarray, weights: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Colours (V, 3), which FLAME files lack: skin, and eyes by the angle from the gaze axis."""
    colors = np.tile(np.asarray(SKIN, np.float32), (len(vertices), 1))
    for joint in (3, 4):
        eyeball = np.flatnonzero(weights[:, joint] > 0.5)
        ray = vertices[eyeball] - joints[joint]
        angle = np.arctan2(np.linalg.norm(ray[:, :2], axis=1), ray[:, 2])
        colors[eyeball] = SCLERA
        colors[eyeball[angle < IRIS_ANGLE]] = IRIS
        colors[eyeball[angle < PUPIL_ANGLE]] = PUPIL
    return colors


def _array(value: Any) -> np.ndarray:
    """Float32 array of a dense, sparse or chumpy array."""
    dense = value.dense() if isinstance(value, (_Chumpy, _SparseColumns)) else value
    return np.ascontiguousarray(dense, dtype=np.float32)


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        return dict(load_named(path))
    except ArrayFileError as error:
        raise AssetError(str(error)) from error


def _read_eyelids(path: Path) -> np.ndarray:
    try:
        return load_array(path)
    except ArrayFileError as error:
        raise AssetError(f"eyelids: {error}") from error


class _Chumpy:
    """Stands in for `chumpy.ch.Ch`, whose value is its attribute `x`.

    chumpy itself is never imported.
    """

    x: np.ndarray

    def dense(self) -> np.ndarray:
        return self.x


class _SparseColumns:
    """Stands in for `scipy.sparse.csc_matrix`, whose module has moved since FLAME was pickled."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    _shape: tuple[int, int]

    def dense(self) -> np.ndarray:
        columns = (self.data, self.indices, self.indptr)
        matrix: np.ndarray = sparse.csc_matrix(columns, shape=self._shape).toarray()
        return matrix


_RECONSTRUCT = np.array(0).__reduce__()[0]
_SCALAR = np.float64(0).__reduce__()[0]
# What protocols 0 and 1 of Python 2 build objects with; typeshed does not list it.
_RECONSTRUCTOR = copyreg._reconstructor  # type: ignore[attr-defined]
_ALLOWED = {
    ("chumpy.ch", "Ch"): _Chumpy,
    ("scipy.sparse.csc", "csc_matrix"): _SparseColumns,
    ("scipy.sparse._csc", "csc_matrix"): _SparseColumns,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("copy_reg", "_reconstructor"): _RECONSTRUCTOR,
    ("copyreg", "_reconstructor"): _RECONSTRUCTOR,
    ("__builtin__", "object"): object,
    ("builtins", "object"): object,
    ("__builtin__", "set"): set,
    ("builtins", "set"): set,
    ("_codecs", "encode"): str.encode,  # how Python 3 writes bytes in protocol 2
}


class _FlameUnpickler(pickle.Unpickler):
    """Reads the few classes FLAME files are made of; anything else is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise AssetError(f"refused to load {module}.{name}: FLAME files hold arrays only")
        return _ALLOWED[module, name]


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = _FlameUnpickler(file, fix_imports=False, encoding="latin1").load()
    except OSError as error:
        raise AssetError(f"{path} cannot be opened: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        why = " ".join(str(error).split())
        raise AssetError(f"{path} cannot be read as a FLAME pickle: {why}") from error
    if not isinstance(data, dict):
        raise AssetError(
            f"{path} is not a FLAME model: a {type(data).__name__} instead of a dict of arrays"
        )
    return data
