"""FLAME's forward model against a plain loop, and the properties a skinned head must have."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from rapport.policies.head.asset import PARENTS, TopologyError, load_head
from rapport.policies.head.flame import FlameHead, rotation_matrix
from rapport.policies.motion import Layout, Motion

WIDTHS = {"expr": 100, "jaw": 3, "neck": 3, "rot": 3, "eyepose": 6, "eyelid": 2, "shape": 300}


@pytest.fixture(scope="module")
def asset():
    return load_head()


@pytest.fixture(scope="module")
def head(asset):
    return FlameHead(asset, torch.float64)


def random_pose(batch, seed=0, **widths):
    rng = np.random.default_rng(seed)
    scale = {"expr": 0.5, "shape": 1.0, "eyelid": 0.5}
    return {
        name: torch.tensor(rng.normal(size=(batch, width)) * scale.get(name, 0.3))
        for name, width in (widths or WIDTHS).items()
    }


def reference(asset, pose):
    """One pose (of 1-D arrays) by homogeneous transforms and loops, as the paper writes it."""
    shaped = asset.v_template + asset.shapedirs @ pose["shape"] + asset.exprdirs @ pose["expr"]
    joints = asset.joint_regressor.astype(np.float64) @ shaped
    turns = [pose["rot"], pose["neck"], pose["jaw"], pose["eyepose"][:3], pose["eyepose"][3:]]
    rotations = [Rotation.from_rotvec(t).as_matrix() for t in turns]
    posed = shaped + np.einsum("l,v...l->v...", pose["eyelid"], np.moveaxis(asset.eyelids, 0, -1))
    entries = np.concatenate([(r - np.eye(3)).ravel() for r in rotations[1:]])
    for entry, direction in zip(entries, asset.posedirs, strict=True):
        posed = posed + entry * direction
    world = []
    for joint, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3] = rotations[joint]
        local[:3, 3] = joints[joint] - (joints[parent] if parent >= 0 else 0)
        world.append(world[parent] @ local if parent >= 0 else local)
    result = np.zeros_like(posed)
    for joint in range(5):
        unrest = np.eye(4)
        unrest[:3, 3] = -joints[joint]
        moved = np.column_stack([posed, np.ones(len(posed))]) @ (world[joint] @ unrest).T
        result += asset.weights[:, joint, None] * moved[:, :3]
    return result


def test_matches_the_paper_written_as_loops(asset, head):
    pose = random_pose(2)
    vertices = head(**pose).numpy()
    for i in range(2):
        np.testing.assert_allclose(
            vertices[i], reference(asset, {k: p[i].numpy() for k, p in pose.items()}), atol=1e-7
        )


def test_rest_pose_is_the_template(asset, head):
    np.testing.assert_allclose(head(torch.zeros(1, 50).double())[0], asset.v_template, atol=1e-7)


def test_rotation_matrix_is_rodrigues_from_tiny_to_beyond_a_turn():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(200, 3)) * np.logspace(-9, 1, 200)[:, None]
    np.testing.assert_allclose(
        rotation_matrix(torch.tensor(vectors)),
        Rotation.from_rotvec(vectors).as_matrix(),
        atol=1e-12,
    )


def test_rot_turns_the_whole_head_about_the_root_joint(asset, head):
    rot = torch.tensor([[0.4, -0.7, 0.2]]).double()
    turned = head(torch.zeros(1, 1).double(), rot=rot)[0].numpy()
    root = asset.joints[0].astype(np.float64)
    expected = Rotation.from_rotvec(rot[0].numpy()).apply(asset.v_template - root) + root
    np.testing.assert_allclose(turned, expected, atol=1e-7)


def test_rot_keeps_all_distances(head):
    pose = random_pose(1, seed=3, expr=50, jaw=3, neck=3)
    still, turned = head(**pose)[0], head(**pose, rot=torch.tensor([[1.0, 0.5, -0.3]]).double())[0]
    sample = torch.arange(0, len(still), 97)
    torch.testing.assert_close(torch.pdist(still[sample]), torch.pdist(turned[sample]))


def test_jaw_moves_the_lower_face_only(asset, head):
    opened = head(torch.zeros(1, 1).double(), jaw=torch.tensor([[0.3, 0, 0]]).double())[0]
    moved = (opened - head.v_template).norm(dim=1)
    assert moved[asset.v_template[:, 1] > asset.joints[3, 1]].max() < 2e-3, "nothing above the eyes"
    assert moved[asset.weights[:, 2] > 0.9].median() > 0.01


def test_expression_and_shape_are_linear_at_rest(head):
    a, b = random_pose(2, seed=4, expr=100)["expr"], random_pose(2, seed=5, expr=100)["expr"]
    rest = head.v_template
    torch.testing.assert_close(head(2 * a + b) - rest, 2 * (head(a) - rest) + (head(b) - rest))


def test_fewer_coefficients_are_the_first_ones(head):
    expr = random_pose(1, expr=50)["expr"]
    torch.testing.assert_close(head(expr), head(torch.nn.functional.pad(expr, (0, 50))))
    with pytest.raises(ValueError, match="101 coefficients for 100"):
        head(torch.zeros(1, 101).double())


def test_subset_of_vertices_equals_the_full_head(head):
    pose, chosen = random_pose(3), torch.tensor([4000, 17, 17, 5022])
    torch.testing.assert_close(head(**pose, vertices=chosen), head(**pose)[:, chosen])


def test_batch_equals_a_loop_and_one_shape_serves_it(head):
    pose = random_pose(4)
    pose["shape"] = pose["shape"][:1]
    alone = [
        head(**{k: p if k == "shape" else p[i : i + 1] for k, p in pose.items()}) for i in range(4)
    ]
    torch.testing.assert_close(head(**pose), torch.cat(alone))


def test_float32_agrees_with_float64(asset, head):
    pose = random_pose(2, seed=6)
    single = FlameHead(asset)(**{k: p.float() for k, p in pose.items()})
    assert single.dtype == torch.float32
    assert (single - head(**pose)).abs().max() < 2e-6  # metres


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_gradients(head, scale):
    pose = random_pose(1, expr=3, jaw=3, neck=3, rot=3, eyepose=6, eyelid=2, shape=2)
    inputs = [(scale * p).requires_grad_() for p in pose.values()]
    chosen = torch.tensor([10, 900, 2500, 4600, 5000])
    function = lambda *args: head(**dict(zip(pose, args, strict=True)), vertices=chosen)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs, eps=1e-5, atol=1e-7)


def test_vertices_of_uses_the_groups_present_in_any_order(asset):
    head = FlameHead(asset)
    rng = np.random.default_rng(7)
    layout = Layout((("rot", 3), ("trans", 3), ("expr", 10), ("eyelid", 2)), 25, "builtin")
    motion = Motion(rng.normal(size=(5, 18)) * 0.2, layout)
    groups = {name: torch.from_numpy(motion.group(name)) for name in ("expr", "rot", "eyelid")}
    direct = head(**groups, shape=torch.ones(1, 4))
    expected = direct.numpy() + motion.group("trans")[:, None]
    np.testing.assert_allclose(head.vertices_of(motion, shape=np.ones(4)), expected, atol=1e-6)
    chosen = np.array([5, 99])
    np.testing.assert_allclose(
        head.vertices_of(motion, np.ones(4), chosen), expected[:, chosen], atol=1e-6
    )


def test_motion_of_another_head_is_refused(asset):
    motion = Motion(np.zeros((1, 50)), Layout((("expr", 50),), 25, "flame2020"))
    with pytest.raises(TopologyError, match="flame2020.*builtin"):
        FlameHead(asset).vertices_of(motion)
