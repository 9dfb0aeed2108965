"""What the VLA policy is: its sizes, its parts and its action space."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rapport.settings import Section


class ActionConfig(Section):
    expr_dims: int = Field(50, ge=1, le=100)
    """leading expression coefficients in the action"""
    head: Literal["auto", "rot", "neck"] = "auto"
    """group that carries head rotation; auto = rot, or neck where the corpus has no rot"""
    rate: float = Field(5.0, gt=0)
    """actions per second; splined to the corpus frame rate"""
    bins: int = Field(256, ge=2, le=256)
    """bins per action dimension (Eq. 5)"""
    truncation: float = Field(0.01, ge=0, lt=0.5)
    """share of values cut off at each end before binning"""


class SequenceConfig(Section):
    """How a VLA perceives and acts, chunk by chunk."""

    chunk: float = Field(1.0, gt=0)
    """seconds that the policy acts before it perceives again"""
    context: float | None = Field(None, gt=0)
    """seconds after which its context begins anew, with a head of what was known then, of its own
    past only the pose; empty = with every chunk. In a longer one it goes on with its own face, and
    hardly looks at the speaker"""
    history: float = Field(3.0, ge=0)
    """seconds of pictures and voice in that head, before the last chunk"""
    tokens_per_frame: int = Field(1, ge=1)
    """tokens of a speaker frame, a square number; patches are averaged to as many"""
    voice: bool = True
    """whether the policy hears the speaker; the paper's does not"""
    text_tokens: int = Field(24, ge=1)
    """text tokens of the past in the head; longer text keeps its end"""
    chunk_text: int = Field(8, ge=1)
    """text tokens of what is said in a chunk; longer text keeps its end"""


class VlaConfig(SequenceConfig):
    size: Literal["tiny", "pretrained"] = "tiny"
    """tiny = small random weights of the same classes; pretrained = the checkpoints below"""
    action: ActionConfig = ActionConfig()
    hidden: int = Field(128, ge=32)
    """LLaMA width (tiny)"""
    layers: int = Field(2, ge=1)
    """LLaMA layers (tiny)"""
    heads: int = Field(4, ge=1)
    """LLaMA attention heads (tiny)"""
    kv_heads: int = Field(2, ge=1)
    """LLaMA key-value heads (tiny); the fewer, the faster the rollouts"""
    vision_hidden: int = Field(64, ge=16)
    """width of each vision tower (tiny)"""
    vision_layers: int = Field(2, ge=2)
    """layers of each vision tower (tiny)"""
    vocabulary: int = Field(1536, ge=600)
    """vocabulary, action ids included (tiny); large enough that common words stay whole"""
    llama: str | None = None
    """LLaMA checkpoint: local path or hub name (pretrained)"""
    dino: str | None = None
    """DINOv2 checkpoint (pretrained)"""
    siglip: str | None = None
    """SigLIP checkpoint (pretrained)"""
    openvla: str | None = None
    """OpenVLA-lineage checkpoint to start from, where shapes allow"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the weights"""
    lora_rank: int = Field(0, ge=0)
    """rank of LoRA adapters on the language model; 0 = full fine-tuning"""
    freeze_vision: bool = False
    """keep both vision towers fixed"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """Published parts have their own sizes."""
        parts = ("llama", "dino", "siglip", "openvla")
        if self.size == "tiny":
            return {"vla.size=tiny has random weights": parts}
        sizes = ("hidden", "layers", "heads", "kv_heads", "vision_hidden", "vision_layers")
        return {"vla.size=pretrained has the sizes of its parts": (*sizes, "vocabulary")}

    @model_validator(mode="after")
    def _heads_share_keys(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"vla.heads={self.heads} must be a multiple of vla.kv_heads={self.kv_heads}"
            )
        return self

    @model_validator(mode="after")
    def _pretrained_needs_parts(self) -> Self:
        missing = [name for name in ("llama", "dino", "siglip") if getattr(self, name) is None]
        if self.size == "pretrained" and missing:
            raise ValueError(
                f"vla.size=pretrained needs {', '.join('vla.' + name for name in missing)}"
            )
        return self
