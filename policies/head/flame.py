"""FLAME's forward model: coefficients -> vertices.

Li et al., "Learning a model of facial shape and expression from 4D scans", SIGGRAPH Asia 2017, Eq.
1-5: blendshapes, pose correctives, then linear blend skinning over root, neck, jaw and two eyes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from rapport.policies.head.asset import PARENTS, HeadAsset, TopologyError
from rapport.policies.motion import Motion

POSE_GROUPS = ("jaw", "neck", "rot", "eyepose", "eyelid")
_EYELID_HELP = (
    "give load_head the eyelid directions (eyelids=FILE.npy), or drop the eyelid group from the "
    "motion"
)


def rotation_matrix(axis_angle: Tensor) -> Tensor:
    """Axis-angle (..., 3) in radians to rotation matrices (..., 3, 3).

    Differentiable at zero, too.
    """
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    entries = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1)
    matrices: Tensor = torch.linalg.matrix_exp(torch.unflatten(entries, -1, (3, 3)))
    return matrices


class FlameHead(nn.Module):
    """A head that moves: batched, differentiable, float32 or float64.

    Args:
        asset: the head.
        dtype: of all buffers and results.
    """

    v_template: Tensor
    shapedirs: Tensor
    exprdirs: Tensor
    posedirs: Tensor
    weights: Tensor
    joints: Tensor
    joint_shapedirs: Tensor
    joint_exprdirs: Tensor
    eyelids: Tensor | None

    def __init__(self, asset: HeadAsset, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.topology = asset.topology

        def add(name: str, array: np.ndarray | None) -> None:
            # A copy: the asset stays as it was loaded, whatever happens to this module.
            buffer = (
                None if array is None else torch.tensor(np.ascontiguousarray(array), dtype=dtype)
            )
            self.register_buffer(name, buffer, persistent=False)

        regressor = asset.joint_regressor
        add("v_template", asset.v_template)
        add("shapedirs", np.moveaxis(asset.shapedirs, 2, 0))
        add("exprdirs", np.moveaxis(asset.exprdirs, 2, 0))
        add("posedirs", asset.posedirs)
        add("weights", asset.weights)
        add("joints", regressor @ asset.v_template)
        add("joint_shapedirs", np.einsum("jv,vcn->njc", regressor, asset.shapedirs, optimize=True))
        add("joint_exprdirs", np.einsum("jv,vcn->njc", regressor, asset.exprdirs, optimize=True))
        add("eyelids", asset.eyelids)

    def forward(
        self,
        expr: Tensor,
        shape: Tensor | None = None,
        vertices: Tensor | None = None,
        **groups: Tensor,
    ) -> Tensor:
        """Vertices of a batch of poses. What is not given is at rest.

        Args:
            expr: (batch, up to 100).
            shape: (batch, up to 300) identity, in standard deviations; (1, n) serves the whole
                batch.
            vertices: (n,) long, compute only these.
            groups: `jaw`, `neck` and `rot`, (batch, 3) axis-angle radians, of which `rot` turns the
                whole head about the root joint; `eyepose`, (batch, 6) axis-angle radians of the
                left, then the right eye; `eyelid`, (batch, 2), left and right, closed at 1.

        Returns:
            (batch, V or n, 3), metres.

        Raises:
            TopologyError: eyelids were asked of a head that has none.
            TypeError: there is no group of that name.
        """
        unknown = sorted(groups.keys() - set(POSE_GROUPS))
        if unknown:
            raise TypeError(f"a head has no groups {unknown}, only {list(POSE_GROUPS)}")
        rest = expr.new_zeros(len(expr), 3)
        eyes = groups.get("eyepose", expr.new_zeros(len(expr), 6))
        turns = [groups.get(name, rest) for name in ("rot", "neck", "jaw")]
        pose = torch.stack([*turns, eyes[:, :3], eyes[:, 3:]], 1)
        rotations = rotation_matrix(pose)
        identity = torch.eye(3, dtype=pose.dtype, device=pose.device)
        correctives = (rotations[:, 1:] - identity).flatten(1)

        joints = _blend(self.joints, self.joint_exprdirs, expr)
        points = _blend(_pick(self.v_template, vertices), _pick(self.exprdirs, vertices), expr)
        points = points + _blend(0.0, _pick(self.posedirs, vertices), correctives)
        if shape is not None:
            joints = joints + _blend(0.0, self.joint_shapedirs, shape)
            points = points + _blend(0.0, _pick(self.shapedirs, vertices), shape)
        if "eyelid" in groups:
            if self.eyelids is None:
                raise TopologyError(f"this {self.topology} head has no eyelids; {_EYELID_HELP}")
            points = points + _blend(0.0, _pick(self.eyelids, vertices), groups["eyelid"])
        return _skin(points, rotations, joints, _pick(self.weights, vertices))

    @torch.no_grad()
    def vertices_of(
        self, motion: Motion, shape: np.ndarray | None = None, vertices: np.ndarray | None = None
    ) -> np.ndarray:
        """Vertices of a motion, frame by frame; groups the motion lacks are at rest.

        Args:
            motion: any of FLAME's groups; `trans` is added in metres.
            shape: (n,) identity, or None for the neutral head.
            vertices: (n,) compute only these.

        Returns:
            (time, V or n, 3), metres.

        Raises:
            TopologyError: the motion belongs to another head.
        """
        layout = motion.layout
        if layout.topology != self.topology:
            raise TopologyError(
                f"motion of topology {layout.topology!r} on a head of topology "
                f"{self.topology!r}: the coefficients mean nothing here. Load the "
                f"{layout.topology} head (load_head) or convert the motion first."
            )
        like = self.v_template
        groups = {name: torch.from_numpy(motion.group(name)).to(like) for name in layout.names}
        trans = groups.pop("trans", None)
        expr = groups.pop("expr", like.new_zeros(len(motion), 0))
        identity = None if shape is None else torch.as_tensor(np.asarray(shape)).to(like)[None]
        subset = None if vertices is None else torch.as_tensor(vertices, device=like.device)
        points: Tensor = self(expr, shape=identity, vertices=subset, **groups)
        if trans is not None:
            points = points + trans[:, None]
        return points.cpu().numpy()


def _pick(array: Tensor, vertices: Tensor | None) -> Tensor:
    """Rows of the vertex axis, which is the last but one: (..., V, k) -> (..., n, k)."""
    return array if vertices is None else array.index_select(-2, vertices)


def _blend(base: Tensor | float, directions: Tensor, coefficients: Tensor) -> Tensor:
    """`base` and the sum of weighted directions: (k, n, 3) by (batch, up to k) -> (batch, n, 3)."""
    used = coefficients.shape[1]
    if used > len(directions):
        raise ValueError(f"{used} coefficients for {len(directions)} directions")
    moved = coefficients @ directions[:used].flatten(1)
    return base + torch.unflatten(moved, 1, directions.shape[1:])


def _skin(points: Tensor, rotations: Tensor, joints: Tensor, weights: Tensor) -> Tensor:
    """Linear blend skinning of points (batch, n, 3).

    Args:
        points: at rest.
        rotations: of the joints, (batch, 5, 3, 3), each relative to its parent.
        joints: at rest, (batch, 5, 3).
        weights: (n, 5).
    """
    world: list[Tensor] = []  # rotation of each joint in the world
    moved: list[Tensor] = []  # place of each joint in the world
    for joint, parent in enumerate(PARENTS):
        if parent < 0:
            world.append(rotations[:, joint])
            moved.append(joints[:, joint])
        else:
            offset = (joints[:, joint] - joints[:, parent])[..., None]
            moved.append(moved[parent] + (world[parent] @ offset)[..., 0])
            world.append(world[parent] @ rotations[:, joint])
    rotation = torch.stack(world, 1)
    translation = torch.stack(moved, 1)[..., None] - rotation @ joints[..., None]
    transforms = torch.cat([rotation, translation], -1)  # (batch, 5, 3, 4)
    blended = torch.unflatten(weights @ transforms.flatten(2), 2, (3, 4))
    turned: Tensor = torch.einsum("bvij,bvj->bvi", blended[..., :3], points)
    return turned + blended[..., 3]
