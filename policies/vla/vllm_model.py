"""`FaceVLA` inside vLLM: the same frame encoder and slot embeddings, vLLM's LLaMA in between.

Parameter names are those of `rapport.policies.vla.model.FaceVLA`, so one safetensors file serves
both. Written against vLLM 0.32; only `rapport.policies.vla.vllm_plugin` imports this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import MultiModalEmbeddings, SupportsMultiModal
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.model import FrameEncoder, SlotEmbedding

if TYPE_CHECKING:
    from vllm.model_executor.models.llama import LlamaForCausalLM


class FaceVLAInfo(BaseProcessingInfo):
    """Sizes of the visual prompt."""

    def get_hf_config(self) -> FaceVLAConfig:
        """The policy's configuration."""
        return self.ctx.get_hf_config(FaceVLAConfig)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Frames of a prompt."""
        return {"image": self.get_hf_config().frames}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Tokens of a frame."""
        return {"image": self.get_hf_config().patches}


class FaceVLADummyInputs(BaseDummyInputsBuilder[FaceVLAInfo]):
    """Inputs that vLLM sizes its memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """An empty text, because frames need none beside them."""
        return ""

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Black frames of the right size."""
        size = self.info.get_hf_config().image_size
        return {"image": [np.zeros((size, size, 3), dtype=np.uint8)] * mm_counts.get("image", 0)}


class FaceVLAProcessor(BaseMultiModalProcessor[FaceVLAInfo]):
    """uint8 frames pass through as they are; each <image> becomes one token per patch."""

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        size = self.info.get_hf_config().image_size
        images = cast(Iterable[object], hf_data.get("images", []))
        frames = [np.asarray(image) for image in images]
        for frame in frames:
            if frame.shape != (size, size, 3) or frame.dtype != np.uint8:
                raise ValueError(
                    f"a frame must be ({size}, {size}, 3) uint8, got {frame.shape} "
                    f"{frame.dtype}; use select_frames"
                )
        if not frames:
            return BatchFeature({})
        return BatchFeature({"frames": torch.from_numpy(np.stack(frames))})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {"frames": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self, mm_items: object, hf_processor_mm_kwargs: object, out_mm_kwargs: object
    ) -> Sequence[PromptReplacement]:
        config = self.info.get_hf_config()
        image = config.image_token_id
        patches = PromptUpdateDetails.select_token_id(
            [image] * config.patches, embed_token_id=image
        )
        return [PromptReplacement(modality="image", target=[image], replacement=lambda _: patches)]


@MULTIMODAL_REGISTRY.register_processor(
    FaceVLAProcessor, info=FaceVLAInfo, dummy_inputs=FaceVLADummyInputs
)
class FaceVLAForVLLM(nn.Module, SupportsMultiModal):
    """See the module docstring. Registered under the architecture name `FaceVLA`."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """None, because prompts come as token ids."""
        return None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = cast(FaceVLAConfig, vllm_config.model_config.hf_config)
        self.config = config
        with self._mark_tower_model(vllm_config, "image"):
            self.vision = FrameEncoder(config)
        with self._mark_language_model(vllm_config):
            llama = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=["LlamaForCausalLM"],
            )
        self.language_model = cast("LlamaForCausalLM", llama)
        hidden = config.text_config.hidden_size
        self.slots: SlotEmbedding | None = None
        if config.slot_embeddings:
            self.slots = SlotEmbedding(config.action_dims, config.action_steps, hidden)
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    # vLLM's own LLaMA does not meet vLLM's own protocol to the letter.
    def get_language_model(self) -> LlamaForCausalLM:  # type: ignore[override]
        """The LLaMA, which is vLLM's own."""
        return self.language_model

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """`frames` (images, height, width, 3) uint8 -> (images, patches, hidden)."""
        frames = cast(Tensor | None, kwargs.get("frames"))
        if frames is None:
            return []
        tokens: Tensor = self.vision(frames)
        return tokens

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: None = None,
        inputs_embeds: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """Hidden states (tokens, hidden) of a batch of sequences, one after the other.

        Positions (tokens,) count from the first token of a prompt, so they tell the action slot.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed_input_ids(cast(Tensor, input_ids))
        if self.slots is not None:
            inputs_embeds = inputs_embeds + self.slots(positions - (self.config.prompt_length - 1))
        hidden: Tensor = self.language_model.model(
            None, positions, intermediate_tensors, inputs_embeds=inputs_embeds
        )
        return hidden

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits over the whole vocabulary."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Read the weights of a checkpoint; returns the names that were filled."""
        return AutoWeightsLoader(self).load_weights(weights)
