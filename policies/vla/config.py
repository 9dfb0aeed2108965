"""Sizes of the VLA policy and the meaning of its token ids. The defaults are the `tiny` size."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlamaConfig,
    PretrainedConfig,
    SiglipVisionConfig,
)

ARCHITECTURE = "FaceVLA"


def _dino_config(values: dict) -> Dinov2Config | Dinov2WithRegistersConfig:
    if values.get("model_type") == "dinov2_with_registers":  # what OpenVLA's lineage uses
        return Dinov2WithRegistersConfig(**values)
    return Dinov2Config(**values)


TINY_TEXT = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1280,
}
TINY_TOWER = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
TINY_DINO = {**TINY_TOWER, "mlp_ratio": 2}
TINY_SIGLIP = {**TINY_TOWER, "intermediate_size": 128}


class FaceVLAConfig(PretrainedConfig):
    """Configuration of `FaceVLA`.

    Args:
        text_config: the LLaMA backbone.
        dino_config, siglip_config: the two visual streams. `num_hidden_layers` counts the blocks
            that are kept: features are those of the second-to-last published block, so one less
            than published.
        image_size: pixels of the square uint8 frames that come in; a stream of another size resizes
            them.
        frames: speaker frames in the prompt.
        text_tokens: length of the text region.
        action_dims, action_steps: an action sequence has `action_steps * action_dims` tokens.
        action_bins, action_token_start: ids [start, start + bins) are actions.
        slot_embeddings: add learned embeddings of the action slot (see `SlotEmbedding`).
    """

    model_type = "facevla"
    sub_configs = {"text_config": LlamaConfig, "siglip_config": SiglipVisionConfig}

    text_config: dict | PretrainedConfig | None = None
    dino_config: dict | PretrainedConfig | None = None
    siglip_config: dict | PretrainedConfig | None = None
    image_size: int = 56
    frames: int = 4
    text_tokens: int = 16
    action_dims: int = 56
    action_steps: int = 20
    action_bins: int = 256
    action_token_start: int = 768
    bos_token_id: int = 0
    eos_token_id: int = 1
    image_token_id: int = 2
    absent_token_id: int = 3
    blank_token_id: int = 4
    act_token_id: int = 5
    slot_embeddings: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs) -> None:
        if self.text_config is None:
            self.text_config = TINY_TEXT
        if isinstance(self.text_config, dict):
            self.text_config = LlamaConfig(**self.text_config)
        if self.dino_config is None:
            self.dino_config = TINY_DINO
        if isinstance(self.dino_config, dict):
            self.dino_config = _dino_config(self.dino_config)
        if self.siglip_config is None:
            self.siglip_config = TINY_SIGLIP
        if isinstance(self.siglip_config, dict):
            self.siglip_config = SiglipVisionConfig(**self.siglip_config)
        self.siglip_config.vision_use_head = False
        kwargs.setdefault("architectures", [ARCHITECTURE])
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        grids = [c.image_size // c.patch_size for c in (self.dino_config, self.siglip_config)]
        if grids[0] != grids[1]:
            raise ValueError(
                f"the two streams must give the same patch grid, DINOv2 has {grids[0]}, SigLIP "
                f"{grids[1]}"
            )
        vocabulary = self.text_config.vocab_size
        if self.action_token_start + self.action_bins > vocabulary:
            raise ValueError(
                f"action ids end beyond the vocabulary of {vocabulary}: start "
                f"{self.action_token_start}"
            )
        needed = self.prompt_length + self.action_tokens
        if needed > self.text_config.max_position_embeddings:
            raise ValueError(
                f"prompt ({self.prompt_length}) and actions ({self.action_tokens}) need {needed} "
                "positions, the LLaMA"
                f" has {self.text_config.max_position_embeddings}; shorten the horizon, the rate "
                "or the frames"
            )

    @property
    def patches(self) -> int:
        """Patch tokens of one frame."""
        return (self.dino_config.image_size // self.dino_config.patch_size) ** 2

    @property
    def image_tokens(self) -> int:
        return self.frames * self.patches

    @property
    def prompt_length(self) -> int:
        """<s>, image region, text region, <act>."""
        return self.image_tokens + self.text_tokens + 2

    @property
    def action_tokens(self) -> int:
        return self.action_steps * self.action_dims


AutoConfig.register(FaceVLAConfig.model_type, FaceVLAConfig)
