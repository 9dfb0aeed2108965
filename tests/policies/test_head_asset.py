"""Heads are read whole or refused: the committed asset, FLAME pickles as Python 2 wrote them, FLAME
2023 files.
"""

import pickle
import shutil
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from rapport.policies.head import asset as asset_module
from rapport.policies.head.asset import (
    BUILTIN_ASSET,
    BUILTIN_CHECKSUM,
    AssetError,
    TopologyError,
    load_head,
)
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.motion import Layout, Motion

V, F = 5023, 9860


@pytest.fixture(scope="module")
def builtin():
    return load_head()


@pytest.fixture(scope="module")
def flame_arrays(builtin):
    """The built-in head's numbers under FLAME's keys and shapes."""
    return {
        "v_template": builtin.v_template.astype(np.float64),
        "f": builtin.faces.astype(np.uint32),
        "shapedirs": np.concatenate([builtin.shapedirs, builtin.exprdirs], axis=2),
        "posedirs": np.moveaxis(builtin.posedirs, 0, 2).astype(np.float64),
        "J_regressor": builtin.joint_regressor.astype(np.float64),
        "kintree_table": np.array([[4294967295, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
        "weights": builtin.weights.astype(np.float64),
        "bs_style": "lbs",
    }


class Python2Pickler(pickle._Pickler):
    """Protocol 2 with bytes written as Python 2 wrote its strings."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_str(self, value):
        self.write(b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_str


def write_flame_2020(path: Path, arrays: dict, monkeypatch) -> Path:
    """A pickle like `generic_model.pkl`: chumpy shapedirs, an old scipy matrix, old numpy module
    names.
    """
    chumpy, csc = types.ModuleType("chumpy.ch"), types.ModuleType("scipy.sparse.csc")
    chumpy.Ch = type("Ch", (), {"__module__": "chumpy.ch"})
    csc.csc_matrix = type("csc_matrix", (), {"__module__": "scipy.sparse.csc"})
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    monkeypatch.setitem(sys.modules, "chumpy.ch", chumpy)
    monkeypatch.setitem(sys.modules, "scipy.sparse.csc", csc)
    shapedirs, regressor = chumpy.Ch(), csc.csc_matrix()
    shapedirs.__dict__.update(x=arrays["shapedirs"], _dirty_vars={"x"})
    matrix = sparse.csc_matrix(arrays["J_regressor"])
    regressor.__dict__.update(
        data=matrix.data,
        indices=matrix.indices,
        indptr=matrix.indptr,
        _shape=matrix.shape,
        maxprint=50,
    )
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(
            {**arrays, "shapedirs": shapedirs, "J_regressor": regressor}
        )
    path.write_bytes(
        path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    )
    for name in ("chumpy", "chumpy.ch", "scipy.sparse.csc"):
        monkeypatch.delitem(sys.modules, name)
    return path


def test_builtin_asset_is_the_committed_one(builtin):
    assert builtin.topology == "builtin"
    assert builtin.v_template.shape == (V, 3) and builtin.faces.shape == (F, 3)
    assert builtin.shapedirs.shape == (V, 3, 300) and builtin.exprdirs.shape == (V, 3, 100)
    assert builtin.posedirs.shape == (36, V, 3) and builtin.eyelids.shape == (2, V, 3)
    assert len(builtin.arkit) == 38 and all(c.shape == (100,) for c in builtin.arkit.values())
    np.testing.assert_allclose(builtin.weights.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(builtin.joint_regressor.sum(1), 1, atol=1e-5)


def test_eye_joints_are_the_eyeballs_centres_left_is_positive_x(builtin):
    for joint in (3, 4):
        eyeball = builtin.v_template[builtin.weights[:, joint] == 1]
        distance = np.linalg.norm(eyeball - builtin.joints[joint], axis=1)
        assert (
            len(eyeball) == 241 and distance.max() / distance.min() < 1.07
        )  # a sphere with a cornea
    assert builtin.joints[3, 0] > 0.02 and builtin.joints[4, 0] < -0.02


def test_expression_does_not_move_joints(builtin):
    assert np.abs(np.einsum("jv,vcn->jcn", builtin.joint_regressor, builtin.exprdirs)).max() < 1e-5


def test_damaged_asset_is_named(tmp_path):
    damaged = tmp_path / "head.npz"
    shutil.copy(BUILTIN_ASSET, damaged)
    with damaged.open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\0\0\0")
    with pytest.raises(AssetError, match="head.npz.*damaged"):
        asset_module._load_builtin(damaged, BUILTIN_CHECKSUM)


def test_arkit_shapes_add_up_and_unknown_ones_are_named(builtin):
    both = builtin.expr(mouthSmileLeft=0.5, jawForward=2.0)
    np.testing.assert_allclose(
        both,
        0.5 * builtin.arkit["mouthSmileLeft"] + 2 * builtin.arkit["jawForward"],
        rtol=1e-5,
        atol=1e-6,
    )
    assert not builtin.expr().any() and builtin.expr().shape == (100,)
    with pytest.raises(TopologyError, match="mouthSmirk"):
        builtin.expr(mouthSmirk=1.0)


def test_flame_2020_pickle_with_chumpy_reads_without_chumpy(
    tmp_path, flame_arrays, builtin, monkeypatch
):
    head = load_head(write_flame_2020(tmp_path / "generic_model.pkl", flame_arrays, monkeypatch))
    assert head.topology == "flame2020" and "chumpy" not in sys.modules
    np.testing.assert_array_equal(head.v_template, builtin.v_template)
    np.testing.assert_array_equal(head.shapedirs, builtin.shapedirs)
    np.testing.assert_array_equal(head.exprdirs, builtin.exprdirs)
    np.testing.assert_array_equal(head.posedirs, builtin.posedirs)
    np.testing.assert_array_equal(head.joint_regressor, builtin.joint_regressor)
    assert head.eyelids is None and head.arkit == {}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_small_pickles_of_every_protocol_read(tmp_path, protocol):
    path = tmp_path / "small.pkl"
    with path.open("wb") as file:
        pickle.dump({"weights": np.arange(3.0), "n": np.float64(2)}, file, protocol=protocol)
    np.testing.assert_array_equal(asset_module._read_pickle(path)["weights"], [0, 1, 2])


def test_pickle_that_would_run_something_is_refused_and_not_run(tmp_path):
    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "flame2020.pkl"
    path.write_bytes(pickle.dumps({"v_template": Touch()}))
    with pytest.raises(AssetError, match="refused to load"):
        load_head(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["npz", "pkl"])
def test_flame_2023_files_read_and_render(tmp_path, flame_arrays, suffix):
    path = tmp_path / f"flame2023.{suffix}"
    if suffix == "npz":
        np.savez(path, **flame_arrays)
    else:
        path.write_bytes(pickle.dumps(flame_arrays, protocol=4))
    head = load_head(path)
    assert head.topology == "flame2023"
    frames = Rasterizer(head, size=64).render(FlameHead(head)(torch.zeros(1, 100)).numpy())
    assert 0.2 < (frames != 28).any(-1).mean() < 0.6
    eyes = head.colors[head.weights[:, 3] > 0.5]
    assert len(np.unique(eyes, axis=0)) == 3, "pupil, iris and white are painted"


def test_topology_comes_from_the_name_or_the_caller_never_from_a_guess(tmp_path, flame_arrays):
    path = tmp_path / "model.npz"
    np.savez(path, **flame_arrays)
    with pytest.raises(TopologyError, match="pass topology="):
        load_head(path)
    assert load_head(path, topology="flame2020").topology == "flame2020"
    with pytest.raises(TopologyError, match="builtin"):
        load_head(path, topology="builtin")
    with pytest.raises(TopologyError, match="flame2023"):
        load_head(topology="flame2023")


def test_flame_has_no_eyelids_unless_given(tmp_path, flame_arrays, builtin):
    path, lids = tmp_path / "flame2020.npz", tmp_path / "eyelids.npy"
    np.savez(path, **flame_arrays)
    np.save(lids, builtin.eyelids)
    motion = Motion(np.ones((2, 2), np.float32), Layout((("eyelid", 2),), 25, "flame2020"))
    with pytest.raises(TopologyError, match="eyelids=FILE.npy"):
        FlameHead(load_head(path)).vertices_of(motion)
    closed = FlameHead(load_head(path, eyelids=lids)).vertices_of(motion)
    np.testing.assert_allclose(closed[0], builtin.v_template + builtin.eyelids.sum(0), atol=1e-6)


def test_files_that_are_no_flame_model_are_named(tmp_path, flame_arrays):
    lacking = {k: v for k, v in flame_arrays.items() if k != "weights"}
    np.savez(tmp_path / "flame2023_lacking.npz", **lacking)
    with pytest.raises(AssetError, match="weights"):
        load_head(tmp_path / "flame2023_lacking.npz")
    np.savez(
        tmp_path / "flame2023_short.npz",
        **{**flame_arrays, "shapedirs": flame_arrays["shapedirs"][..., :150]},
    )
    with pytest.raises(AssetError, match="300 shape"):
        load_head(tmp_path / "flame2023_short.npz")
    tree = np.array([[0, 0, 1, 2, 1], [0, 1, 2, 3, 4]])
    np.savez(tmp_path / "flame2023_tree.npz", **{**flame_arrays, "kintree_table": tree})
    with pytest.raises(AssetError, match="parents"):
        load_head(tmp_path / "flame2023_tree.npz")
    (tmp_path / "flame2020_text.pkl").write_text("not a pickle")
    with pytest.raises(AssetError, match="cannot be read"):
        load_head(tmp_path / "flame2020_text.pkl")


def test_arrays_that_do_not_fit_are_named(flame_arrays, tmp_path):
    np.savez(
        tmp_path / "flame2020.npz", **{**flame_arrays, "weights": flame_arrays["weights"][:100]}
    )
    with pytest.raises(AssetError, match=r"weights has shape \(100, 5\)"):
        load_head(tmp_path / "flame2020.npz")


@pytest.mark.parametrize("suffix", ["npz", "pkl"])
@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs", b"PK\x03\x04 cut", b"\x80\x04."]
)
def test_a_head_file_that_is_none_is_named_in_a_line(tmp_path, suffix, content):
    path = tmp_path / f"FLAME2020.{suffix}"
    path.write_bytes(content)
    with pytest.raises(AssetError, match=path.name) as caught:
        load_head(path)
    assert "allow_pickle" not in str(caught.value) and "\n" not in str(caught.value)


def test_objects_in_a_head_file_are_not_unpickled(tmp_path):
    path = tmp_path / "FLAME2020.npz"
    np.savez(path, v_template=np.array([None, {}]))
    with pytest.raises(AssetError, match="FLAME2020.npz holds Python objects.*could run code"):
        load_head(path)
    with pytest.raises(AssetError, match="nowhere2020.npz"):
        load_head(tmp_path / "nowhere2020.npz")
    with pytest.raises(AssetError, match="nowhere2020.pkl cannot be opened"):
        load_head(tmp_path / "nowhere2020.pkl")


def test_arrays_of_another_form_are_no_head(tmp_path, flame_arrays):
    path = tmp_path / "flame2020.npz"
    for key, array in (
        ("v_template", np.zeros(3)),
        ("f", np.array(["a", "b"])),
        ("kintree_table", np.zeros(5)),
        ("posedirs", np.zeros((3, 3))),
        ("f", np.zeros((0, 3))),
    ):
        np.savez(path, **{**flame_arrays, key: array})
        with pytest.raises(AssetError, match="flame2020.npz"):
            load_head(path)


def test_eyelids_that_cannot_be_read_are_named(tmp_path, flame_arrays):
    path = tmp_path / "flame2020.npz"
    np.savez(path, **flame_arrays)
    (tmp_path / "lids.npy").write_bytes(b"")
    with pytest.raises(AssetError, match=r"^eyelids: .*lids.npy is empty \(0 bytes\)"):
        load_head(path, eyelids=tmp_path / "lids.npy")
