"""The VLA policy: two visual streams and a projector in front of LLaMA, action tokens behind (paper
III-C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    Dinov2Model,
    Dinov2WithRegistersModel,
    DynamicCache,
    LlamaForCausalLM,
    PreTrainedModel,
    SiglipVisionModel,
)

from rapport.policies.vla.config import FaceVLAConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class Projector(nn.Module):
    """MLP of Eq. 3: fused patch features (..., dino + siglip) -> (..., hidden). OpenVLA's shape and
    names.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, hidden)
        self.fc3 = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class FrameEncoder(nn.Module):
    """Speaker frames -> image tokens (Eq. 2-3).

    Features are the un-normalised output of the last block that the configs keep, which is the
    published model's second-to-last. What comes after it (last block, final norm, pooling head) is
    not built: unused parameters would get no gradient and stall sharded training."""

    def __init__(self, config: FaceVLAConfig) -> None:
        super().__init__()
        dino, siglip = config.dino_config, config.siglip_config
        registers = dino.model_type == "dinov2_with_registers"
        self.dino = (Dinov2WithRegistersModel if registers else Dinov2Model)(dino)
        self.siglip = SiglipVisionModel(siglip)
        self.projector = Projector(
            dino.hidden_size + siglip.hidden_size, config.text_config.hidden_size
        )
        self.prefix = 1 + (
            dino.num_register_tokens if registers else 0
        )  # class and register tokens
        self.dino.layernorm = nn.Identity()
        self.dino.embeddings.mask_token = None
        self.siglip.post_layernorm = nn.Identity()

    def forward(self, frames: Tensor) -> Tensor:
        """uint8 frames (n, height, width, 3) -> (n, patches, hidden)."""
        dino = normalise(frames, IMAGENET_MEAN, IMAGENET_STD, self.dino.config.image_size)
        siglip = normalise(frames, SIGLIP_MEAN, SIGLIP_STD, self.siglip.config.image_size)
        dtype = self.projector.fc1.weight.dtype
        features = torch.cat(
            [
                self.dino(dino.to(dtype)).last_hidden_state[:, self.prefix :],
                self.siglip(siglip.to(dtype)).last_hidden_state,
            ],
            dim=-1,
        )
        return self.projector(features)


def normalise(frames: Tensor, mean: tuple[float, ...], std: tuple[float, ...], size: int) -> Tensor:
    """uint8 frames (n, height, width, 3) -> float32 (n, 3, size, size), standardised per channel."""
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames travel as uint8 and are normalised here, got {frames.dtype}")
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(
            pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False
        )
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


