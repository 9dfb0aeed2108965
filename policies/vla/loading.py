"""Build, save and load the VLA policy."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rapport.policies.vla.actions import FILE_NAME as ACTIONS_FILE
from rapport.policies.vla.actions import ActionSpace, ActionTokenizer
from rapport.policies.vla.config import TINY_DINO, TINY_SIGLIP, TINY_TEXT, FaceVLAConfig
from rapport.policies.vla.init import init_small
from rapport.policies.vla.lora import merge_lora
from rapport.policies.vla.model import FaceVLA
from rapport.policies.vla.text import special_ids

WEIGHTS_FILE = "model.safetensors"
EMBEDDING_MULTIPLE = (
    64  # pretrained embeddings are padded to it (`load_pretrained`): fewer ids are spare
)
AGAIN = "copy the whole folder again, or save the policy again"


class CheckpointError(RuntimeError):
    """A checkpoint folder is incomplete, damaged or of another model."""


def tiny_config(
    tokenizer: PreTrainedTokenizerBase,
    space: ActionSpace,
    frames: int = 4,
    image_size: int = 56,
    patch_size: int = 14,
    text_tokens: int = 16,
    hidden: int = 128,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    tower_hidden: int = 64,
    tower_layers: int = 2,
    action_bins: int = 256,
    slot_embeddings: bool = True,
) -> FaceVLAConfig:
    """The small random-init size: same classes, same code path. `tokenizer` is one of
    `build_text_tokenizer`.
    """
    prompt = frames * (image_size // patch_size) ** 2 + text_tokens + 2
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": round(hidden * 8 / 3 / 8) * 8,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": max(1280, prompt + space.tokens),
    }
    tower = {
        "hidden_size": tower_hidden,
        "num_hidden_layers": tower_layers,
        "image_size": image_size,
        "patch_size": patch_size,
    }
    return FaceVLAConfig(
        text_config={**TINY_TEXT, **sizes},
        dino_config={**TINY_DINO, **tower},
        siglip_config={**TINY_SIGLIP, **tower, "intermediate_size": 2 * tower_hidden},
        image_size=image_size,
        frames=frames,
        text_tokens=text_tokens,
        action_dims=space.dims,
        action_steps=space.steps,
        action_bins=action_bins,
        action_token_start=len(tokenizer) - action_bins,
        slot_embeddings=slot_embeddings,
        **special_ids(tokenizer),
    )


def build_tiny(config: FaceVLAConfig, seed: int = 0) -> FaceVLA:
    """A randomly initialised policy, the same for the same seed; the caller's random state is left
    alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FaceVLA(config)
    init_small(model, seed=seed)
    return model


