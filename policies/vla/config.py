"""Sizes of the VLA policy and the meaning of its token ids. The defaults are the `tiny` size."""

from __future__ import annotations

import math
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
    "max_position_embeddings": 1408,
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
        frames: speaker frames of a chunk.
        tokens_per_frame: a square number; patches are averaged to as many.
        voice_tokens: of what is heard in a chunk; 0 = the policy hears no voice.
        chunk_seconds: length of a chunk.
        history: chunks of pictures and voice in the head of a context.
        text_tokens: words of the past in the head, in tokens.
        chunk_text: words of a chunk, in tokens.
        chunk_steps: actions of a chunk.
        context_chunks: a context begins anew with every so many chunks.
        pose_dims: those of them that move the head: of the last action before a context, its head
            tells these.
        action_dims: dimensions of an action; a reaction has `action_steps * action_dims` tokens.
        action_steps: actions of a reaction.
        action_bins: ids [action_token_start, action_token_start + action_bins) are actions.
        action_token_start: the first of them.
        slot_embeddings: add learned embeddings of the action slot (see `SlotEmbedding`).
        perception_scale: root mean square of perception tokens; that of text embeddings.
        perception_trained: whether the encoders were trained before, and stay as they are.
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
    frames: int = 2
    tokens_per_frame: int = 1
    voice_tokens: int = 2
    chunk_seconds: float = 1.0
    history: int = 3
    text_tokens: int = 24
    chunk_text: int = 8
    chunk_steps: int = 5
    context_chunks: int = 4
    action_dims: int = 56
    pose_dims: list[int] = field(default_factory=lambda: [50, 51, 52])
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
    perception_scale: float = 0.05
    perception_trained: bool = False
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
        if not set(self.pose_dims) <= set(range(self.action_dims)):
            raise ValueError(
                f"pose_dims {self.pose_dims} are not among {self.action_dims} dimensions"
            )
        if self.action_steps % self.chunk_steps:
            raise ValueError(
                f"a reaction of {self.action_steps} actions is no whole number of chunks of "
                f"{self.chunk_steps}; change the length of clips or vla.chunk"
            )
        if math.isqrt(self.tokens_per_frame) ** 2 != self.tokens_per_frame:
            raise ValueError(
                f"vla.tokens_per_frame={self.tokens_per_frame} must be a square number: 1, 4, "
                "9, 16, ..."
            )
        if dino_grid**2 < self.tokens_per_frame:
            raise ValueError(
                f"vla.tokens_per_frame={self.tokens_per_frame}, but a frame has "
                f"{dino_grid**2} patches"
            )
        positions = self.text_config.max_position_embeddings
        if self.context_length > positions:
            raise ValueError(
                f"a context of {self.context_chunks} chunks needs {self.context_length} "
                f"positions, the LLaMA has {positions}; shorten vla.context, vla.history or "
                "vla.tokens_per_frame"
            )

    @property
    def patches(self) -> int:
        """Patches of one frame."""
        return patch_grid(self.dino_config) ** 2

    @property
    def picture_tokens(self) -> int:
        """Tokens of the pictures of a chunk; those of its voice follow."""
        return self.frames * self.tokens_per_frame

    @property
    def item_tokens(self) -> int:
        """Tokens of what is seen and heard in a chunk."""
        return self.picture_tokens + self.voice_tokens

    @property
    def head_length(self) -> int:
        """<s>, history of pictures and voice, words of the past, the pose of the past."""
        return 1 + self.history * self.item_tokens + self.text_tokens + len(self.pose_dims)

    @property
    def observation_length(self) -> int:
        """What a chunk is shown before its first action: pictures, voice, words, <act>."""
        return self.item_tokens + self.chunk_text + 1

    @property
    def chunk_tokens(self) -> int:
        """Action tokens of a chunk."""
        return self.chunk_steps * self.action_dims

    @property
    def period(self) -> int:
        """Tokens of a chunk, observation and actions."""
        return self.observation_length + self.chunk_tokens

    @property
    def chunks(self) -> int:
        """Chunks of a reaction."""
        return self.action_steps // self.chunk_steps

    @property
    def context_length(self) -> int:
        """Tokens of the longest context."""
        return self.head_length + self.context_chunks * self.period

    @property
    def items(self) -> int:
        """Chunks whose pictures and voice a prompt holds: history, last one before, all but one."""
        return self.history + self.chunks

    @property
    def action_tokens(self) -> int:
        """Tokens of a whole reaction."""
        return self.action_steps * self.action_dims

    @property
    def contexts(self) -> int:
        """Contexts of a reaction."""
        return -(-self.chunks // self.context_chunks)

    @property
    def prompt_length(self) -> int:
        """Tokens of all contexts of a reaction that are no actions to be chosen."""
        return self.contexts * self.head_length + self.chunks * self.observation_length


def image_side(tower: PretrainedConfig) -> int:
    """Pixels along one side of the square frames that a visual stream takes."""
    pixels: int = tower.image_size
    return pixels


def patch_grid(tower: PretrainedConfig) -> int:
    """Patches along one side of the frames that a visual stream takes."""
    patches: int = tower.image_size // tower.patch_size
    return patches


AutoConfig.register(FaceVLAConfig.model_type, FaceVLAConfig)
