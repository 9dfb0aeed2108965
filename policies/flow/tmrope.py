"""Time-aligned multimodal RoPE (GDPO-Listener, Eq. 2): every token is placed at the video frame it
is about.
"""

from __future__ import annotations

import torch
from torch import Tensor

TEXT_TIME = 0


def audio_times(frames: int, device: torch.device | None = None) -> Tensor:
    """t_i = i: (frames,) int64, one audio token per video frame."""
    return torch.arange(frames, device=device)


def motion_times(latents: Tensor, downsample: int) -> Tensor:
    """t_j = j r + floor(r / 2), the centre of the window of frames [j r, (j + 1) r) that latent j
    stands for.

    Args:
        latents: numbers j of latents, any shape, int64.
        downsample: r.
    """
    return latents * downsample + downsample // 2


def rotations(times: Tensor, head_dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (..., head_dim / 2) of the angles `t base^(-2 i / head_dim)` (RoFormer, Su
    et al. 2021).
    """
    frequencies = base ** (
        -torch.arange(0, head_dim, 2, device=times.device, dtype=torch.float64) / head_dim
    )
    angles = times.double().unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of channels `(i, i + dim / 2)` of x (..., dim) by its angle, cosines and sines
    (..., dim / 2).

    Scalar products of rotated queries and keys depend on the difference of their times alone.
    """
    cos, sin = (part.to(x.dtype) for part in rotation)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
