"""What the VAE and AR-Flow are made of: pre-norm blocks, and a transformer that looks back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rapport.policies.flow.tmrope import rotate, rotations


class Block(nn.Module):
    """RMSNorm, attention, RMSNorm, MLP.

    A caller computes `queries_keys_values`, attends as it sees fit and hands the outcome to
    `finish`.
    """

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
        """Three times (..., heads, tokens, head_dim) of `x` (..., tokens, hidden)."""
        projected: Tensor = self.qkv(self.attention_norm(x))
        heads = torch.unflatten(projected, -1, (3, self.heads, -1)).movedim(-4, -2)
        queries, keys, values = heads.unbind(-4)
        return queries, keys, values

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What the block returns, (..., tokens, hidden).

        Args:
            x: (..., tokens, hidden), what came in.
            attended: (..., heads, tokens, head_dim), the values that the tokens attended to.
        """
        x = x + self.out(attended.transpose(-3, -2).flatten(-2))
        change: Tensor = self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))
        return x + change


class Blocks(nn.ModuleList):
    """Blocks one after the other; type checkers know that each is a `Block`."""

    def __iter__(self) -> Iterator[Block]:
        return cast(Iterator[Block], super().__iter__())


@dataclass(frozen=True, eq=False)
class Memory:
    """What the next tokens of a `CausalTransformer` attend to: the last ones, in every block.

    Args:
        keys: (batch, heads, kept, head_dim) of each block, not rotated.
        values: likewise.
        there: (batch, kept) bool, which of them there were.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    there: Tensor

    def where(self, present: Tensor) -> Memory:
        """Nothing is remembered by those samples that are not `present`, (batch,) bool."""
        return replace(self, there=self.there & present.unsqueeze(1))


pytree.register_dataclass(Memory)  # sessions that hold one are put together and taken apart


class CausalTransformer(nn.Module):
    """Blocks in which token j attends to tokens [j - look_back, j].

    Positions are relative: what comes out for the last tokens of a sequence depends on the
    `layers` x `look_back` before them, and not on how many there were before those. So a sequence
    may be read whole or as it comes in.

    Args:
        hidden: width.
        layers: blocks.
        heads: attention heads.
        look_back: tokens before its own that a token attends to, in every block.
    """

    def __init__(self, hidden: int, layers: int, heads: int, look_back: int) -> None:
        super().__init__()
        self.heads = heads
        self.look_back = look_back
        self.head_dim = hidden // heads
        self.blocks = Blocks(Block(hidden, heads, 4 * hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (batch, tokens, hidden) -> the same shape."""
        return self.follow(x)[0]

    def nothing(self, batch: int) -> Memory:
        """The memory before the first token, as large as any."""
        like = self.norm.weight
        empty = like.new_zeros(batch, self.heads, self.look_back, self.head_dim)
        there = torch.zeros(batch, self.look_back, dtype=torch.bool, device=like.device)
        return Memory((empty,) * len(self.blocks), (empty,) * len(self.blocks), there)

    def follow(self, x: Tensor, past: Memory | None = None) -> tuple[Tensor, Memory]:
        """`forward` for tokens that follow others, and what those after them need.

        Args:
            x: (batch, tokens, hidden), the new ones.
            past: of those before them; None = there were none.
        """
        kept = 0 if past is None else past.there.shape[1]
        steps = torch.arange(kept + x.shape[1], device=x.device)
        age = steps[kept:, None] - steps
        seen = (age >= 0) & (age <= self.look_back)
        there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        if past is not None:
            there = torch.cat([past.there, there], dim=1)
            seen = (seen & there.unsqueeze(1)).unsqueeze(1)
        cos, sin = rotations(steps, self.head_dim)
        all_keys: list[Tensor] = []
        all_values: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            queries, keys, values = block.queries_keys_values(x)
            if past is not None:
                keys = torch.cat([past.keys[layer], keys], dim=-2)
                values = torch.cat([past.values[layer], values], dim=-2)
            all_keys.append(keys[..., -self.look_back :, :])
            all_values.append(values[..., -self.look_back :, :])
            queries = rotate(queries, (cos[kept:], sin[kept:]))
            keys = rotate(keys, (cos, sin))
            x = block.finish(x, F.scaled_dot_product_attention(queries, keys, values, seen))
        normed: Tensor = self.norm(x)
        memory = Memory(tuple(all_keys), tuple(all_values), there[:, -self.look_back :])
        return normed, memory


def silent(layer: nn.Linear) -> nn.Linear:
    """The layer with weights of 0: it contributes nothing until it is trained."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
