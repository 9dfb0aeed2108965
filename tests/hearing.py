"""A wav2vec2 with random weights."""

import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from rapport.policies.flow.encoders import AudioEncoder


def random_wav2vec2(dim, layers):
    """Of a width and depth; the same weights each time."""
    config = Wav2Vec2Config(
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * dim,
        conv_dim=(dim,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    torch.manual_seed(0)
    return AudioEncoder(Wav2Vec2Model(config).eval(), "random")
