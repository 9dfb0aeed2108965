"""Live sessions as trees of tensors, of a row for each: together in a pass, apart, as arrays.

A tree is made of tuples and of dataclasses that `torch.utils._pytree` was told of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rapport.policies.motion import Layout, Motion, require_same_layout

Tree = TypeVar("Tree")


def together(sessions: Sequence[Tree]) -> Tree:
    """Batches of sessions as one."""
    return cast(Tree, pytree.tree_map(lambda *rows: torch.cat(rows), *sessions))


def apart(batch: Tree) -> list[Tree]:
    """Each session of a batch alone, a batch of one."""
    leaves, structure = pytree.tree_flatten(batch)
    rows = zip(*(leaf.split(1) for leaf in leaves), strict=True)
    return [pytree.tree_unflatten(row, structure) for row in rows]


def to_arrays(tree: Tree) -> dict[str, np.ndarray]:
    """Its tensors by number; bfloat16, which numpy does not know, as float32."""
    leaves = pytree.tree_leaves(tree)
    plain = [leaf.float() if leaf.dtype == torch.bfloat16 else leaf for leaf in leaves]
    return {str(number): leaf.cpu().numpy() for number, leaf in enumerate(plain)}


def from_arrays(arrays: Mapping[str, np.ndarray], like: Tree) -> Tree:
    """What `to_arrays` was given: a tree of the form, types and device of another."""
    likes, structure = pytree.tree_flatten(like)
    leaves = [torch.from_numpy(arrays[str(i)]).to(leaf) for i, leaf in enumerate(likes)]
    return cast(Tree, pytree.tree_unflatten(leaves, structure))


def stacked_acts(acts: Sequence[np.ndarray], dim: int, name: str) -> Tensor:
    """What sessions came to, (sessions, dim).

    Args:
        acts: (dim,) each.
        dim: of one.
        name: of one, for messages.

    Raises:
        ValueError: one has another size, or is not finite.
    """
    for act in acts:
        if act.shape != (dim,) or not np.isfinite(act).all():
            raise ValueError(f"{name} is {dim} finite numbers, got {act.shape}")
    return torch.from_numpy(np.stack(acts))


def chunk_motion(motion: Motion, layout: Layout, frames: int, name: str) -> Tensor:
    """Motion that reached a session in a chunk, (frames, dim).

    Args:
        motion: that came.
        layout: of the listener.
        frames: of a chunk.
        name: of the motion, for messages.

    Raises:
        LayoutError: it has another layout.
        ValueError: it is not of a chunk.
    """
    require_same_layout(motion.layout, layout, name)
    if len(motion) != frames:
        raise ValueError(f"a chunk has {frames} frames of motion, got {len(motion)}")
    return torch.from_numpy(motion.values)
