"""The face of a speaker in pictures: the F-Enc of ReactFace's MSBEA (section 4.1).

Theirs reads clips by convolutions over time, seven frames ahead. This one reads picture by picture;
what goes on in time is heard by the encoder after it, which looks back alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)  # channels, each at half of the height and width of those before


class Sight(nn.Module):
    """Pictures, and which of them is on show in each frame -> features, frame by frame.

    Args:
        pixels: height and width of the pictures, a multiple of 8.
        out: width of the features.
    """

    def __init__(self, pixels: int, out: int) -> None:
        super().__init__()
        before = (3, *WIDTHS)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, kernel_size=3, stride=2, padding=1)
            for a, b in zip(before, WIDTHS, strict=False)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in WIDTHS)
        self.project = nn.Linear(WIDTHS[-1] * (pixels // 8) ** 2, out)

    def forward(self, pictures: Tensor, newest: Tensor) -> Tensor:
        """(batch, frames, out); zeros where there was no picture yet.

        Args:
            pictures: (batch, pictures, height, width, 3) uint8.
            newest: (batch, frames) number of the one on show; -1 = none.
        """
        batch, count = pictures.shape[:2]
        blank = self.project.weight.new_zeros(batch, 1, self.project.out_features)
        if not count:
            return blank.expand(-1, newest.shape[1], -1)
        x = pictures.flatten(0, 1).permute(0, 3, 1, 2).to(self.project.weight) / 127.5 - 1
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.gelu(norm(convolution(x)), approximate="tanh")
        seen = torch.unflatten(self.project(x.flatten(1)), 0, (batch, count))
        index = (newest + 1).unsqueeze(-1).expand(-1, -1, seen.shape[-1])
        return torch.cat([blank, seen], dim=1).gather(1, index)
