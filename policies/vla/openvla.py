"""Weights of the OpenVLA lineage for a `FaceVLA` of the same sizes.

They are prismatic checkpoints, whose names are timm's. timm's ViT and transformers' hold the same
tensors under other names; timm keeps query, key and value in one matrix, and its register variant
of DINOv2 has no position for the class token (it is folded into the token). OpenVLA says
`scale_factor` where timm says `gamma`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from rapport.files import visible
from rapport.policies.vla.model import FaceVLA


@dataclass(frozen=True)
class TowerNames:
    """timm's names of a visual stream and transformers'.

    Args:
        prefix: where the stream is in `FaceVLA`.
        names: of what stands outside the blocks, with or without weight and bias.
        layers: where transformers keeps the blocks.
        block: names within a block, with or without weight and bias.
        attention: where a block keeps its query, key and value.
    """

    prefix: str
    names: dict[str, str]
    layers: str
    block: dict[str, str]
    attention: str


DINO = TowerNames(
    prefix="vision.dino",
    names={
        "cls_token": "embeddings.cls_token",
        "reg_token": "embeddings.register_tokens",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
    },
    layers="encoder.layer",
    block={
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "ls1.scale_factor": "layer_scale1.lambda1",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.scale_factor": "layer_scale2.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    },
    attention="attention",
)
SIGLIP = TowerNames(
    prefix="vision.siglip",
    names={
        "pos_embed": "embeddings.position_embedding.weight",
        "patch_embed.proj": "embeddings.patch_embedding",
    },
    layers="encoder.layers",
    block={
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    attention="self_attn",
)


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
    shards = visible(Path(folder), "*.safetensors")
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
        name: in the checkpoint.
        tensor: its value.
        dino_positions: rows of our DINOv2 position table, class token included.
    """
    if name.startswith("language_model."):
        return {name: tensor}
    if name.startswith("projector."):
        return {f"vision.{name}": tensor}
    dino_prefix = "vision_backbone.featurizer."
    if name.startswith(dino_prefix):
        return _translate_dino(name.removeprefix(dino_prefix), tensor, dino_positions)
    siglip_prefix = "vision_backbone.fused_featurizer."
    if name.startswith(siglip_prefix):
        return _translate_siglip(name.removeprefix(siglip_prefix), tensor)
    return {}


def _translate_dino(name: str, tensor: Tensor, positions: int) -> dict[str, Tensor]:
    # The register variant has no position for the class token: ours gets zeros.
    if name == "pos_embed" and tensor.shape[1] == positions - 1:
        tensor = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
    return _translate_tower(DINO, name, tensor)


def _translate_siglip(name: str, tensor: Tensor) -> dict[str, Tensor]:
    # timm's table has a batch axis; ours is the weight of an embedding.
    if name == "pos_embed":
        tensor = tensor[0]
    return _translate_tower(SIGLIP, name, tensor)


def _translate_tower(tower: TowerNames, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A timm ViT tensor under its transformers name."""
    if name in tower.names:
        return {f"{tower.prefix}.{tower.names[name]}": tensor}
    stem, _, leaf = name.rpartition(".")
    if stem in tower.names:
        return {f"{tower.prefix}.{tower.names[stem]}.{leaf}": tensor}
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None:
        return {}
    layer = f"{tower.prefix}.{tower.layers}.{match[1]}"
    inner = match[2]
    if inner in tower.block:
        return {f"{layer}.{tower.block[inner]}": tensor}
    stem, _, leaf = inner.rpartition(".")
    if stem == "attn.qkv":
        return {
            f"{layer}.{tower.attention}.{part}_proj.{leaf}": piece
            for part, piece in zip("qkv", tensor.chunk(3), strict=True)
        }
    if stem in tower.block:
        return {f"{layer}.{tower.block[stem]}.{leaf}": tensor}
    return {}


@torch.no_grad()
def load_openvla(model: FaceVLA, weights: Iterable[tuple[str, Tensor]]) -> LoadReport:
    """Fill the model with what fits of an OpenVLA-lineage checkpoint, in place.

    Needs `dino_config` of type "dinov2_with_registers" (4 registers), SigLIP with
    `hidden_act="gelu"` and image size 224, as OpenVLA has them. The vocabularies may differ in
    length: the rows that both have are taken. OpenVLA's action ids fall with the value and ours
    rise; they are re-learnt in fine-tuning.

    Args:
        model: the policy.
        weights: name and tensor, e.g. from `read_weights`.
    """
    parameters = dict(model.named_parameters())
    positions = parameters["vision.dino.embeddings.position_embeddings"].shape[1]
    report = LoadReport()
    for foreign_name, tensor in weights:
        translated = translate(foreign_name, tensor, positions)
        if not translated or not translated.keys() <= parameters.keys():
            report.unused.append(foreign_name)
            continue
        for name, value in translated.items():
            target = parameters[name]
            if _fill(name, target, value):
                report.loaded.append(name)
            else:
                report.mismatched.append(
                    f"{name} {tuple(target.shape)} here, {tuple(value.shape)} there"
                )
    mismatched = {entry.split()[0] for entry in report.mismatched}
    known = mismatched | set(report.loaded)
    report.missing = [name for name in parameters if name not in known]
    return report


def _fill(name: str, target: Tensor, value: Tensor) -> bool:
    """Copy a value into a parameter in place, if its shape allows; returns whether it did."""
    per_token = name.endswith(("embed_tokens.weight", "lm_head.weight"))
    if per_token and target.shape[1] == value.shape[1]:
        rows = min(len(target), len(value))
        target[:rows].copy_(value[:rows])
        return True
    if target.shape == value.shape:
        target.copy_(value)
        return True
    return False
