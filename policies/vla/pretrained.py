"""The `paper` size: LLaMA-2, DINOv2 and SigLIP checkpoints put together into a `FaceVLA`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from rapport.policies.policy import CheckpointError
from rapport.policies.vla.actions import ActionSpace
from rapport.policies.vla.config import FaceVLAConfig, image_side, patch_grid, read_dino_config
from rapport.policies.vla.encoders import FrameEncoder, VoiceEncoder
from rapport.policies.vla.init import pass_through
from rapport.policies.vla.loading import USUAL_SEQUENCE, SequenceSizes
from rapport.policies.vla.model import FaceVLA, SlotEmbedding
from rapport.policies.vla.text import load_llama_tokenizer, special_ids
from rapport.wording import first_line

COPY_AGAIN = "copy the whole checkpoint again"
# Field of `PublishedParts` -> `model_type` of its config.
KINDS = {
    "llama": ("llama",),
    "dino": ("dinov2", "dinov2_with_registers"),
    "siglip": ("siglip", "siglip_vision_model"),
}


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
    sequence: SequenceSizes = USUAL_SEQUENCE,
    action_bins: int = 256,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> tuple[FaceVLA, PreTrainedTokenizerBase]:
    """Build the policy from three pretrained parts; returns it and its text tokenizer.

    Its first action id is `config.action_token_start`. Each stream keeps its blocks up to the
    second-to-last. The patch grid is SigLIP's; DINOv2's positions are interpolated to it once. The
    projector is random; slot embeddings start at zero, which leaves the language model as it was.
    Where the language model's head is its embedding table (LLaMA 3.2 1B and 3B), the head becomes a
    table of its own: shards, files and engines then hold the two alike for every model.

    Args:
        parts: the checkpoints.
        space: what the actions stand for.
        sequence: how it perceives and acts.
        action_bins: bins of every action dimension.
        dtype: of the weights.
        seed: of the projector and of the new special tokens' embeddings.

    Raises:
        CheckpointError: a part cannot be used; says which and why.
    """
    check_parts(parts)
    tokenizer, start = load_llama_tokenizer(parts.llama, action_bins)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _load("llama", parts.llama, LlamaForCausalLM, dtype)
        _check_vocabulary(
            parts.llama, len(backbone.get_input_embeddings().weight), start + action_bins
        )
        # Mean resizing needs a covariance of the whole table; four marker tokens are not worth it.
        backbone.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
        dino_tower = _load("dino", parts.dino, AutoModel, dtype)
        siglip_tower = _load("siglip", parts.siglip, SiglipVisionModel, dtype)
        try:
            config = pretrained_config(
                llama=backbone.config,
                dino=dino_tower.config,
                siglip=siglip_tower.config,
                space=space,
                sequence=sequence,
                action_bins=action_bins,
                action_token_start=start,
                perception_scale=_rms(backbone.get_input_embeddings().weight),
                **special_ids(tokenizer),
            )
        except ValueError as error:
            raise CheckpointError(
                f"{parts.llama}, {parts.dino} and {parts.siglip} do not go together: {error}"
            ) from error
        with init_empty_weights(include_buffers=False):
            model = FaceVLA(config)
        language = backbone.state_dict()
        if backbone.config.tie_word_embeddings:
            language["lm_head.weight"] = language["lm_head.weight"].clone()
        model.language_model.load_state_dict(language, assign=True)
        table = model.get_input_embeddings().weight
        model.vision = FrameEncoder(config).to(table.device, dtype)
        pass_through(model.vision)
        if config.voice_tokens:
            model.voice = VoiceEncoder(config).to(table.device, dtype)
            pass_through(model.voice)
        slots = SlotEmbedding(config)
    for parameter in slots.parameters():
        nn.init.zeros_(parameter)
    model.slots = slots.to(table.device, dtype)
    dino_weights = resize_positions(dino_tower.state_dict(), patch_grid(siglip_tower.config))
    _copy_tower(model.vision.dino, dino_weights)
    _copy_tower(model.vision.siglip, siglip_tower.state_dict())
    return model, tokenizer


def _rms(weights: Tensor) -> float:
    """Root mean square."""
    return float(weights.detach().float().square().mean().sqrt())


def check_parts(parts: PublishedParts) -> None:
    """Look at what `load_pretrained` will read, without reading weights.

    Raises:
        CheckpointError: a part is of another kind, or a file is missing or damaged; names it.
    """
    for part, kinds in KINDS.items():
        name = getattr(parts, part)
        if Path(name).is_dir():
            _check_folder(f"vla.{part}={name}", Path(name))
        try:
            kind = AutoConfig.from_pretrained(name).model_type
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"vla.{part}={name}: {first_line(error)}") from error
        if kind not in kinds:
            raise CheckpointError(
                f"vla.{part}={name} is a {kind!r} checkpoint, it must be a {kinds[0]!r} one"
            )


def _check_folder(key: str, folder: Path) -> None:
    """Raise `CheckpointError` unless the folder has a config and all files that its index names."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{key} has no config.json: {COPY_AGAIN}")
    indices = sorted(folder.glob("*.index.json"))
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    for index in indices:
        try:
            named = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is no index of weights: {COPY_AGAIN}") from error
        absent = sorted(name for name in named if not (folder / name).is_file())
        if absent:
            raise CheckpointError(f"{key} lacks {', '.join(absent)}: {COPY_AGAIN}")
    if not files:
        raise CheckpointError(f"{key} has no weights (*.safetensors): {COPY_AGAIN}")
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt"):
                pass  # the header says how long the file must be
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}): {COPY_AGAIN}") from error