def weight_digest(state_dict: dict[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes; does not depend on the order of the entries."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def serving_state_dict(
    model: FaceVLA, state_dict: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The weights as vLLM and `load_checkpoint` take them: adapters merged, names those of a plain
    `FaceVLA`.

    Args:
        state_dict: the full weights where `model` holds only a shard of them (ZeRO-3).
    """
    weights = model.state_dict() if state_dict is None else state_dict
    return weights if model.lora_scaling is None else merge_lora(weights, model.lora_scaling)


def save_checkpoint(
    model: FaceVLA,
    tokenizer: PreTrainedTokenizerBase,
    actions: ActionTokenizer,
    path: Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Write a folder that transformers, vLLM and `load_checkpoint` read; it appears whole or not at
    all.

    Plain state dict, because `save_pretrained` may rename the keys of sub-models. An existing
    checkpoint at `path` is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    weights = {
        k: v.detach().cpu().contiguous() for k, v in serving_state_dict(model, state_dict).items()
    }
    save_file(weights, partial / WEIGHTS_FILE, metadata={"format": "pt"})
    model.config.dtype = next(iter(weights.values())).dtype
    model.config.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    actions.save(partial)
    partial.chmod(0o755)
    replaced = partial.with_name(f"{partial.name}.replaced")
    if path.exists():
        path.rename(replaced)
    partial.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


@dataclass(frozen=True)
class Checkpoint:
    """A policy and what gives its tokens their meaning."""

    model: FaceVLA
    tokenizer: PreTrainedTokenizerBase
    actions: ActionTokenizer


def load_checkpoint(path: Path, dtype: torch.dtype | None = None) -> Checkpoint:
    """Read a folder written by `save_checkpoint`. Raises `CheckpointError` saying what is wrong
    with it.
    """
    path = Path(path)
    missing = [
        name for name in ("config.json", WEIGHTS_FILE, ACTIONS_FILE) if not (path / name).is_file()
    ]
    if missing:
        raise CheckpointError(
            f"{path} is no complete policy checkpoint: {missing} missing; save it again"
        )
    config, actions = _read_config(path), _read_actions(path)
    meant = (config.action_token_start, config.action_bins, config.action_dims, config.action_steps)
    given = (actions.first_token, actions.bins, actions.space.dims, actions.space.steps)
    if meant != given:
        raise CheckpointError(
            f"{path}: config.json and {ACTIONS_FILE} disagree on (first, bins, dims, steps): "
            f"{meant} and {given}. "
            f"One of them is another policy's: {AGAIN}"
        )
    tokenizer = _read_tokenizer(path, config)
    try:
        weights = load_file(path / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path / WEIGHTS_FILE} cannot be read ({error}): truncated? {AGAIN}"
        ) from error
    with init_empty_weights(include_buffers=False):  # 7B weights are in memory once, not twice
        model = FaceVLA(config)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    unlike = [
        name
        for name in expected.keys() | weights.keys()
        if name not in expected or name not in weights or expected[name] != weights[name].shape
    ]
    if unlike:
        some = sorted(unlike)[:3]
        raise CheckpointError(
            f"{path}: {len(unlike)} weights do not fit config.json, e.g. {some}: {AGAIN}"
        )
    model.load_state_dict(weights, assign=True)
    if dtype is not None:
        model = model.to(dtype)
    return Checkpoint(model.eval(), tokenizer, actions)


def _read_config(path: Path) -> FaceVLAConfig:
    try:
        found = json.loads((path / "config.json").read_text())["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path / 'config.json'} is no model config ({error!r}): {AGAIN}"
        ) from error
    if found != FaceVLAConfig.model_type:
        raise CheckpointError(
            f"{path} holds a {found!r} model, expected {FaceVLAConfig.model_type!r}: name the "
            "folder of a policy that "
            "`sft` or `dpo` wrote"
        )
    try:
        return FaceVLAConfig.from_pretrained(path)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path / 'config.json'} describes no policy ({error}): {AGAIN}"
        ) from error


def _read_actions(path: Path) -> ActionTokenizer:
    try:
        return ActionTokenizer.load(path)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path / ACTIONS_FILE} describes no action space ({error!r}): {AGAIN}"
        ) from error


def _read_tokenizer(path: Path, config: FaceVLAConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, once it is clear that its ids mean what the config says."""
    if not (
        path / "tokenizer_config.json"
    ).is_file():  # transformers would look for the folder's name on the hub
        raise CheckpointError(f"{path} has no tokenizer_config.json: {AGAIN}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        found = special_ids(tokenizer)
        # Ours names its action tokens; LLaMA's are ids taken from words.
        found["action_token_start"] = tokenizer.get_vocab().get(
            "<action_0>", config.action_token_start
        )
    except Exception as error:  # `tokenizers` raises bare ones
        raise CheckpointError(
            f"the tokenizer in {path} cannot be used ({error}): {AGAIN}"
        ) from error
    meant = {name: getattr(config, name) for name in found}
    spare = config.text_config.vocab_size - len(tokenizer)
    if meant != found or not 0 <= spare < EMBEDDING_MULTIPLE:
        raise CheckpointError(
            f"the tokenizer in {path} is another policy's: {len(tokenizer)} ids for a vocabulary "
            "of "
            f"{config.text_config.vocab_size}, ids {found}, config.json has {meant}: {AGAIN}"
        )
    return tokenizer
