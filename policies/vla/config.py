"""Sizes of the VLA policy and the meaning of its token ids. The defaults are the `tiny` size."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from transformers import (
    AutoConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlamaConfig,
    PretrainedConfig,
    SiglipVisionConfig,
)

ARCHITECTURE = "FaceVLA"

TINY_TEXT: dict[str, Any] = {
    "vocab_size": 1536,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1280,
}
TINY_TOWER: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
TINY_DINO: dict[str, Any] = {**TINY_TOWER, "mlp_ratio": 2}
TINY_SIGLIP: dict[str, Any] = {**TINY_TOWER, "intermediate_size": 128}

DinoConfig = Dinov2Config | Dinov2WithRegistersConfig


def read_dino_config(values: dict[str, Any]) -> DinoConfig:
    """A DINOv2 configuration from its JSON values; the OpenVLA lineage has the register variant."""
    if values.get("model_type") == "dinov2_with_registers":
        return Dinov2WithRegistersConfig(**values)
    return Dinov2Config(**values)


class FaceVLAConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Configuration of `FaceVLA`.

    In both visual streams `num_hidden_layers` counts the blocks that are kept. Features are those
    of the second-to-last published block, so it is one less than published.

    Args:
        text_config: the LLaMA backbone.
        dino_config: the DINOv2 stream.
        siglip_config: the SigLIP stream.
        image_size: pixels of the square uint8 frames that come in; a stream of another size resizes
            them.
        frames: speaker frames in the prompt.
        text_tokens: length of the text region.
        action_dims: dimensions of an action; a sequence has `action_steps * action_dims` tokens.
        action_steps: actions of a sequence.
        action_bins: ids [action_token_start, action_token_start + action_bins) are actions.
        action_token_start: the first of them.
        slot_embeddings: add learned embeddings of the action slot (see `SlotEmbedding`).
    """

    model_type = "facevla"
    sub_configs = {"text_config": LlamaConfig, "siglip_config": SiglipVisionConfig}

    # A configuration read from JSON gives dicts here; `__post_init__` makes configurations of them.
    text_config: LlamaConfig = field(default_factory=lambda: LlamaConfig(**TINY_TEXT))
    dino_config: DinoConfig = field(default_factory=lambda: Dinov2Config(**TINY_DINO))
    siglip_config: SiglipVisionConfig = field(
        default_factory=lambda: SiglipVisionConfig(**TINY_SIGLIP)
    )
    image_size: int = 56
    frames: int = 4
    text_tokens: int = 16
    action_dims: int = 56
    action_steps: int = 20
    action_bins: int = 256
    action_token_start: int = 1280
    bos_token_id: int = 0
    eos_token_id: int = 1
    image_token_id: int = 2
    absent_token_id: int = 3
    blank_token_id: int = 4
    act_token_id: int = 5
    slot_embeddings: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            self.text_config = LlamaConfig(**self.text_config)
        if isinstance(self.dino_config, dict):
            self.dino_config = read_dino_config(self.dino_config)
        if isinstance(self.siglip_config, dict):
            self.siglip_config = SiglipVisionConfig(**self.siglip_config)
        self.siglip_config.vision_use_head = False
        kwargs.setdefault("architectures", [ARCHITECTURE])
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]  # transformers' own
        self._check()

    def _check(self) -> None:
        dino_grid = patch_grid(self.dino_config)
        siglip_grid = patch_grid(self.siglip_config)
        if dino_grid != siglip_grid:
            raise ValueError(
                f"the two streams must give the same patch grid, DINOv2 has {dino_grid}, SigLIP "
                f"{siglip_grid}"
            )
        vocabulary = self.text_config.vocab_size
        if self.action_token_start + self.action_bins > vocabulary:
            raise ValueError(
                f"action ids end beyond the vocabulary of {vocabulary}: start "
                f"{self.action_token_start}"
            )
        if self.text_config.tie_word_embeddings:
            raise ValueError(
                "the LLaMA's head must be a table of its own (tie_word_embeddings=False); "
                "load_pretrained makes it one"
            )
        needed = self.prompt_length + self.action_tokens
        positions = self.text_config.max_position_embeddings
        if needed > positions:
            raise ValueError(
                f"prompt ({self.prompt_length}) and actions ({self.action_tokens}) need {needed} "
                f"positions, the LLaMA has {positions}; shorten the horizon, the rate or the frames"
            )

    @property
    def patches(self) -> int:
        """Patch tokens of one frame."""
        return patch_grid(self.dino_config) ** 2

    @property
    def image_tokens(self) -> int:
        """Tokens of the image region."""
        return self.frames * self.patches

    @property
    def prompt_length(self) -> int:
        """<s>, image region, text region, <act>."""
        return self.image_tokens + self.text_tokens + 2

    @property
    def action_tokens(self) -> int:
        """Tokens of a whole action sequence."""
        return self.action_steps * self.action_dims


def image_side(tower: PretrainedConfig) -> int:
    """Pixels along one side of the square frames that a visual stream takes."""
    pixels: int = tower.image_size
    return pixels


def patch_grid(tower: PretrainedConfig) -> int:
    """Patches along one side of the frames that a visual stream takes."""
    patches: int = tower.image_size // tower.patch_size
    return patches


AutoConfig.register(FaceVLAConfig.model_type, FaceVLAConfig)
