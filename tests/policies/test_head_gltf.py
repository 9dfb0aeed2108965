"""GLB files, parsed back by a reader of our own: they are whole, and played by numpy the vertices
are the head's.
"""

import io
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from rapport.pipeline.data.synthetic.figures import LAYOUT
from rapport.policies.head.arkit import EXPRESSIONS, NAMES, ArkitRig, arkit_layout
from rapport.policies.head.asset import TopologyError, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.gltf import JOINTS, write_glb
from rapport.policies.motion import Layout, LayoutError, Motion

NUMPY = {5126: np.float32, 5125: np.uint32, 5121: np.uint8}
COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
WIDE = Layout(tuple((n, 100 if n == "expr" else w) for n, w in LAYOUT.groups), 25, "builtin")


class Glb:
    """A file by the specification's layout; every accessor is checked as it is read."""

    def __init__(self, path):
        data = path.read_bytes()
        magic, version, length = struct.unpack_from("<4sII", data)
        assert (magic, version, length) == (b"glTF", 2, len(data))
        size, kind = struct.unpack_from("<I4s", data, 12)
        assert kind == b"JSON" and size % 4 == 0
        self.json = json.loads(data[20 : 20 + size])
        begin = 20 + size
        length, kind = struct.unpack_from("<I4s", data, begin)
        assert kind == b"BIN\0" and length % 4 == 0 and begin + 8 + length == len(data)
        self.buffer = data[begin + 8 :]
        assert 0 <= length - self.json["buffers"][0]["byteLength"] < 4

    def bytes_of(self, number):
        view = self.json["bufferViews"][number]
        begin, length = view["byteOffset"], view["byteLength"]
        assert begin % 4 == 0 and begin + length <= self.json["buffers"][0]["byteLength"]
        return self.buffer[begin : begin + length]

    def array(self, number):
        accessor = self.json["accessors"][number]
        values = np.frombuffer(
            self.bytes_of(accessor["bufferView"]), NUMPY[accessor["componentType"]]
        )
        values = values.reshape(accessor["count"], COLUMNS[accessor["type"]])
        np.testing.assert_array_equal(values.min(axis=0), np.array(accessor["min"], values.dtype))
        np.testing.assert_array_equal(values.max(axis=0), np.array(accessor["max"], values.dtype))
        return values

    @property
    def primitive(self):
        return self.json["meshes"][0]["primitives"][0]

    @property
    def names(self):
        return self.json["meshes"][0]["extras"]["targetNames"]

    def attribute(self, name):
        return self.array(self.primitive["attributes"][name])

    def play(self):
        """Times (time,) and vertices (time, V, 3), as a viewer works them out at the keys."""
        (animation,) = self.json["animations"]
        nodes = self.json["nodes"]
        times, curves = None, {}
        for channel in animation["channels"]:
            sampler = animation["samplers"][channel["sampler"]]
            times = self.array(sampler["input"])[:, 0]
            target = channel["target"]
            curves[target["node"], target["path"]] = self.array(sampler["output"])
        face = next(number for number, node in enumerate(nodes) if "mesh" in node)
        weights = curves[face, "weights"].reshape(len(times), -1)
        ways = np.stack([self.array(t["POSITION"]) for t in self.primitive["targets"]])
        points = self.attribute("POSITION") + np.einsum("tn,nvc->tvc", weights, ways)
        skin = self.json["skins"][nodes[face]["skin"]]
        inverse = self.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
        world = self.world(curves, len(times))
        joints = np.stack([world[joint] for joint in skin["joints"]], axis=1) @ inverse
        mixed = np.zeros((len(times), points.shape[1], 4, 4))
        used, shares = self.attribute("JOINTS_0"), self.attribute("WEIGHTS_0")
        for slot in range(4):
            mixed += shares[:, slot, None, None] * joints[:, used[:, slot]]
        return times, np.einsum("tvij,tvj->tvi", mixed[..., :3, :3], points) + mixed[..., :3, 3]

    def world(self, curves, count):
        """Transforms (time, 4, 4) of all nodes below the scene."""
        nodes, found = self.json["nodes"], {}

        def visit(number, parent):
            node = nodes[number]
            own = np.tile(np.eye(4), (count, 1, 1))
            if (number, "rotation") in curves:
                own[:, :3, :3] = Rotation.from_quat(curves[number, "rotation"]).as_matrix()
            place = curves.get((number, "translation"), node.get("translation", [0, 0, 0]))
            own[:, :3, 3] = place
            found[number] = parent @ own
            for child in node.get("children", []):
                visit(child, found[number])

        for number in self.json["scenes"][0]["nodes"]:
            visit(number, np.eye(4))
        return found


@pytest.fixture(scope="module")
def head():
    return load_head()


@pytest.fixture(scope="module")
def motion(head):
    """All groups move; the expression is one that ARKit's weights can say."""
    rng = np.random.default_rng(0)
    weights = np.zeros((30, 61))
    for name in rng.choice(EXPRESSIONS, 12, replace=False):
        weights[:, NAMES.index(name)] = 0.5 * rng.random(30)
    expr = ArkitRig(head).motion(Motion(weights, arkit_layout(25)), WIDE).group("expr")
    groups = {"expr": expr, "eyelid": rng.random((30, 2))}
    groups["jaw"] = rng.normal(size=(30, 3)) * 0.05 + (0.15, 0, 0)
    for name in ("neck", "rot", "eyepose"):
        groups[name] = 0.25 * rng.normal(size=(30, WIDE.width(name)))
    groups["trans"] = 0.02 * rng.normal(size=(30, 3))
    return Motion(np.concatenate([groups[name] for name in WIDE.names], axis=1), WIDE)