def _load(part: str, name: str, kind: Any, dtype: torch.dtype) -> Any:
    """One of the parts, whole.

    Raises:
        CheckpointError: it cannot be read, or weights are missing that transformers would draw.
    """
    key = f"vla.{part}={name}"
    try:
        model, report = kind.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{key} cannot be loaded: {first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{key} lacks {len(missing)} weights, e.g. {missing[0]}: {COPY_AGAIN}"
        )
    return model


def _check_vocabulary(name: str, rows: int, needed: int) -> None:
    """Raise `CheckpointError` where the tokenizer counts further than the weights."""
    if needed > rows:
        raise CheckpointError(
            f"vla.llama={name}: its tokenizer has ordinary ids up to {needed - 1}, its embeddings "
            f"{rows} rows: one of the two is another model's"
        )


def pretrained_config(
    llama: PretrainedConfig,
    dino: PretrainedConfig,
    siglip: PretrainedConfig,
    space: ActionSpace,
    sequence: SequenceSizes,
    **actions: Any,
) -> FaceVLAConfig:
    """The policy that three published configurations make.

    Args:
        llama: of the backbone.
        dino: of the DINOv2 stream, as published.
        siglip: of the SigLIP stream, as published; frames have its size.
        space: what the actions stand for.
        sequence: how it perceives and acts.
        actions: token ids and bins, by the field names of `FaceVLAConfig`.
    """
    dino_size = patch_grid(siglip) * dino.patch_size
    return FaceVLAConfig(
        text_config=LlamaConfig(**llama.to_dict() | {"tie_word_embeddings": False}),
        dino_config=read_dino_config(_kept(dino) | {"image_size": dino_size}),
        siglip_config=SiglipVisionConfig(**_kept(siglip)),
        image_size=image_side(siglip),
        **sequence.fields(space),
        **actions,
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


def freeze_perception(model: FaceVLA) -> None:
    """Keep all encoders as they are; the layers behind them still train."""
    for encoder in (model.vision, model.voice):
        if encoder is not None:
            encoder.requires_grad_(False)
            encoder.adapter.requires_grad_(True)


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
