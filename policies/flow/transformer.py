"""The pre-norm block that the VAE and AR-Flow are made of; how tokens attend is up to them. And how
layers begin.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """RMSNorm, attention, RMSNorm, MLP.

    A caller computes `queries_keys_values`, attends as it sees fit and hands the outcome to
    `finish`."""

    def __init__(self, hidden: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.mlp_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.up = nn.Linear(hidden, mlp)
        self.down = nn.Linear(mlp, hidden)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., tokens, hidden) -> three of (..., heads, tokens, head_dim)."""
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        return heads.movedim(-4, -2).unbind(-4)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """x (..., tokens, hidden), attended (..., heads, tokens, head_dim) -> (..., tokens,
        hidden).
        """
        x = x + self.out(attended.transpose(-3, -2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


def silent(layer: nn.Linear) -> nn.Linear:
    """The layer with weights of 0: it says nothing until it has learnt to."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
