"""Small checkpoints in the form that LLaMA, DINOv2 and SigLIP are published in."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from rapport.policies.vla.pretrained import PublishedParts

LLAMA_2 = {"first": ("<unk>", "<s>", "</s>"), "bos_token": "<s>", "eos_token": "</s>"}
LLAMA_3 = {
    "last": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        *(f"<|reserved_special_token_{i}|>" for i in range(254)),
    ),
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|end_of_text|>",
}
QWEN = {
    "last": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(19))),
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
}


def save_tokenizer(folder: Path, ordinary: int, first=(), last=(), **names: str) -> int:
    """A byte-level tokenizer without merges; returns how many ids it has.

    Args:
        folder: to save into.
        ordinary: ids that are not special.
        first: special tokens before them.
        last: special tokens after them.
        names: the special tokens' parts, e.g. `bos_token`.
    """
    words = [*first, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"<rare{i}>" for i in range(ordinary - 256)]
    inner = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    # The second half of what stands at the end is added but not special, like Qwen's <tool_call>.
    special = [AddedToken(word, special=True) for word in (*first, *last[: (len(last) + 1) // 2])]
    inner.add_special_tokens(special)
    inner.add_tokens([AddedToken(word, special=False) for word in last[(len(last) + 1) // 2 :]])
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    return len(words) + len(last)


def save_parts(
    folder: Path, layout=LLAMA_2, ordinary=597, padding=0, *, width=32, heads=2, layers=2, **llama
) -> PublishedParts:
    """The three checkpoints, of three blocks in each tower; DINOv2 has another resolution.

    Args:
        folder: to save into.
        layout: of the tokenizer.
        ordinary: its ids that are not special.
        padding: rows of the embeddings beyond the tokenizer's ids.
        width: of the language model.
        heads: of its attention.
        layers: of the language model.
        llama: more of its config.
    """
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": 14}
    dino = Dinov2Config(**tower, image_size=112, mlp_ratio=2)
    Dinov2Model(dino).save_pretrained(folder / "dino")
    siglip = SiglipVisionConfig(**tower, image_size=56, intermediate_size=32)
    SiglipVisionModel(siglip).save_pretrained(folder / "siglip")
    ids = save_tokenizer(folder / "llama", ordinary, **layout)
    config = {
        "vocab_size": ids + padding,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 256,
    }
    LlamaForCausalLM(LlamaConfig(**config | llama)).save_pretrained(
        folder / "llama", max_shard_size="100KB"
    )
    return PublishedParts(*(str(folder / name) for name in ("llama", "dino", "siglip")))


def shards(folder: Path) -> list[str]:
    """Names of the files that a checkpoint's weights are spread over."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return sorted(set(index["weight_map"].values()))
