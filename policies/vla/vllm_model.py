"""`FaceVLA` inside vLLM: the same encoders and slot embeddings, vLLM's LLaMA in between.

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
from rapport.policies.vla.encoders import FrameEncoder, VoiceEncoder
from rapport.policies.vla.model import SlotEmbedding
from rapport.policies.vla.prompt import picture_shape, voice_shape

if TYPE_CHECKING:
    from vllm.model_executor.models.llama import LlamaForCausalLM


ITEM_FIELDS = ("frames", "voice", "present")


class FaceVLAInfo(BaseProcessingInfo):
    """Sizes of what is perceived. An "image" is an item: pictures and voice of a chunk."""

    def get_hf_config(self) -> FaceVLAConfig:
        """The policy's configuration."""
        return self.ctx.get_hf_config(FaceVLAConfig)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Items of a context."""
        config = self.get_hf_config()
        return {"image": config.history + config.context_chunks}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Tokens of an item."""
        return {"image": self.get_hf_config().item_tokens}


class FaceVLADummyInputs(BaseDummyInputsBuilder[FaceVLAInfo]):
    """Inputs that vLLM sizes its memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """No text: prompts are token ids."""
        return ""

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A black pixel for each item."""
        return {"image": [np.zeros((1, 1, 3), dtype=np.uint8)] * mm_counts.get("image", 0)}


class FaceVLAProcessor(BaseMultiModalProcessor[FaceVLAInfo]):
    """Of dummies: items of prompts come ready-made (`vllm_plugin.engine_prompt`)."""

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        count = len(cast(Sequence[object], hf_data.get("images", [])))
        if not count:
            return BatchFeature({})
        config = self.info.get_hf_config()
        return BatchFeature(
            {
                "frames": torch.zeros((count, *picture_shape(config)), dtype=torch.uint8),
                "voice": torch.zeros((count, *voice_shape(config)), dtype=torch.uint8),
                "present": torch.ones((count, 2), dtype=torch.bool),
            }
        )

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {name: MultiModalFieldConfig.batched("image") for name in ITEM_FIELDS}

    def _get_prompt_updates(
        self, mm_items: object, hf_processor_mm_kwargs: object, out_mm_kwargs: object
    ) -> Sequence[PromptReplacement]:
        config = self.info.get_hf_config()
        image = config.image_token_id
        tokens = PromptUpdateDetails.select_token_id(
            [image] * config.item_tokens, embed_token_id=image
        )
        return [PromptReplacement(modality="image", target=[image], replacement=lambda _: tokens)]


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
            self.voice: VoiceEncoder | None = None
            if config.voice_tokens:
                self.voice = VoiceEncoder(config)
        with self._mark_language_model(vllm_config):
            llama = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=["LlamaForCausalLM"],
            )
        self.language_model = cast("LlamaForCausalLM", llama)
        self.slots: SlotEmbedding | None = None
        if config.slot_embeddings:
            self.slots = SlotEmbedding(config)
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    # vLLM's own LLaMA does not meet vLLM's own protocol to the letter.
    def get_language_model(self) -> LlamaForCausalLM:  # type: ignore[override]
        """The LLaMA, which is vLLM's own."""
        return self.language_model

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Items -> the tokens of those streams that each of them has, (n, hidden) each.

        `frames` (items, frames, size, size, 3) uint8, `voice` (items, time, bands) uint8, `present`
        (items, 2) bool. In place of frames and voice, `perceived` (items, item_tokens, hidden):
        what the encoders have made of them already.
        """
        if "present" not in kwargs:
            return []
        present = cast(Tensor, kwargs["present"])
        if "perceived" in kwargs:
            perceived = cast(Tensor, kwargs["perceived"])
            widths = [self.config.picture_tokens, self.config.voice_tokens]
            tokens = list(torch.split(perceived, widths, dim=1))
        else:
            tokens = self._perceive(cast(Tensor, kwargs["frames"]), cast(Tensor, kwargs["voice"]))
        found = []
        for item, streams in enumerate(present.tolist()):
            parts = [part[item] for part, shown in zip(tokens, streams, strict=False) if shown]
            found.append(torch.cat(parts))
        return found

    def _perceive(self, frames: Tensor, voice: Tensor) -> list[Tensor]:
        """Tokens of pictures and of voices, (items, n, hidden) each."""
        pictures = self.vision(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).flatten(1, 2)
        return [pictures] if self.voice is None else [pictures, self.voice(voice)]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: None = None,
        inputs_embeds: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """Hidden states (tokens, hidden) of a batch of sequences, one after the other.

        Positions (tokens,) count from the first token of a context, so they tell the action slot.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed_input_ids(cast(Tensor, input_ids))
        if self.slots is not None:
            inputs_embeds = inputs_embeds + self.slots(positions)
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
