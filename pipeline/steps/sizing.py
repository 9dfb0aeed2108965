"""How large a VLA is that a config describes, without its weights."""

from __future__ import annotations

from collections.abc import Mapping

from accelerate import init_empty_weights
from transformers import AutoConfig, Dinov2Config, LlamaConfig, PretrainedConfig, SiglipVisionConfig

from rapport.pipeline.estimate import ModelSize
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import OfVla
from rapport.policies.motion import Layout
from rapport.policies.vla.actions import ActionSpace
from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.loading import (
    SequenceSizes,
    network_sizes,
    sequence_sizes,
    tiny_config,
)
from rapport.policies.vla.lora import add_lora
from rapport.policies.vla.model import FaceVLA
from rapport.policies.vla.pretrained import freeze_streams, pretrained_config
from rapport.policies.vla.settings import VlaConfig
from rapport.policies.vla.text import build_text_tokenizer
from rapport.wording import first_line

FPS = 25
# The paper's checkpoints: a plan needs their sizes only, and neither weights nor a network.
PUBLISHED: dict[str, PretrainedConfig] = {
    "meta-llama/Llama-2-7b-hf": LlamaConfig(max_position_embeddings=4096),
    "facebook/dinov2-large": Dinov2Config(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16
    ),
    "google/siglip-so400m-patch14-224": SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        patch_size=14,
    ),
}


def model_size(config: OfVla, known: Mapping[str, PretrainedConfig] | None = None) -> ModelSize:
    """The size of the policy that the config describes.

    Args:
        config: of a recipe.
        known: checkpoints that are not looked for, by name.

    Raises:
        OSError: a checkpoint is not found.
    """
    vla = config.vla
    layout = Layout((("expr", vla.action.expr_dims), ("rot", 3), ("jaw", 3)), FPS, "builtin")
    space = ActionSpace(layout, vla.action.rate, config.corpus.seconds)
    sequence = sequence_sizes(vla, config.corpus.frames)
    if vla.size == "pretrained":
        names = (str(vla.llama), str(vla.dino), str(vla.siglip))
        llama, dino, siglip = ((known or {}).get(name) or _published(name) for name in names)
        model_config = pretrained_config(
            llama,
            dino,
            siglip,
            space=space,
            sequence=sequence,
            action_token_start=0,  # the tokenizer says which; sizes do not depend on it
        )
    else:
        model_config = _tiny(vla, space, sequence, image_size=config.corpus.image_size)
    with init_empty_weights():
        model = FaceVLA(model_config)
    if vla.lora_rank:
        add_lora(model, vla.lora_rank, alpha=1.0)
    if vla.freeze_vision:
        freeze_streams(model)
    text = model_config.text_config
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        kv_heads=text.num_key_value_heads or text.num_attention_heads,
        head_dim=text.hidden_size // text.num_attention_heads,
        prompt_tokens=model_config.prompt_length,
        action_tokens=model_config.action_tokens,
    )


def _published(name: str) -> PretrainedConfig:
    config = AutoConfig.from_pretrained(name)
    return getattr(config, "vision_config", config)  # SigLIP's is that of both towers


def require_published(key: str, name: str | None) -> None:
    """Raise `RunError` unless there is a model under a name that a key gives, or it gives none."""
    if name is None:
        return
    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise RunError(
            f"{key}={name} is no model: {first_line(error)}\n  It is a local folder with "
            "a config.json, or a name on the hub"
        ) from error


def _tiny(
    vla: VlaConfig, space: ActionSpace, sequence: SequenceSizes, *, image_size: int
) -> FaceVLAConfig:
    tokenizer = build_text_tokenizer(["."], text_vocabulary=vla.vocabulary - vla.action.bins)
    config = tiny_config(
        tokenizer,
        space,
        sequence,
        image_size=image_size,
        **network_sizes(vla),
    )
    config.text_config.vocab_size = vla.vocabulary
    return config
