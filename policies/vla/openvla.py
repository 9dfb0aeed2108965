"""Weights of the OpenVLA lineage (prismatic checkpoints: timm names) for a `FaceVLA` of the same
sizes.

timm's ViT and transformers' hold the same tensors under other names; timm keeps query, key and
value in one matrix, and its register variant of DINOv2 has no position for the class token (it is
folded into the token). OpenVLA says `scale_factor` where timm says `gamma`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from rapport.policies.vla.model import FaceVLA

DINO_NAMES = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
}
DINO_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls1.scale_factor": "layer_scale1.lambda1",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.scale_factor": "layer_scale2.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
SIGLIP_NAMES = {
    "pos_embed": "embeddings.position_embedding.weight",
    "patch_embed.proj": "embeddings.patch_embedding",
}
SIGLIP_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@dataclass
class LoadReport:
    """What became of a foreign checkpoint.

    Args:
        loaded: our parameter names that were filled.
        missing: ours that the checkpoint does not have; they keep their initial values.
        unused: the checkpoint's names that have no place here (last blocks, final norms, pooling
            heads).
        mismatched: ours whose shape differs, with both shapes; they keep their initial values.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        for name in ("missing", "mismatched", "unused"):
            entries = getattr(self, name)
            if entries:
                shown = ", ".join(entries[:6]) + (", ..." if len(entries) > 6 else "")
                lines.append(f"{len(entries)} {name}: {shown}")
        return "\n".join(lines)


def read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of all safetensors shards of a folder, one at a time."""
    shards = sorted(Path(folder).glob("*.safetensors"))
    if not shards:
        raise FileNotFoundError(
            f"no *.safetensors in {folder}; download the checkpoint there first"
        )
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no dict)
                yield name, file.get_tensor(name)


def translate(name: str, tensor: Tensor, dino_positions: int) -> dict[str, Tensor]:
    """One tensor of a prismatic checkpoint under our names; empty when it has no place.

    Args:
        dino_positions: rows of our DINOv2 position table, class token included.
    """
    if name.startswith("language_model."):
        return {name: tensor}
    if name.startswith("projector."):
        return {f"vision.{name}": tensor}
    for prefix, translate_tower in (
        ("vision_backbone.featurizer.", _dino),
        ("vision_backbone.fused_featurizer.", _siglip),
    ):
        if name.startswith(prefix):
            return translate_tower(name.removeprefix(prefix), tensor, dino_positions)
    return {}


def _dino(name: str, tensor: Tensor, positions: int) -> dict[str, Tensor]:
    if name == "pos_embed" and tensor.shape[1] == positions - 1:
        tensor = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
    return _tower("vision.dino", name, tensor, DINO_NAMES, "encoder.layer", DINO_BLOCK, "attention")


def _siglip(name: str, tensor: Tensor, positions: int) -> dict[str, Tensor]:
    if name == "pos_embed":
        tensor = tensor[0]
    return _tower(
        "vision.siglip", name, tensor, SIGLIP_NAMES, "encoder.layers", SIGLIP_BLOCK, "self_attn"
    )


def _tower(
    tower: str,
    name: str,
    tensor: Tensor,
    names: dict[str, str],
    layers: str,
    block: dict[str, str],
    attention: str,
) -> dict[str, Tensor]:
    """A timm ViT tensor under its transformers name; `names` and `block` map with or without
    weight/bias.
    """
    if name in names:
        return {f"{tower}.{names[name]}": tensor}
    stem, _, leaf = name.rpartition(".")
    if stem in names:
        return {f"{tower}.{names[stem]}.{leaf}": tensor}
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None:
        return {}
    layer, inner = f"{tower}.{layers}.{match[1]}", match[2]
    if inner in block:
        return {f"{layer}.{block[inner]}": tensor}
    stem, _, leaf = inner.rpartition(".")
    if stem == "attn.qkv":
        return {
            f"{layer}.{attention}.{part}_proj.{leaf}": piece
            for part, piece in zip("qkv", tensor.chunk(3), strict=True)
        }
    return {f"{layer}.{block[stem]}.{leaf}": tensor} if stem in block else {}


@torch.no_grad()
def load_openvla(model: FaceVLA, weights: Iterable[tuple[str, Tensor]]) -> LoadReport:
    """Fill the model with what fits of an OpenVLA-lineage checkpoint, in place.

    Needs `dino_config` of type "dinov2_with_registers" (4 registers), SigLIP with
    `hidden_act="gelu"` and image size 224, as OpenVLA has them. The vocabularies may differ in
    length: the rows that both have are taken. OpenVLA's action ids fall with the value and ours
    rise; they are re-learnt in fine-tuning.

    Args:
        weights: name and tensor, e.g. from `read_weights`.
    """
    own = dict(model.named_parameters())
    positions = own["vision.dino.embeddings.position_embeddings"].shape[1]
    report = LoadReport()
    for name, tensor in weights:
        placed = translate(name, tensor, positions)
        if not placed.keys() <= own.keys() or not placed:
            report.unused.append(name)
            continue
        for ours, value in placed.items():
            target = own[ours]
            if (
                ours.endswith(("embed_tokens.weight", "lm_head.weight"))
                and target.shape[1] == value.shape[1]
            ):
                rows = min(len(target), len(value))
                target[:rows].copy_(value[:rows])
            elif target.shape == value.shape:
                target.copy_(value)
            else:
                report.mismatched.append(
                    f"{ours} {tuple(target.shape)} here, {tuple(value.shape)} there"
                )
                continue
            report.loaded.append(ours)
    touched = {entry.split()[0] for entry in report.mismatched} | set(report.loaded)
    report.missing = [name for name in own if name not in touched]
    return report