@pytest.fixture(scope="module")
def glb(head, motion, tmp_path_factory):
    path = tmp_path_factory.mktemp("glb") / "head.glb"
    write_glb(path, motion, head)
    return Glb(path)


def test_numpy_plays_the_heads_vertices_at_the_motions_times(glb, head, motion):
    times, vertices = glb.play()
    np.testing.assert_allclose(times, np.arange(30) / 25, atol=1e-6)
    error = np.linalg.norm(vertices - FlameHead(head).vertices_of(motion), axis=2)
    assert error.max() < 2e-5  # metres; what remains are weights to 1e-5 and float32


def test_a_synthetic_listener_is_half_a_millimetre_off_at_most(head, tiny_corpus, tmp_path):
    listener = next(tiny_corpus.clips("train")).listener
    write_glb(tmp_path / "head.glb", listener, head)
    _, vertices = Glb(tmp_path / "head.glb").play()
    error = np.linalg.norm(vertices - FlameHead(head).vertices_of(listener), axis=2)
    assert error.max() < 6e-4 and np.sqrt((error**2).mean()) < 1e-4


def test_an_identity_moves_with_its_own_joints(head, motion, tmp_path):
    shape = np.array([1.0, -0.8, 0.5])
    write_glb(tmp_path / "head.glb", motion, head, shape)
    _, vertices = Glb(tmp_path / "head.glb").play()
    wanted = FlameHead(head).vertices_of(motion, shape)
    assert np.linalg.norm(vertices - wanted, axis=2).max() < 2e-5


def test_targets_are_arkits_by_name_and_show_what_the_head_shows(glb, head):
    arkit = [name for name in glb.names if not name.startswith("corrective_")]
    assert arkit == [name for name in NAMES if name != "tongueOut"]
    assert len(glb.names) == len(glb.primitive["targets"]) == len(glb.json["meshes"][0]["weights"])
    weights = np.zeros((1, 61))
    weights[0, NAMES.index("jawOpen")] = 1
    opened = ArkitRig(head).motion(Motion(weights, arkit_layout(25)), WIDE)
    way = FlameHead(head).vertices_of(opened)[0] - head.v_template
    target = glb.primitive["targets"][glb.names.index("jawOpen")]
    np.testing.assert_allclose(glb.array(target["POSITION"]), way, atol=1e-6)


def test_the_file_is_as_the_specification_wants_it(glb, head):
    for number in range(len(glb.json["accessors"])):
        assert np.isfinite(glb.array(number)).all()
    assert [node["name"] for node in glb.json["nodes"]] == [*JOINTS, "face"]
    indices = glb.array(glb.primitive["indices"])
    np.testing.assert_array_equal(indices.reshape(-1, 3), head.faces)
    np.testing.assert_allclose(np.linalg.norm(glb.attribute("NORMAL"), axis=1), 1, atol=1e-5)
    shares = glb.attribute("WEIGHTS_0")
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert not glb.attribute("JOINTS_0")[shares == 0].any()
    for channel in glb.json["animations"][0]["channels"]:
        sampler = glb.json["animations"][0]["samplers"][channel["sampler"]]
        keys = glb.json["accessors"][sampler["input"]]["count"]
        values = glb.json["accessors"][sampler["output"]]["count"]
        each = len(glb.names) if channel["target"]["path"] == "weights" else 1
        assert (keys, values) == (30, 30 * each)
        if channel["target"]["path"] == "rotation":
            turns = glb.array(sampler["output"])
            np.testing.assert_allclose(np.linalg.norm(turns, axis=1), 1, atol=1e-6)


def test_brows_are_a_picture(glb, head):
    (image,) = glb.json["images"]
    picture = np.asarray(Image.open(io.BytesIO(glb.bytes_of(image["bufferView"]))))
    assert picture.shape == head.texture.shape and picture[0].min() == 255
    light = ((picture / 255 + 0.055) / 1.055) ** 2.4
    np.testing.assert_allclose(light, 1 - head.texture, atol=0.01)


def test_a_flame_head_moves_by_pose_and_jaw_with_all_its_correctives(head, motion, tmp_path):
    posedirs = 0.01 * np.random.default_rng(0).normal(size=head.posedirs.shape).astype(np.float32)
    flame = replace(
        head, topology="flame2020", arkit={}, eyelids=None, posedirs=posedirs, uv=None, texture=None
    )
    groups = {name: motion.group(name) for name in ("rot", "neck", "jaw")}
    layout = Layout(tuple((name, 3) for name in groups), 30, "flame2020")
    moved = Motion(np.concatenate(list(groups.values()), axis=1), layout)
    write_glb(tmp_path / "head.glb", moved, flame)
    glb = Glb(tmp_path / "head.glb")
    times, vertices = glb.play()
    assert times[-1] == pytest.approx(29 / 30)
    assert sum(name.startswith("corrective_") for name in glb.names) == 18
    error = np.linalg.norm(vertices - FlameHead(flame).vertices_of(moved), axis=2)
    assert error.max() < 2e-5 and "images" not in glb.json


def test_other_heads_and_empty_motions_are_refused(head, motion, tmp_path):
    flame = Motion(np.zeros((2, 50)), Layout((("expr", 50),), 25, "flame2020"))
    with pytest.raises(TopologyError, match="load the head that the motion is of"):
        write_glb(tmp_path / "head.glb", flame, head)
    with pytest.raises(LayoutError, match="no frames"):
        write_glb(tmp_path / "head.glb", motion.window(0, 0), head)
    assert not (tmp_path / "head.glb").exists()
