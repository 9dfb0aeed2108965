"""LoRA adapters on the language model, and their merge into plain weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from rapport.policies.vla.model import FaceVLA

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTER = "default"


def add_lora(model: FaceVLA, rank: int, alpha: float) -> None:
    """Put adapters on every linear layer of the language model's blocks, in place.

    Afterwards the adapters, the projector, the slot embeddings, the token embeddings and the output
    head train (the action tokens are new to the language model); its blocks do not. The visual
    streams keep the state they had.

    Args:
        model: the policy.
        rank: of the adapters.
        alpha: an adapter's product counts alpha / rank times.
    """
    from peft import LoraConfig, inject_adapter_in_model

    was_trainable = {name for name, value in model.named_parameters() if value.requires_grad}
    blocks = rf".*language_model\.model\.layers\.\d+\..*\.({'|'.join(TARGETS)})"
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # declared int, but any number does
        target_modules=blocks,
    )
    # Injecting freezes all that is no adapter.
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, parameter in model.named_parameters():
        if "language_model.model.layers" not in name and name in was_trainable:
            parameter.requires_grad_(True)
    model.lora_scaling = alpha / rank


def merge_lora(state_dict: dict[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """W + scaling * B @ A for every adapted layer, under the plain model's names.

    Works on names and tensors alone, hence also on weights gathered from shards. Computed in
    float32, and then rounded to the dtype of W: `arrived_share` says what is left of the adapters.

    Args:
        state_dict: of a model that `add_lora` has changed.
        scaling: the model's `lora_scaling`.
    """
    merged: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if ".lora_" in name:
            continue
        if ".base_layer." not in name:
            merged[name] = tensor
            continue
        layer, leaf = name.split(".base_layer.")
        if leaf == "weight":
            update = _update(state_dict, layer, scaling)
            tensor = (tensor.float() + update).to(tensor.dtype)
        merged[f"{layer}.{leaf}"] = tensor
    return merged


def arrived_share(state_dict: dict[str, Tensor], scaling: float) -> float:
    """How much of what the adapters learnt the merged weights hold, 1 = all of it.

    It is the projection of the change of the rounded weights on the change that was learnt. In
    bfloat16 the grid at a weight of 0.02 is 1.2e-4: a smaller change is lost more often than not.

    Args:
        state_dict: of a model that `add_lora` has changed.
        scaling: the model's `lora_scaling`.
    """
    learnt = 0.0
    arrived = 0.0
    for name, weight in state_dict.items():
        if not name.endswith(".base_layer.weight"):
            continue
        update = _update(state_dict, name.removesuffix(".base_layer.weight"), scaling)
        rounded = (weight.float() + update).to(weight.dtype).float() - weight.float()
        learnt += float(update.square().sum())
        arrived += float((rounded * update).sum())
    return arrived / learnt if learnt else 1.0


def _update(state_dict: dict[str, Tensor], layer: str, scaling: float) -> Tensor:
    """What the adapters of a layer add to its weight, float32."""
    down = state_dict[f"{layer}.lora_A.{ADAPTER}.weight"]
    up = state_dict[f"{layer}.lora_B.{ADAPTER}.weight"]
    return scaling * up.float() @ down.float()
