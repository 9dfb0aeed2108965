"""Initial weights of a small policy: structure in place of what pretraining would have taught.

LLaMA's own initialisation (normal, 0.02) suits widths of thousands. At width 128 it leaves the
blocks almost silent, and thousands of steps pass before the policy notices its prompt or its own
past actions.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from rapport.policies.vla.encoders import FrameEncoder, VoiceEncoder
from rapport.policies.vla.model import FaceVLA, SlotEmbedding

HARMONICS = 32
# Norm of token embeddings and of slot codes, so that neither drowns the other after the first norm.
CODE_NORM = 0.5


@torch.no_grad()
def init_small(model: FaceVLA, seed: int = 0) -> None:
    """Initialise every weight of a small `FaceVLA` in place, the same for the same seed.

    Linear layers keep the variance of what passes through them, those that write to the residual
    stream less (Radford et al. 2019). Action tokens start as smooth features of their bin's centre,
    so that neighbouring bins are neighbours. The slot of a token and the slot a token predicts
    share one code, and keys equal the first query that reads them in the first block: there, a
    position looks most at earlier tokens of its own slot, then at those beside it, of which one
    holds the very dimension that is to be predicted.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = model.config.text_config.num_hidden_layers
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and module is not head:
            std = 1 / math.sqrt(module.weight[0].numel())
            if name.endswith(("o_proj", "down_proj")):
                std /= math.sqrt(2 * blocks)
            module.weight.normal_(0, std, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    # What encoders make passes through at first.
    pass_through(model.vision)
    if model.voice is not None:
        pass_through(model.voice)
    _init_tokens(model, generator)
    if model.slots is not None:
        _init_slots(model.slots, generator)
    first = model.language_model.model.layers[0].self_attn
    # (heads * head_dim, hidden) -> (key heads, queries of each, head_dim, hidden)
    queries = first.q_proj.weight.unflatten(0, (-1, first.num_key_value_groups, first.head_dim))
    first.k_proj.weight.copy_(queries[:, 0].flatten(0, 1))


def pass_through(encoder: FrameEncoder | VoiceEncoder) -> None:
    """Have the layer behind an encoder change nothing."""
    nn.init.eye_(encoder.adapter.weight)
    nn.init.zeros_(encoder.adapter.bias)


def _init_tokens(model: FaceVLA, generator: torch.Generator) -> None:
    """Random embeddings, but for action tokens smooth functions of the centres of their bins."""
    config = model.config
    hidden = config.text_config.hidden_size
    inputs = model.get_input_embeddings().weight
    outputs = model.get_output_embeddings().weight
    inputs.normal_(0, CODE_NORM / math.sqrt(hidden), generator=generator)
    outputs.normal_(0, 1 / math.sqrt(hidden), generator=generator)
    # Cosines of rising frequency and falling amplitude, mixed by a random matrix.
    centres = (torch.arange(config.action_bins) + 0.5) / config.action_bins
    order = torch.arange(1, HARMONICS + 1)
    features = torch.cos(math.pi * order * centres[:, None]) / order
    rows = slice(config.action_token_start, config.action_token_start + config.action_bins)
    for table, norm in ((inputs, CODE_NORM), (outputs, 1.0)):
        smooth = features @ torch.randn(HARMONICS, hidden, generator=generator)
        table[rows] = smooth * norm / smooth.norm(dim=1).mean()


def _init_slots(slots: SlotEmbedding, generator: torch.Generator) -> None:
    """One code for a dimension, whether a token holds it or is to predict it."""
    hidden = slots.own.embedding_dim
    codes = torch.randn(slots.dims, hidden, generator=generator)
    if slots.dims <= hidden:
        codes = torch.linalg.qr(codes.T)[0].T  # orthogonal: no two dimensions are alike
    codes = CODE_NORM * codes / codes.norm(dim=1, keepdim=True)
    slots.own.weight.copy_(codes)
    slots.next.weight.copy_(codes)
    slots.step.weight.normal_(0, 0.1 / math.sqrt(hidden), generator=generator)
