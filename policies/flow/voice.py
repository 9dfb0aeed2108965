"""How AR-Flow hears: a small causal encoder of log-mel bands, trained with it.

One for the voices of both people (GDPO-Listener, Eq. 1, has one projector for them). A few
convolutions find sounds, attention over the last seconds finds words and phrases. What it finds in
a few frames is one token, as there are several times as many frames as things to hear in them. A
token depends on its frames, the `reach` before them and on none after them, so a voice may be
encoded whole or as it comes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rapport.policies.flow.config import VoiceSizes
from rapport.policies.flow.transformer import CausalTransformer, Memory


@dataclass(frozen=True, eq=False)
class Hearing:
    """What the next tokens of a voice depend on.

    Args:
        ends: (batch, hidden, kernel - 1) of each convolution, what it read last; zeros before the
            first frame.
        memory: of the transformer.
    """

    ends: tuple[Tensor, ...]
    memory: Memory

    def where(self, present: Tensor) -> Hearing:
        """For those samples that are not `present`, (batch,) bool, nothing was heard so far."""
        ends = tuple(torch.where(present[:, None, None], end, 0.0) for end in self.ends)
        return Hearing(ends, self.memory.where(present))


pytree.register_dataclass(Hearing)


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
        return self.follow(features)[0]

    def nothing(self, batch: int) -> Hearing:
        """Before the first frame."""
        end = self.widen.weight.new_zeros(batch, self.sizes.hidden, self.sizes.kernel - 1)
        return Hearing((end,) * self.sizes.convolutions, self.transformer.nothing(batch))

    def follow(self, features: Tensor, before: Hearing | None = None) -> tuple[Tensor, Hearing]:
        """Tokens of frames that follow others, and what those after them depend on.

        Args:
            features: (batch, frames, audio_dim), whole strides of frames.
            before: of the frames before them; None = there were none.
        """
        x = self.widen(features)
        ends: list[Tensor] = []
        for number, convolution in enumerate(self.convolutions):
            x, end = convolution(x, None if before is None else before.ends[number])
            ends.append(end)
        heard, memory = self.transformer.follow(x, None if before is None else before.memory)
        strides = torch.unflatten(heard, 1, (-1, self.sizes.stride)).flatten(2)
        return cast(Tensor, self.project(strides)), Hearing(tuple(ends), memory)


class CausalConvolution(nn.Module):
    """RMSNorm, convolution over the frames until now, GELU, beside a way round."""

    def __init__(self, hidden: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.convolution = nn.Conv1d(hidden, hidden, kernel)

    def forward(self, x: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(batch, frames, hidden) -> the same shape, and the end of what the convolution read.

        Args:
            x: new frames.
            before: (batch, hidden, kernel - 1), that end for the frames before; None = there were
                none.
        """
        kept = self.convolution.kernel_size[0] - 1
        normed = self.norm(x).mT
        read = F.pad(normed, (kept, 0)) if before is None else torch.cat([before, normed], dim=-1)
        changed = x + F.gelu(self.convolution(read), approximate="tanh").mT
        return changed, read[..., read.shape[-1] - kept :]
