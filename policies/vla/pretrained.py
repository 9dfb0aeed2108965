"""The `paper` size: LLaMA-2, DINOv2 and SigLIP checkpoints put together into a `FaceVLA`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    AutoModel,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)

from rapport.policies.vla.actions import ActionSpace
from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.model import FaceVLA, FrameEncoder, SlotEmbedding
from rapport.policies.vla.text import load_llama_tokenizer, special_ids


def load_pretrained(
    llama: str,
    dino: str,
    siglip: str,
    space: ActionSpace,
    frames: int = 8,
    text_tokens: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    device_map: str | dict | None = None,
    seed: int = 0,
) -> tuple[FaceVLA, PreTrainedTokenizerBase]:
    """Build the policy from three pretrained parts. Its first action id is
    `config.action_token_start`.

    Each stream keeps its blocks up to the second-to-last. The patch grid is SigLIP's; DINOv2's
    positions are interpolated to it once. The projector is random; slot embeddings start at zero,
    which leaves the language model as it was.

    Args:
        llama, dino, siglip: local folder or hub name, e.g. "meta-llama/Llama-2-7b-hf",
            "facebook/dinov2-large" or "facebook/dinov2-with-registers-large",
            "google/siglip-so400m-patch14-224".
        device_map: where accelerate places LLaMA's layers while loading, e.g. "auto" or {"": 0}.
        seed: of the projector and of the new special tokens' embeddings.
    """
    tokenizer, start = load_llama_tokenizer(llama)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = LlamaForCausalLM.from_pretrained(llama, dtype=dtype, device_map=device_map)
        # Mean resizing needs a covariance of the whole table; four marker tokens are not worth it.
        backbone.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
        dino_tower = AutoModel.from_pretrained(dino, dtype=dtype)
        siglip_tower = SiglipVisionModel.from_pretrained(siglip, dtype=dtype)
        parts = backbone.config, dino_tower.config, siglip_tower.config
        config = pretrained_config(
            *parts, space, frames, text_tokens, action_token_start=start, **special_ids(tokenizer)
        )
        with init_empty_weights(include_buffers=False):
            model = FaceVLA(config)
        device = backbone.get_input_embeddings().weight.device
        model.language_model = backbone
        model.vision = FrameEncoder(config).to(device, dtype)
        model.slots = SlotEmbedding(
            config.action_dims, config.action_steps, backbone.config.hidden_size
        )
    for parameter in model.slots.parameters():
        nn.init.zeros_(parameter)
    model.slots.to(device, dtype)
    _copy_tower(
        model.vision.dino, resize_positions(dino_tower.state_dict(), _grid(siglip_tower.config))
    )
    _copy_tower(model.vision.siglip, siglip_tower.state_dict())
    return model, tokenizer


def pretrained_config(
    llama: PretrainedConfig,
    dino: PretrainedConfig,
    siglip: PretrainedConfig,
    space: ActionSpace,
    frames: int,
    text_tokens: int,
    **token_ids: int,
) -> FaceVLAConfig:
    """The policy that three published configurations make; `token_ids` by the field names of
    `FaceVLAConfig`.
    """
    return FaceVLAConfig(
        text_config=llama.to_dict(),
        dino_config=_kept(dino) | {"image_size": _grid(siglip) * dino.patch_size},
        siglip_config=_kept(siglip),
        image_size=siglip.image_size,
        frames=frames,
        text_tokens=text_tokens,
        action_dims=space.dims,
        action_steps=space.steps,
        **token_ids,
    )


def _grid(siglip: PretrainedConfig) -> int:
    """Patches along one side of a frame."""
    return siglip.image_size // siglip.patch_size


def _kept(published: PretrainedConfig) -> dict:
    """A stream's config without its last block, and without the feature-pyramid keys that name that
    block.
    """
    pyramid = ("stage_names", "out_features", "out_indices")
    values = {name: value for name, value in published.to_dict().items() if name not in pyramid}
    return {**values, "num_hidden_layers": published.num_hidden_layers - 1}


def freeze_streams(model: FaceVLA) -> None:
    """Keep DINOv2 and SigLIP as they are; the projector still trains."""
    model.vision.dino.requires_grad_(False)
    model.vision.siglip.requires_grad_(False)


def freeze_language_model(model: FaceVLA) -> None:
    """Keep LLaMA's blocks and head as they are; vision, projector, token and slot embeddings still
    train.
    """
    model.language_model.model.layers.requires_grad_(False)
    model.language_model.model.norm.requires_grad_(False)
    model.get_output_embeddings().requires_grad_(False)


def resize_positions(weights: dict[str, Tensor], grid: int) -> dict[str, Tensor]:
    """DINOv2 weights with the position table (1, 1 + n * n, dim) interpolated to a grid x grid of
    patches.
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
    """Fill a stripped tower; the published model has more (last block, final norm, mask token,
    pooling head).
    """
    absent, _ = tower.load_state_dict(weights, strict=False)
    if absent:
        raise ValueError(f"{type(tower).__name__}: the checkpoint lacks {absent[:5]}")
