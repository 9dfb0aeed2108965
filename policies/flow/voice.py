"""How AR-Flow hears: a small causal encoder of log-mel bands, trained with it.

One for the voices of both people (GDPO-Listener, Eq. 1, has one projector for them). A few
convolutions find sounds, attention over the last seconds finds words and phrases. What it finds in
a few frames is one token, as there are several times as many frames as things to hear in them. A
token depends on its frames, the `reach` before them and on none after them, so a voice may be
encoded whole or as it comes in.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rapport.policies.flow.config import VoiceSizes
from rapport.policies.flow.transformer import CausalTransformer


class VoiceEncoder(nn.Module):
    """Features of sound (batch, frames, audio_dim) -> tokens (batch, frames / stride, out).

    Args:
        audio_dim: channels of the features.
        sizes: of the encoder.
        out: width of the tokens.
    """

    def __init__(self, audio_dim: int, sizes: VoiceSizes, out: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.widen = nn.Linear(audio_dim, sizes.hidden)
        self.convolutions = nn.ModuleList(
            CausalConvolution(sizes.hidden, sizes.kernel) for _ in range(sizes.convolutions)
        )
        self.transformer = CausalTransformer(
            sizes.hidden, layers=sizes.layers, heads=sizes.heads, look_back=sizes.look_back
        )
        self.project = nn.Linear(sizes.stride * sizes.hidden, out)

    @property
    def reach(self) -> int:
        """Frames before its own ones that a token depends on."""
        sizes = self.sizes
        return sizes.convolutions * (sizes.kernel - 1) + sizes.layers * sizes.look_back

    def forward(self, features: Tensor) -> Tensor:
        """Tokens of whole strides of frames; before the first there was nothing."""
        x = self.widen(features)
        for convolution in self.convolutions:
            x = convolution(x)
        heard = self.transformer(x)
        strides = torch.unflatten(heard, 1, (-1, self.sizes.stride)).flatten(2)
        return cast(Tensor, self.project(strides))


class CausalConvolution(nn.Module):
    """RMSNorm, convolution over the frames until now, GELU, beside a way round."""

    def __init__(self, hidden: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.convolution = nn.Conv1d(hidden, hidden, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, hidden) -> the same shape."""
        before = self.convolution.kernel_size[0] - 1
        padded = F.pad(self.norm(x).mT, (before, 0))
        return x + F.gelu(self.convolution(padded), approximate="tanh").mT
