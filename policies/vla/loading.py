"""Build, save and load the VLA policy."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    Dinov2Config,
    LlamaConfig,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
)

from rapport.files import atomic
from rapport.log import logger
from rapport.policies.policy import CheckpointError, write_kind
from rapport.policies.vla.actions import FILE_NAME as ACTIONS_FILE
from rapport.policies.vla.actions import (
    ActionSpace,
    ActionTokenizer,
    whole,
)
from rapport.policies.vla.config import TINY_DINO, TINY_SIGLIP, TINY_TEXT, FaceVLAConfig
from rapport.policies.vla.init import init_small
from rapport.policies.vla.lora import add_lora, merge_lora
from rapport.policies.vla.model import FaceVLA
from rapport.policies.vla.settings import SequenceConfig
from rapport.policies.vla.text import special_ids
from rapport.settings import Section

WEIGHTS_FILE = "model.safetensors"
# In a name that vLLM does not take for weights: it reads every *.safetensors of a folder.
ADAPTERS_FILE = "learnt.adapters"
# `load_pretrained` pads embeddings to a multiple of this, so fewer ids than this are spare.
EMBEDDING_MULTIPLE = 64
VOICE_TOKENS = 2  # of a chunk
TINY_POSITIONS = 1 << 16  # a tiny LLaMA has no table of them
AGAIN = "copy the whole folder again, or save the policy again"


@dataclass(frozen=True)
class SequenceSizes:
    """How a policy perceives and acts, chunk by chunk.

    Args:
        frames: speaker frames of a chunk.
        tokens_per_frame: a square number.
        voice: whether the policy hears the speaker.
        chunk: seconds.
        context: seconds after which a context begins anew; None = with every chunk.
        history: seconds of pictures and voice in its head.
        text_tokens: words of the past in its head.
        chunk_text: words of a chunk.
    """

    frames: int = 2
    tokens_per_frame: int = 1
    voice: bool = True
    chunk: float = 1.0
    context: float | None = None
    history: float = 3.0
    text_tokens: int = 24
    chunk_text: int = 8

    def fields(self, space: ActionSpace) -> dict[str, Any]:
        """The fields of `FaceVLAConfig` that say so.

        Raises:
            ActionError: a chunk is no whole number of actions, or a clip or a context no whole
                number of chunks.
        """
        chunk_steps = whole(
            space.rate * self.chunk,
            f"vla.action.rate {space.rate:g} Hz x vla.chunk {self.chunk:g} s",
        )
        chunks = whole(
            space.seconds / self.chunk,
            f"a clip of {space.seconds:g} s / vla.chunk {self.chunk:g} s",
        )
        seconds = self.chunk if self.context is None else self.context
        context = whole(
            seconds / self.chunk, f"vla.context {seconds:g} s / vla.chunk {self.chunk:g} s"
        )
        history = 0
        if self.history:
            history = whole(
                self.history / self.chunk,
                f"vla.history {self.history:g} s / vla.chunk {self.chunk:g} s",
            )
        return {
            "frames": self.frames,
            "tokens_per_frame": self.tokens_per_frame,
            "voice_tokens": VOICE_TOKENS if self.voice else 0,
            "chunk_seconds": self.chunk,
            "history": history,
            "text_tokens": self.text_tokens,
            "chunk_text": self.chunk_text,
            "chunk_steps": chunk_steps,
            # Longer contexts than clips are never met in training.
            "context_chunks": min(context, chunks),
            "action_dims": space.dims,
            "pose_dims": space.pose,
            "action_steps": space.steps,
        }


USUAL_SEQUENCE = SequenceSizes()


@dataclass(frozen=True)
class TinySizes:
    """Sizes of a small policy's networks.

    Args:
        image_size: height and width of frames in pixels.
        patch_size: pixels along one side of a patch.
        hidden: LLaMA's width.
        layers: LLaMA's blocks.
        heads: LLaMA's attention heads.
        kv_heads: LLaMA's key-value heads; the fewer, the faster the rollouts.
        tower_hidden: width of each visual stream.
        tower_layers: blocks of each visual stream.
        action_bins: bins of every action dimension.
        slot_embeddings: add learned embeddings of the action slot.
    """

    image_size: int = 56
    patch_size: int = 14
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    tower_hidden: int = 64
    tower_layers: int = 2
    action_bins: int = 256
    slot_embeddings: bool = True


# Key of a section of sizes -> field of `TinySizes`.
_NETWORK = {
    "hidden": "hidden",
    "layers": "layers",
    "heads": "heads",
    "kv_heads": "kv_heads",
    "vision_hidden": "tower_hidden",
    "vision_layers": "tower_layers",
}


def network_sizes(config: Section) -> dict[str, int]:
    """How wide and deep a section asks the networks to be, as fields of `TinySizes`."""
    return {field: getattr(config, key) for key, field in _NETWORK.items()}


def sequence_sizes(config: SequenceConfig, frame_rate: float) -> SequenceSizes:
    """How a section asks the policy to perceive and act.

    Args:
        config: of the policy.
        frame_rate: speaker frames a second in the corpus; 0 = it has none.
    """
    keys = {name: getattr(config, name) for name in SequenceConfig.model_fields}
    return SequenceSizes(frames=max(1, round(frame_rate * config.chunk)), **keys)


def tiny_config(
    tokenizer: PreTrainedTokenizerBase,
    space: ActionSpace,
    sequence: SequenceSizes = USUAL_SEQUENCE,
    **sizes: Any,
) -> FaceVLAConfig:
    """The small random-init size: same classes, same code path.

    Args:
        tokenizer: of `build_text_tokenizer`.
        space: what the actions stand for.
        sequence: how it perceives and acts.
        sizes: fields of `TinySizes` that differ from its defaults.
    """
    size = TinySizes(**sizes)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        # LLaMA's share of 8 / 3, as a multiple of 8.
        "intermediate_size": round(size.hidden * 8 / 3 / 8) * 8,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": TINY_POSITIONS,
    }
    tower = {
        "hidden_size": size.tower_hidden,
        "num_hidden_layers": size.tower_layers,
        "image_size": size.image_size,
        "patch_size": size.patch_size,
    }
    siglip = TINY_SIGLIP | tower | {"intermediate_size": 2 * size.tower_hidden}
    token_ids: dict[str, Any] = {**special_ids(tokenizer)}
    config = FaceVLAConfig(
        text_config=LlamaConfig(**TINY_TEXT | text),
        dino_config=Dinov2Config(**TINY_DINO | tower),
        siglip_config=SiglipVisionConfig(**siglip),
        image_size=size.image_size,
        action_bins=size.action_bins,
        action_token_start=len(tokenizer) - size.action_bins,
        slot_embeddings=size.slot_embeddings,
        **sequence.fields(space),
        **token_ids,
    )
    config.text_config.max_position_embeddings = max(1408, config.context_length)
    return config


def build_tiny(config: FaceVLAConfig, seed: int = 0) -> FaceVLA:
    """A randomly initialised policy, the same for the same seed.

    The caller's random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FaceVLA(config)
    init_small(model, seed=seed)
    return model


