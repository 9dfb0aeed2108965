"""Time-aligned multimodal RoPE (GDPO-Listener, Eq. 2).

Every token is placed at the video frame that it is about. Only differences of times count in
attention, and angles are computed in float64, so frames may be counted for days. The prompt is
about no frame: the paper places it at 0, from which a long sequence goes ever farther away; here it
is attended to without rotation, as if it stood wherever it is read.
"""

from __future__ import annotations

import torch
from torch import Tensor


def audio_times(frames: int, stride: int = 1, device: torch.device | None = None) -> Tensor:
    """Times of audio tokens, each the last of its `stride` video frames: (frames / stride,) int64.

    With one token a frame t_i = i.
    """
    return torch.arange(stride - 1, frames, stride, device=device)


def motion_times(latents: Tensor, downsample: int) -> Tensor:
    """Times t_j = j r + floor(r / 2), the centres of frames [j r, (j + 1) r) of latents j.

    Args:
        latents: numbers j of latents, any shape, int64.
        downsample: r.
    """
    return latents * downsample + downsample // 2


def rotations(times: Tensor, head_dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (..., head_dim / 2) of the angles `t base^(-2 i / head_dim)`.

    RoFormer, Su et al. 2021.

    Args:
        times: t of the tokens, any shape.
        head_dim: channels of a head.
        base: of the frequencies.
    """
    frequencies = base ** (
        -torch.arange(0, head_dim, 2, device=times.device, dtype=torch.float64) / head_dim
    )
    angles = times.double().unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of channels `(i, i + dim / 2)` by its angle.

    Scalar products of rotated queries and keys depend on the difference of their times alone.

    Args:
        x: (..., dim).
        rotation: cosines and sines, (..., dim / 2) each.
    """
    cos = rotation[0].to(x.dtype)
    sin = rotation[1].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
