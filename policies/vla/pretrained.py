"""The `paper` size: LLaMA-2, DINOv2 and SigLIP checkpoints put together into a `FaceVLA`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    AutoModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from rapport.policies.vla.actions import ActionSpace
from rapport.policies.vla.config import FaceVLAConfig, image_side, patch_grid, read_dino_config
from rapport.policies.vla.model import FaceVLA, FrameEncoder, SlotEmbedding
from rapport.policies.vla.text import load_llama_tokenizer, special_ids


@dataclass(frozen=True)
class PublishedParts:
    """Where the three checkpoints are, each a local folder or a hub name.

    Args:
        llama: e.g. "meta-llama/Llama-2-7b-hf".
        dino: e.g. "facebook/dinov2-large" or "facebook/dinov2-with-registers-large".
        siglip: e.g. "google/siglip-so400m-patch14-224".
    """

    llama: str
    dino: str
    siglip: str


def load_pretrained(
    parts: PublishedParts,
    space: ActionSpace,
    frames: int = 8,
    text_tokens: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> tuple[FaceVLA, PreTrainedTokenizerBase]:
    """Build the policy from three pretrained parts; returns it and its text tokenizer.

    Its first action id is `config.action_token_start`. Each stream keeps its blocks up to the
    second-to-last. The patch grid is SigLIP's; DINOv2's positions are interpolated to it once. The
    projector is random; slot embeddings start at zero, which leaves the language model as it was.

    Args:
        parts: the checkpoints.
        space: what the actions stand for.
        frames: speaker frames in the prompt.
        text_tokens: length of the text region.
        dtype: of the weights.
        seed: of the projector and of the new special tokens' embeddings.
    """
    tokenizer, start = load_llama_tokenizer(parts.llama)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = LlamaForCausalLM.from_pretrained(parts.llama, dtype=dtype)
        # Mean resizing needs a covariance of the whole table; four marker tokens are not worth it.
        backbone.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
        dino_tower = AutoModel.from_pretrained(parts.dino, dtype=dtype)
        siglip_tower = SiglipVisionModel.from_pretrained(parts.siglip, dtype=dtype)
        config = pretrained_config(
            llama=backbone.config,
            dino=dino_tower.config,
            siglip=siglip_tower.config,
            space=space,
            frames=frames,
            text_tokens=text_tokens,
            action_token_start=start,
            **special_ids(tokenizer),
        )
        with init_empty_weights(include_buffers=False):
            model = FaceVLA(config)
        table = cast(nn.Embedding, backbone.get_input_embeddings()).weight
        model.language_model = backbone
        model.vision = FrameEncoder(config).to(table.device, dtype)
        slots = SlotEmbedding(config.action_dims, config.action_steps, backbone.config.hidden_size)
    for parameter in slots.parameters():
        nn.init.zeros_(parameter)
    model.slots = slots.to(table.device, dtype)
    dino_weights = resize_positions(dino_tower.state_dict(), patch_grid(siglip_tower.config))
    _copy_tower(model.vision.dino, dino_weights)
    _copy_tower(model.vision.siglip, siglip_tower.state_dict())
    return model, tokenizer


def pretrained_config(
    llama: PretrainedConfig,
    dino: PretrainedConfig,
    siglip: PretrainedConfig,
    space: ActionSpace,
    frames: int,
    text_tokens: int,
    **token_ids: Any,
) -> FaceVLAConfig:
    """The policy that three published configurations make.

    Args:
        llama: of the backbone.
        dino: of the DINOv2 stream, as published.
        siglip: of the SigLIP stream, as published; frames have its size.
        space: what the actions stand for.
        frames: speaker frames in the prompt.
        text_tokens: length of the text region.
        token_ids: by the field names of `FaceVLAConfig`.
    """
    dino_size = patch_grid(siglip) * dino.patch_size
    return FaceVLAConfig(
        text_config=LlamaConfig(**llama.to_dict()),
        dino_config=read_dino_config(_kept(dino) | {"image_size": dino_size}),
        siglip_config=SiglipVisionConfig(**_kept(siglip)),
        image_size=image_side(siglip),
        frames=frames,
        text_tokens=text_tokens,
        action_dims=space.dims,
        action_steps=space.steps,
        **token_ids,
    )


def _kept(published: PretrainedConfig) -> dict[str, Any]:
    """A stream's config without its last block.

    Without the feature-pyramid keys, too, because they name that block.
    """
    pyramid = ("stage_names", "out_features", "out_indices")
    values = {name: value for name, value in published.to_dict().items() if name not in pyramid}
    return {**values, "num_hidden_layers": published.num_hidden_layers - 1}


def freeze_streams(model: FaceVLA) -> None:
    """Keep DINOv2 and SigLIP as they are; the projector still trains."""
    model.vision.dino.requires_grad_(False)
    model.vision.siglip.requires_grad_(False)


def freeze_language_model(model: FaceVLA) -> None:
    """Keep LLaMA's blocks and head as they are.

    Vision, projector, token and slot embeddings still train.
    """
    model.language_model.model.layers.requires_grad_(False)
    model.language_model.model.norm.requires_grad_(False)
    model.get_output_embeddings().requires_grad_(False)


def resize_positions(weights: dict[str, Tensor], grid: int) -> dict[str, Tensor]:
    """DINOv2 weights with positions for a grid x grid of patches.

    The table (1, 1 + n * n, dim) is interpolated; the class token's row stays.
    """
    name = "embeddings.position_embeddings"
    table = weights[name]
    side = round((table.shape[1] - 1) ** 0.5)
    if side == grid:
        return weights
    patches = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(
        patches, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False
    )
    patches = patches.permute(0, 2, 3, 1).reshape(1, grid * grid, -1).to(table.dtype)
    return {**weights, name: torch.cat([table[:, :1], patches], dim=1)}


def _copy_tower(tower: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Fill a stripped tower.

    The published model has more: last block, final norm, mask token, pooling head.
    """
    absent, _ = tower.load_state_dict(weights, strict=False)
    if absent:
        raise ValueError(f"{type(tower).__name__}: the checkpoint lacks {absent[:5]}")