class SlotEmbedding(nn.Module):
    """What an action token is about: which dimension it holds, which dimension and step come next.

    All dimensions share the 256 action ids, so that id 900 may be a smile or a nod; only its
    position tells which. A 7B model can count positions from RoPE alone; a small one cannot tell
    dimension 31 from 32 of 56, and would predict the average over dimensions. Positions are fixed,
    hence the slot is a function of position, and this table adds it to the input embedding:
    `own[d(j-1)] + next[d(j)] + step[t(j)]` at the j-th position counted from <act> (which holds no
    action; the last action predicts none)."""

    def __init__(self, dims: int, steps: int, hidden: int) -> None:
        super().__init__()
        self.dims, self.steps = dims, steps
        self.own = nn.Embedding(dims, hidden)
        self.next = nn.Embedding(dims, hidden)
        self.step = nn.Embedding(steps, hidden)

    def forward(self, offset: Tensor) -> Tensor:
        """Offsets from <act> (...) int64 -> (..., hidden); zero before <act> and beyond the last
        action.
        """
        count = self.dims * self.steps
        holds = ((offset >= 1) & (offset <= count)).unsqueeze(-1)
        predicts = ((offset >= 0) & (offset < count)).unsqueeze(-1)
        previous, following = (offset - 1).clamp(0, count - 1), offset.clamp(0, count - 1)
        ahead = self.next(following % self.dims) + self.step(following // self.dims)
        return self.own(previous % self.dims) * holds + ahead * predicts

    def late_start(self, step: int) -> Tensor:
        """What to add at <act> when the first action to predict is that of `step` instead of 0:
        (hidden,).
        """
        ids = torch.tensor([step, 0], device=self.step.weight.device)
        late, first = self.step(ids)
        return late - first


class FaceVLA(PreTrainedModel):
    """pi(actions | speaker frames, speaker text), paper Eq. 2-6.

    Every sequence is `config.prompt_length` prompt ids (`rapport.policies.vla.prompt.build_prompt`)
    and then action ids; nothing is padded. `lora_scaling` is set when adapters are added
    (`rapport.policies.vla.loading.add_lora`)."""

    config_class = FaceVLAConfig
    config: FaceVLAConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = [
        "LlamaDecoderLayer",
        "Dinov2Layer",
        "Dinov2WithRegistersLayer",
        "SiglipEncoderLayer",
    ]
    lora_scaling: float | None = None

    def __init__(self, config: FaceVLAConfig) -> None:
        super().__init__(config)
        self.vision = FrameEncoder(config)
        self.language_model = LlamaForCausalLM(config.text_config)
        hidden = config.text_config.hidden_size
        self.slots = (
            SlotEmbedding(config.action_dims, config.action_steps, hidden)
            if config.slot_embeddings
            else None
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.language_model.set_output_embeddings(value)

    def forward(self, input_ids: Tensor, frames: Tensor | None = None) -> Tensor:
        """Logits (batch, length, vocabulary) of prompt and actions in one; for checks, it is the
        costly way.

        Args:
            input_ids: (batch, length), length >= prompt_length.
            frames: as in `embed_prompt`.
        """
        split = self.config.prompt_length
        parts = [
            self.embed_prompt(input_ids[:, :split], frames),
            self.embed_actions(input_ids[:, split:]),
        ]
        return self.language_model(inputs_embeds=torch.cat(parts, dim=1), use_cache=False).logits

    def embed_prompt(self, prompt_ids: Tensor, frames: Tensor | None) -> Tensor:
        """Prompt ids (batch, prompt_length) and frames -> (batch, prompt_length, hidden).

        Args:
            frames: (batch, frames, image_size, image_size, 3) uint8, or None when no clip of the
                batch has any. In rows whose image region is <absent> the pixels are ignored.
        """
        config = self.config
        if prompt_ids.shape[1] != config.prompt_length:
            raise ValueError(
                f"a prompt has {config.prompt_length} tokens, got {prompt_ids.shape[1]}; use "
                "build_prompt"
            )
        embeddings = self.get_input_embeddings()(prompt_ids)
        region = slice(1, 1 + config.image_tokens)
        shown = (prompt_ids[:, region] == config.image_token_id).unsqueeze(-1)
        if frames is not None:
            expected = (len(prompt_ids), config.frames, config.image_size, config.image_size, 3)
            if frames.shape != expected:
                raise ValueError(
                    f"frames must be {expected}, got {tuple(frames.shape)}; use select_frames"
                )
            seen = self.vision(frames.flatten(0, 1)).reshape(
                len(prompt_ids), config.image_tokens, -1
            )
            image = torch.where(shown, seen.to(embeddings.dtype), embeddings[:, region])
            embeddings = torch.cat([embeddings[:, :1], image, embeddings[:, region.stop :]], dim=1)
        elif shown.any():
            raise ValueError(
                "the prompt has <image> tokens but no frames were given; build it with "
                "has_frames=False"
            )
        return self._add_slots(embeddings, start=0)

    def embed_actions(self, action_ids: Tensor, skipped: int = 0) -> Tensor:
        """Action ids (batch, n), from the action after the `skipped` first ones on -> (batch, n,
        hidden).
        """
        return self._add_slots(
            self.get_input_embeddings()(action_ids), start=self.config.prompt_length + skipped
        )

    def _add_slots(self, embeddings: Tensor, start: int) -> Tensor:
        if self.slots is None:
            return embeddings
        positions = torch.arange(start, start + embeddings.shape[1], device=embeddings.device)
        return embeddings + self.slots(positions - (self.config.prompt_length - 1))

    def action_logits(
        self, prompt_ids: Tensor, frames: Tensor | None, action_ids: Tensor
    ) -> Tensor:
        """Logits over the 256 bins at every action position, teacher-forced.

        Args:
            prompt_ids: (batch, prompt_length).
            frames: as in `embed_prompt`.
            action_ids: (batch, n), or (batch, k, n) for k continuations of each prompt, which is
                then computed once.

        Returns:
            (batch, n, bins) or (batch, k, n, bins). The vocabulary beyond the bins is never
            computed.
        """
        prompt = self.embed_prompt(prompt_ids, frames)
        flat = action_ids.reshape(-1, action_ids.shape[-1])
        actions = self.embed_actions(flat[:, :-1])
        if len(flat) > len(prompt) and not (self.training and self.is_gradient_checkpointing):
            hidden = self._prompt_once(prompt, actions)
        else:
            hidden = self._in_one_pass(prompt, actions)
        return self.bin_logits(hidden).reshape(*action_ids.shape, self.config.action_bins)

    def window_logits(
        self, prompt_ids: Tensor, frames: Tensor | None, action_ids: Tensor, first_step: int
    ) -> Tensor:
        """Logits of actions cut out of a clip: the first is told by the prompt alone, the others by
        those before it in the window.

        Args:
            action_ids: (batch, n), from action step `first_step` on.

        Returns:
            (batch, n, bins).
        """
        skipped = first_step * self.config.action_dims
        prompt = self.embed_prompt(prompt_ids, frames)
        if skipped and self.slots is not None:
            prompt = torch.cat(
                [prompt[:, :-1], prompt[:, -1:] + self.slots.late_start(first_step)], dim=1
            )
        parts = prompt, self.embed_actions(action_ids[:, :-1], skipped)
        hidden = [
            self.language_model.model(inputs_embeds=part, use_cache=False).last_hidden_state
            for part in parts
        ]
        return self.bin_logits(torch.cat([hidden[0][:, -1:], hidden[1]], dim=1))

    def _in_one_pass(self, prompt: Tensor, actions: Tensor) -> Tensor:
        """Hidden states from <act> on, (rows, 1 + n, hidden); a prompt with k rows of actions is
        computed k times.
        """
        prompt = prompt.repeat_interleave(len(actions) // len(prompt), dim=0)
        sequence = torch.cat([prompt, actions], dim=1)
        hidden = self.language_model.model(
            inputs_embeds=sequence, use_cache=False
        ).last_hidden_state
        return hidden[:, self.config.prompt_length - 1 :]

    def _prompt_once(self, prompt: Tensor, actions: Tensor) -> Tensor:
        """The same by way of a key-value cache that all continuations of a prompt share; gradients
        pass through it.

        Recomputing blocks for the backward pass (gradient checkpointing) would append to the cache
        again."""
        k, cache = len(actions) // len(prompt), DynamicCache(config=self.config.text_config)
        act = self.language_model.model(inputs_embeds=prompt, past_key_values=cache, use_cache=True)
        act = act.last_hidden_state[:, -1:].repeat_interleave(k, dim=0)
        if not actions.shape[1]:
            return act
        cache.batch_repeat_interleave(k)
        rest = self.language_model.model(
            inputs_embeds=actions, past_key_values=cache, use_cache=True
        )
        return torch.cat([act, rest.last_hidden_state], dim=1)

    def bin_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., hidden) -> logits over the bins (..., bins)."""
        start = self.config.action_token_start
        return F.linear(
            hidden, self.language_model.lm_head.weight[start : start + self.config.action_bins]
        )

    def action_log_probs(
        self,
        prompt_ids: Tensor,
        frames: Tensor | None,
        action_ids: Tensor,
        temperature: float = 1.0,
    ) -> Tensor:
        """log pi of every action token over the 256-bin support, float32, shaped as `action_ids`.

        Their sum over the last axis is the sequence log-probability of Eq. 11. `temperature` is the
        one that rollouts were sampled with, when the two are to be compared."""
        logits = self.action_logits(prompt_ids, frames, action_ids).float() / temperature
        bins = (action_ids - self.config.action_token_start).unsqueeze(-1)
        return torch.log_softmax(logits, dim=-1).gather(-1, bins).squeeze(-1)

    @torch.no_grad()
    def sample_actions(
        self,
        prompt_ids: Tensor,
        frames: Tensor | None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        tokens: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sample one action sequence per prompt in plain torch: for debugging, rollouts use vLLM.

        Returns:
            ids (batch, tokens) int64 and their log-probs (batch, tokens) float32.
        """
        cache, embeddings = (
            DynamicCache(config=self.config.text_config),
            self.embed_prompt(prompt_ids, frames),
        )
        ids, log_probs = [], []
        for position in range(self.config.action_tokens if tokens is None else tokens):
            out = self.language_model.model(
                inputs_embeds=embeddings, past_key_values=cache, use_cache=True
            )
            scores = torch.log_softmax(
                self.bin_logits(out.last_hidden_state[:, -1]).float() / temperature, dim=-1
            )
            bins = torch.multinomial(scores.exp(), 1, generator=generator)
            ids.append(bins + self.config.action_token_start)
            log_probs.append(scores.gather(-1, bins))
            token = self.get_input_embeddings()(ids[-1])
            embeddings = self._add_slots(token, start=self.config.prompt_length + position)
        return torch.cat(ids, dim=1), torch.cat(log_probs, dim=1)


def weight_names(config: FaceVLAConfig) -> set[str]:
    """Names of the policy's weights, without building them."""
    with init_empty_weights():
        return set(FaceVLA(config).state_dict())