def serving_state_dict(
    model: FaceVLA, state_dict: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The weights as vLLM and `load_checkpoint` take them.

    Adapters are merged, and names are those of a plain `FaceVLA`.

    Args:
        model: the policy.
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
    base: Path | None = None,
) -> None:
    """Write a folder that transformers, vLLM and `load_checkpoint` read.

    It appears whole or not at all; an existing checkpoint at `path` is replaced.

    Args:
        model: the policy.
        tokenizer: its text tokenizer.
        actions: what its action tokens stand for.
        path: the folder.
        state_dict: the full weights where `model` holds only a shard of them (ZeRO-3).
        base: folder of the policy that adapters were put on. They are then kept beside the merged
            weights, so that engines can be compared with what was learnt (`load_unmerged`).
    """
    serving = serving_state_dict(model, state_dict)
    weights = {name: value.detach().cpu().contiguous() for name, value in serving.items()}
    model.config.dtype = next(iter(weights.values())).dtype
    with atomic(path) as partial:
        partial.mkdir()
        # A plain state dict, because `save_pretrained` may rename the keys of sub-models.
        save_file(weights, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        if model.lora_scaling is not None and base is not None:
            learnt = model.state_dict() if state_dict is None else state_dict
            _save_adapters(learnt, model.lora_scaling, partial / ADAPTERS_FILE, _way(path, base))
        model.config.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        actions.save(partial)
        write_kind(partial, "vla")


def _way(start: Path, end: Path) -> str:
    """From one folder to another, so that both can be moved together."""
    return os.path.relpath(end.resolve(), start.resolve())


def _save_adapters(state_dict: dict[str, Tensor], scaling: float, file: Path, base: str) -> None:
    adapters = {
        name: value.detach().cpu().contiguous()
        for name, value in state_dict.items()
        if ".lora_" in name
    }
    save_file(adapters, file, metadata={"format": "pt", "base": base, "scaling": str(scaling)})


def load_unmerged(path: Path, merged: FaceVLA) -> FaceVLA | None:
    """The policy as it was learnt: adapters beside the weights, in place of their rounded sum.

    Args:
        path: folder written by `save_checkpoint`.
        merged: what `load_checkpoint` makes of it.

    Returns:
        None where it was learnt without adapters, or what they were put on is gone.
    """
    file = path / ADAPTERS_FILE
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as adapters:
        about = adapters.metadata()
        learnt = {name: adapters.get_tensor(name) for name in adapters.keys()}  # noqa: SIM118
    base = path / about["base"]
    if not base.is_dir():
        logger.info(f"{path} was learnt on {base}, which is gone: its merged weights stand for it")
        return None
    model = load_checkpoint(base).model
    rank = next(value.shape[0] for name, value in learnt.items() if ".lora_A." in name)
    add_lora(model, rank, alpha=float(about["scaling"]) * rank)
    plain = model.state_dict().keys() & merged.state_dict().keys()
    kept = {name: value for name, value in merged.state_dict().items() if name in plain}
    _, unknown = model.load_state_dict(kept | learnt, strict=False)
    if unknown:
        raise CheckpointError(f"{file} holds adapters of another policy, e.g. {unknown[0]}")
    cast(nn.Module, model).eval()
    return model


@dataclass(frozen=True)
class Checkpoint:
    """A policy and what gives its tokens their meaning."""

    model: FaceVLA
    tokenizer: PreTrainedTokenizerBase
    actions: ActionTokenizer


def load_checkpoint(path: Path, dtype: torch.dtype | None = None) -> Checkpoint:
    """Read a folder written by `save_checkpoint`.

    Args:
        path: the folder.
        dtype: of the weights; None = as they were saved.

    Raises:
        CheckpointError: the folder is incomplete, damaged or of another model; says how.
    """
    path = Path(path)
    missing = [
        name for name in ("config.json", WEIGHTS_FILE, ACTIONS_FILE) if not (path / name).is_file()
    ]
    if missing:
        raise CheckpointError(
            f"{path} is no complete policy checkpoint: {missing} missing; save it again"
        )
    config = _read_config(path)
    actions = _read_actions(path)
    _check_actions(path, config, actions)
    tokenizer = _read_tokenizer(path, config)
    try:
        weights = load_file(path / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path / WEIGHTS_FILE} cannot be read ({error}): truncated? {AGAIN}"
        ) from error
    # Built without weights of its own, so that those of 7B are in memory once, not twice.
    with init_empty_weights(include_buffers=False):
        model = FaceVLA(config)
    _check_weights(path, model, weights)
    model.load_state_dict(weights, assign=True)
    if dtype is not None:
        cast_weights(model, dtype)
    # The cast is for type checkers, which cannot read transformers' own `eval`.
    cast(nn.Module, model).eval()
    return Checkpoint(model, tokenizer, actions)


