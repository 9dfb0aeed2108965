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


def rotation_matrix(axis_angle: Tensor) -> Tensor:
    """Axis-angle (..., 3) in radians to rotation matrices (..., 3, 3), differentiable at zero too."""
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(skew)


class FlameHead(nn.Module):
    """A head that moves: batched, differentiable, float32 or float64.

    Args:
        asset: the head.
        dtype: of all buffers and results.
    """

    def __init__(self, asset: HeadAsset, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.topology = asset.topology

        def add(name: str, array: np.ndarray) -> None:
            # A copy: the asset stays as it was loaded, whatever happens to this module.
            self.register_buffer(
                name, torch.tensor(np.ascontiguousarray(array), dtype=dtype), persistent=False
            )

        add("v_template", asset.v_template)
        add("shapedirs", np.moveaxis(asset.shapedirs, 2, 0))
        add("exprdirs", np.moveaxis(asset.exprdirs, 2, 0))
        add("posedirs", asset.posedirs)
        add("weights", asset.weights)
        add("joints", asset.joint_regressor @ asset.v_template)
        add(
            "joint_shapedirs",
            np.einsum("jv,vcn->njc", asset.joint_regressor, asset.shapedirs, optimize=True),
        )
        add(
            "joint_exprdirs",
            np.einsum("jv,vcn->njc", asset.joint_regressor, asset.exprdirs, optimize=True),
        )
        self.has_eyelids = asset.eyelids is not None
        if self.has_eyelids:
            add("eyelids", asset.eyelids)

    def forward(
        self,
        expr: Tensor,
        jaw: Tensor | None = None,
        neck: Tensor | None = None,
        rot: Tensor | None = None,
        eyepose: Tensor | None = None,
        eyelid: Tensor | None = None,
        shape: Tensor | None = None,
        vertices: Tensor | None = None,
    ) -> Tensor:
        """Vertices of a batch of poses. What is not given is at rest.

        Args:
            expr: (batch, up to 100).
            jaw, neck, rot: (batch, 3) axis-angle radians; `rot` turns the whole head about the root
                joint.
            eyepose: (batch, 6) axis-angle radians of the left, then the right eye.
            eyelid: (batch, 2), left and right, closed at 1.
            shape: (batch, up to 300) identity, in standard deviations; (1, n) serves the whole
                batch.
            vertices: (n,) long, compute only these.

        Returns:
            (batch, V or n, 3), metres.

        Raises:
            TopologyError: eyelids were asked of a head that has none.
        """
        batch = len(expr)
        rest = expr.new_zeros(batch, 3)
        eyes = expr.new_zeros(batch, 6) if eyepose is None else eyepose
        pose = torch.stack(
            [p if p is not None else rest for p in (rot, neck, jaw)] + [eyes[:, :3], eyes[:, 3:]], 1
        )
        rotations = rotation_matrix(pose)
        correctives = (
            rotations[:, 1:] - torch.eye(3, dtype=pose.dtype, device=pose.device)
        ).flatten(1)

        joints = _blend(self.joints, self.joint_exprdirs, expr)
        points = _blend(_pick(self.v_template, vertices), _pick(self.exprdirs, vertices), expr)
        points = points + _blend(0.0, _pick(self.posedirs, vertices), correctives)
        if shape is not None:
            joints = joints + _blend(0.0, self.joint_shapedirs, shape)
            points = points + _blend(0.0, _pick(self.shapedirs, vertices), shape)
        if eyelid is not None:
            if not self.has_eyelids:
                raise TopologyError(f"this {self.topology} head has no eyelids; {_EYELID_HELP}")
            points = points + _blend(0.0, _pick(self.eyelids, vertices), eyelid)
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
                f"{self.topology!r}: the coefficients "
                f"mean nothing here. Load the {layout.topology} head (load_head) or convert the "
                "motion first."
            )
        groups = {
            name: torch.from_numpy(motion.group(name)).to(self.v_template) for name in layout.names
        }
        trans = groups.pop("trans", None)
        expr = groups.pop("expr", self.v_template.new_zeros(len(motion), 0))
        identity = (
            None if shape is None else torch.as_tensor(np.asarray(shape)).to(self.v_template)[None]
        )
        subset = (
            None if vertices is None else torch.as_tensor(vertices, device=self.v_template.device)
        )
        points = self(expr, **groups, shape=identity, vertices=subset)
        return (points if trans is None else points + trans[:, None]).cpu().numpy()


_EYELID_HELP = "give load_head the eyelid directions (eyelids=FILE.npy), or drop the eyelid group from the motion"


def _pick(array: Tensor, vertices: Tensor | None) -> Tensor:
    """Rows of the vertex axis, which is the last but one: (..., V, k) -> (..., n, k)."""
    return array if vertices is None else array.index_select(-2, vertices)


def _blend(base: Tensor | float, directions: Tensor, coefficients: Tensor) -> Tensor:
    """base + sum of weighted directions: (k, n, 3) by (batch, up to k) -> (batch, n, 3)."""
    used = coefficients.shape[1]
    if used > len(directions):
        raise ValueError(f"{used} coefficients for {len(directions)} directions")
    moved = coefficients @ directions[:used].flatten(1)
    return base + moved.unflatten(1, directions.shape[1:])


def _skin(points: Tensor, rotations: Tensor, joints: Tensor, weights: Tensor) -> Tensor:
    """Linear blend skinning: (batch, n, 3) points by five rotations about five joints, weights (n,
    5).
    """
    world: list[Tensor] = []
    moved: list[Tensor] = []
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
    blended = (weights @ transforms.flatten(2)).unflatten(2, (3, 4))
    return torch.einsum("bvij,bvj->bvi", blended[..., :3], points) + blended[..., 3]
