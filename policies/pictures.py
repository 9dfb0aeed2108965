"""Pictures of a speaker, as a policy wants them, and which one is on show at a moment."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

BLIND_S = 2.0  # without a picture, live: nobody is seen any more
SAME_S = 1e-6  # times closer than this are the same: they are sums of decimals


def resized(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames (n, height, width, 3) uint8 with another height and width, (n, size, size, 3) uint8.

    Raises:
        ValueError: they are no RGB images.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(
            f"speaker frames must be (n, height, width, 3) uint8, got {frames.shape} {frames.dtype}"
        )
    if frames.shape[1:3] == (size, size):
        return np.ascontiguousarray(frames)
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    pixels = F.interpolate(
        pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    bytes_again = pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return bytes_again.contiguous().numpy()


def evenly_taken(count: int, seconds: float) -> np.ndarray:
    """When each of so many evenly spaced pictures was taken, seconds: (count,)."""
    return (np.arange(count) + 0.5) * (seconds / max(count, 1))


def newest(taken: np.ndarray, frames: int, fps: float) -> np.ndarray:
    """Number of the last picture that was taken until the end of each frame; -1 = none yet.

    Args:
        taken: (pictures,) when, seconds from the start of the first frame, rising.
        frames: how many.
        fps: frames a second.

    Returns:
        (frames,) int64.
    """
    ends = np.arange(1, frames + 1) / fps
    return np.searchsorted(taken, ends + SAME_S, side="right") - 1


def parts(taken: np.ndarray, rate: float) -> np.ndarray:
    """In which of `rate` equal parts of each second pictures were taken: (n,) int64.

    Args:
        taken: (n,) when, seconds from a beginning that all of a stream shares.
        rate: parts a second.
    """
    return np.floor(taken * rate + SAME_S).astype(np.int64)