def cast_weights(model: FaceVLA, dtype: torch.dtype) -> None:
    """Give the weights another dtype, in place.

    Buffers stay float32, unlike with `Module.to`: in bfloat16 the frequencies of rotary positions
    are off by up to 0.4 %, which is radians at the thousandth token.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _check_actions(path: Path, config: FaceVLAConfig, actions: ActionTokenizer) -> None:
    """Raise `CheckpointError` unless config and action space mean the same tokens."""
    expected = (
        config.action_token_start,
        config.action_bins,
        config.action_dims,
        config.action_steps,
    )
    actual = (actions.first_token, actions.bins, actions.space.dims, actions.space.steps)
    if expected != actual:
        raise CheckpointError(
            f"{path}: config.json and {ACTIONS_FILE} disagree on (first, bins, dims, steps): "
            f"{expected} and {actual}. One of them is another policy's: {AGAIN}"
        )


def _check_weights(path: Path, model: FaceVLA, weights: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` unless there is one tensor of the right shape for every weight."""
    expected = {name: value.shape for name, value in model.state_dict().items()}
    actual = {name: value.shape for name, value in weights.items()}
    names = expected.keys() | actual.keys()
    unlike = sorted(name for name in names if expected.get(name) != actual.get(name))
    if unlike:
        raise CheckpointError(
            f"{path}: {len(unlike)} weights do not fit config.json, e.g. {unlike[:3]}: {AGAIN}"
        )


def _read_config(path: Path) -> FaceVLAConfig:
    try:
        model_type = json.loads((path / "config.json").read_text())["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path / 'config.json'} is no model config ({error!r}): {AGAIN}"
        ) from error
    if model_type != FaceVLAConfig.model_type:
        raise CheckpointError(
            f"{path} holds a {model_type!r} model, expected {FaceVLAConfig.model_type!r}: name the "
            "folder of a policy that `sft` or `dpo` wrote"
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
    # Without this file, transformers would look for the folder's name on the hub.
    if not (path / "tokenizer_config.json").is_file():
        raise CheckpointError(f"{path} has no tokenizer_config.json: {AGAIN}")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
        actual = special_ids(tokenizer)
        # Ours names its action tokens; LLaMA's are ids taken from words.
        actual["action_token_start"] = tokenizer.get_vocab().get(
            "<action_0>", config.action_token_start
        )
    except Exception as error:  # `tokenizers` raises bare ones
        raise CheckpointError(
            f"the tokenizer in {path} cannot be used ({error}): {AGAIN}"
        ) from error
    expected = {name: getattr(config, name) for name in actual}
    vocabulary = config.text_config.vocab_size
    spare = vocabulary - len(tokenizer)
    if expected != actual or not 0 <= spare < EMBEDDING_MULTIPLE:
        raise CheckpointError(
            f"the tokenizer in {path} is another policy's: {len(tokenizer)} ids for a vocabulary "
            f"of {vocabulary}, ids {actual}, config.json has {expected}: {AGAIN}"
        )
    return tokenizer
