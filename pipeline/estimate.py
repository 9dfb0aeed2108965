"""How much memory and disk a run of given sizes takes: arithmetic, nothing is measured here.

Sources: weights, gradients and optimiser states by ZeRO stage, Rajbhandari et al. 2020 (arXiv
1910.02054, section 3.1 and figure 1); activations, Korthikanti et al. 2022 (arXiv 2205.05198, Eq.
1, without the attention matrix that fused attention never stores): 17 values a token, layer and
unit of width; 22 by measurement of LLaMA-2-7B with adapters on an H100 (11.8 GiB a sequence).
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
ACTIVATIONS = 22  # values kept of a token, in a layer, for each unit of its width
KEPT_CHECKPOINTS = 2  # of a learning phase, while it runs


@dataclass(frozen=True)
class ModelSize:
    """What the estimates need to know of a policy.

    Args:
        parameters: their number.
        trainable: how many of them are learnt.
        layers: of the language model; so are `hidden`, `kv_heads` and `head_dim`.
        prompt_tokens: of what is seen, heard and read over a reaction.
        action_tokens: of the reaction, between them.
    """

    parameters: int
    trainable: int
    layers: int
    hidden: int
    kv_heads: int
    head_dim: int
    prompt_tokens: int
    action_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.action_tokens


def optimizer_bytes(trainable: int, dtype: str) -> int:
    """Adam's two moments in float32; for bfloat16 weights a float32 master copy too."""
    return trainable * (8 if dtype == "float32" else 12)


def learner_bytes(
    size: ModelSize,
    dtype: str,
    zero_stage: int,
    world_size: int,
    sequences: int,
    checkpointing: bool = False,
) -> dict[str, int]:
    """Per learner: weights, gradients, optimiser, activations, bytes.

    Args:
        size: of the policy.
        dtype: of weights and activations.
        zero_stage: what is shared out: 1 = optimiser, 2 = gradients too, 3 = weights too.
        world_size: learners.
        sequences: that go through at once.
        checkpointing: only what enters a layer is kept, and one layer at a time computed again.
    """
    width = DTYPE_BYTES[dtype]
    share = {stage: world_size if zero_stage >= stage else 1 for stage in (1, 2, 3)}
    layers = ACTIVATIONS * size.layers if not checkpointing else size.layers + ACTIVATIONS
    return {
        "weights": size.parameters * width // share[3],
        "gradients": size.trainable * width // share[2],
        "optimiser": optimizer_bytes(size.trainable, dtype) // share[1],
        "activations": layers * width * sequences * size.tokens * size.hidden,
    }


def kv_bytes_per_token(size: ModelSize, dtype: str) -> int:
    """Keys and values of one token in every layer, bytes."""
    return 2 * size.layers * size.kv_heads * size.head_dim * DTYPE_BYTES[dtype]


def kv_sequences(size: ModelSize, dtype: str, kv_cache_gib: float, samples: int) -> float:
    """Groups of candidates that the key-value cache holds at once.

    Each candidate has a context of its own: what it perceives stands between what it did.

    Args:
        size: of the policy.
        dtype: of the cache.
        kv_cache_gib: its size.
        samples: candidates in a group.
    """
    group = samples * size.tokens
    return kv_cache_gib * GIB / (kv_bytes_per_token(size, dtype) * group)


def decoding_bytes(size: ModelSize, dtype: str, sequences: float) -> float:
    """Read from memory in a step that gives each of `sequences` a token, bytes.

    All weights, and the keys and values of what each sequence holds half-way.
    """
    held = size.tokens / 2
    return size.parameters * DTYPE_BYTES[dtype] + sequences * held * kv_bytes_per_token(size, dtype)


def engine_bytes(
    size: ModelSize, dtype: str, kv_cache_gib: float, tensor_parallel: int
) -> dict[str, int]:
    """Per shard of an engine, bytes."""
    return {
        "weights": size.parameters * DTYPE_BYTES[dtype] // tensor_parallel,
        "KV cache": round(kv_cache_gib * GIB),
    }


def object_store_bytes(
    size: ModelSize, dtype: str, prompts_in_flight: int, prompt_bytes: int
) -> dict[str, int]:
    """What lies in Ray's object store while weights are updated and prompts are streamed, bytes."""
    return {
        "weights": size.parameters * DTYPE_BYTES[dtype],
        "prompts": prompts_in_flight * prompt_bytes,
    }


def disk_bytes(size: ModelSize, dtype: str, corpus_bytes: int, policies: int) -> dict[str, int]:
    """What a run directory grows to, bytes; it holds one learning phase's checkpoints at a time."""
    weights = size.parameters * DTYPE_BYTES[dtype]
    return {
        "policies": policies * weights,
        "checkpoints": KEPT_CHECKPOINTS * (weights + optimizer_bytes(size.trainable, dtype)),
        "corpus": corpus_bytes,
    }
