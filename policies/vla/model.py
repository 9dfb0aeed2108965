"""The VLA policy (VLA + DPO, section III-C).

Two visual streams and a projector stand in front of LLaMA, action tokens behind.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    AutoModel,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DynamicCache,
    LlamaForCausalLM,
    PreTrainedModel,
    SiglipVisionModel,
)

from rapport.policies.vla.config import FaceVLAConfig, image_side

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SIGLIP_MEAN = (0.5, 0.5, 0.5)
SIGLIP_STD = (0.5, 0.5, 0.5)


class Projector(nn.Module):
    """MLP of Eq. 3: fused patch features (..., dino + siglip) -> (..., hidden).

    Shape and names are OpenVLA's.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, hidden)
        self.fc3 = nn.Linear(hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))
        return projected


class FrameEncoder(nn.Module):
    """Speaker frames -> image tokens (Eq. 2-3).

    Features are the un-normalised output of the last block that the configs keep, which is the
    published model's second-to-last. What comes after it (last block, final norm, pooling head) is
    not built: unused parameters would get no gradient and stall sharded training.
    """

    def __init__(self, config: FaceVLAConfig) -> None:
        super().__init__()
        dino = config.dino_config
        siglip = config.siglip_config
        self.dino: Dinov2Model | Dinov2WithRegistersModel
        # DINOv2 puts its class token, and the register variant its registers, before the patches.
        if isinstance(dino, Dinov2WithRegistersConfig):
            self.dino = Dinov2WithRegistersModel(dino)
            self.extra_tokens = 1 + dino.num_register_tokens
        else:
            self.dino = Dinov2Model(dino)
            self.extra_tokens = 1
        self.siglip = SiglipVisionModel(siglip)
        self.projector = Projector(
            dino.hidden_size + siglip.hidden_size, config.text_config.hidden_size
        )
        # The final norms are taken out in place, which their declared type does not foresee.
        self.dino.layernorm = nn.Identity()  # type: ignore[assignment]
        self.dino.embeddings.mask_token = None
        self.siglip.post_layernorm = nn.Identity()  # type: ignore[assignment]

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (n, height, width, 3) uint8 -> (n, patches, hidden)."""
        dtype = self.projector.fc1.weight.dtype
        size = image_side(self.dino.config)
        dino_pixels = standardise_pixels(frames, IMAGENET_MEAN, IMAGENET_STD, size=size)
        dino_tokens = self.dino(dino_pixels.to(dtype)).last_hidden_state
        size = image_side(self.siglip.config)
        siglip_pixels = standardise_pixels(frames, SIGLIP_MEAN, SIGLIP_STD, size=size)
        siglip_tokens = self.siglip(siglip_pixels.to(dtype)).last_hidden_state
        features = torch.cat([dino_tokens[:, self.extra_tokens :], siglip_tokens], dim=-1)
        tokens: Tensor = self.projector(features)
        return tokens


def standardise_pixels(
    frames: Tensor, mean: tuple[float, ...], std: tuple[float, ...], size: int
) -> Tensor:
    """Frames as a visual stream takes them.

    Args:
        frames: (n, height, width, 3) uint8.
        mean: of each colour channel, in [0, 1].
        std: standard deviation of each colour channel.
        size: height and width that come out.

    Returns:
        (n, 3, size, size) float32.
    """
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
    action; the last action predicts none).
    """

    def __init__(self, dims: int, steps: int, hidden: int) -> None:
        super().__init__()
        self.dims = dims
        self.steps = steps
        self.own = nn.Embedding(dims, hidden)
        self.next = nn.Embedding(dims, hidden)
        self.step = nn.Embedding(steps, hidden)

    def forward(self, offset: Tensor) -> Tensor:
        """Offsets from <act> (...) int64 -> (..., hidden).

        Zero before <act> and beyond the last action.
        """
        count = self.dims * self.steps
        holds = ((offset >= 1) & (offset <= count)).unsqueeze(-1)
        predicts = ((offset >= 0) & (offset < count)).unsqueeze(-1)
        previous = (offset - 1).clamp(0, count - 1)
        following = offset.clamp(0, count - 1)
        ahead: Tensor = self.next(following % self.dims) + self.step(following // self.dims)
        own: Tensor = self.own(previous % self.dims)
        return own * holds + ahead * predicts

    def late_start(self, step: int) -> Tensor:
        """What to add at <act> where the first action to predict is not that of step 0, but `step`.

        Shape (hidden,).
        """
        ids = torch.tensor([step, 0], device=self.step.weight.device)
        steps: Tensor = self.step(ids)
        return steps[0] - steps[1]


def action_log_probs(
    logits: Tensor, action_ids: Tensor, first_token: int, temperature: float = 1.0
) -> Tensor:
    """Log-probability of every action token over the support of the bins.

    The sum over the last axis is the sequence log-probability of Eq. 11.

    Args:
        logits: (..., tokens, bins), as `FaceVLA.action_logits` returns them.
        action_ids: (..., tokens) token ids.
        first_token: id of bin 0, `config.action_token_start`.
        temperature: what the rollouts were sampled at, where the two are to be compared.

    Returns:
        (..., tokens) float32.
    """
    scaled = logits.float()
    if temperature != 1:
        scaled = scaled / temperature
    bins = (action_ids - first_token).unsqueeze(-1)
    return torch.log_softmax(scaled, dim=-1).gather(-1, bins).squeeze(-1)


class FaceVLA(PreTrainedModel):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """pi(actions | speaker frames, speaker text), paper Eq. 2-6.

    Every sequence is `config.prompt_length` prompt ids (`rapport.policies.vla.prompt.build_prompt`)
    and then action ids; nothing is padded. `lora_scaling` is set when adapters are added
    (`rapport.policies.vla.lora.add_lora`).
    """

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
        self.language_model = LlamaForCausalLM(config.text_config)  # type: ignore[no-untyped-call]
        hidden = config.text_config.hidden_size
        self.slots: SlotEmbedding | None = None
        if config.slot_embeddings:
            self.slots = SlotEmbedding(config.action_dims, config.action_steps, hidden)
        self.post_init()  # type: ignore[no-untyped-call]  # transformers has no types here

    def get_input_embeddings(self) -> nn.Embedding:
        """LLaMA's token embeddings."""
        return cast(nn.Embedding, self.language_model.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace LLaMA's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        """LLaMA's output head."""
        return cast(nn.Linear, self.language_model.lm_head)

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace LLaMA's output head."""
        self.language_model.lm_head = value

    def forward(self, input_ids: Tensor, frames: Tensor | None = None) -> Tensor:
        """Logits (batch, length, vocabulary) of prompt and actions in one.

        For checks: it computes the whole vocabulary at every position.

        Args:
            input_ids: (batch, length), length >= prompt_length.
            frames: as in `embed_prompt`.
        """
        split = self.config.prompt_length
        prompt = self.embed_prompt(input_ids[:, :split], frames)
        actions = self.embed_actions(input_ids[:, split:])
        sequence = torch.cat([prompt, actions], dim=1)
        logits: Tensor = self.language_model(inputs_embeds=sequence, use_cache=False).logits
        return logits

    def embed_prompt(self, prompt_ids: Tensor, frames: Tensor | None) -> Tensor:
        """Prompt ids (batch, prompt_length) and frames -> (batch, prompt_length, hidden).

        Args:
            prompt_ids: of `build_prompt`.
            frames: (batch, frames, image_size, image_size, 3) uint8, or None when no clip of the
                batch has any. In rows whose image region is <absent> the pixels are ignored.

        Raises:
            ValueError: prompt and frames do not fit the config or each other.
        """
        config = self.config
        if prompt_ids.shape[1] != config.prompt_length:
            raise ValueError(
                f"a prompt has {config.prompt_length} tokens, got {prompt_ids.shape[1]}; use "
                "build_prompt"
            )
        embeddings: Tensor = self.get_input_embeddings()(prompt_ids)
        region = slice(1, 1 + config.image_tokens)
        shown = (prompt_ids[:, region] == config.image_token_id).unsqueeze(-1)
        if frames is not None:
            expected = (len(prompt_ids), config.frames, config.image_size, config.image_size, 3)
            if frames.shape != expected:
                raise ValueError(
                    f"frames must be {expected}, got {tuple(frames.shape)}; use select_frames"
                )
            tokens = self.vision(frames.flatten(0, 1))
            tokens = tokens.reshape(len(prompt_ids), config.image_tokens, -1)
            image = torch.where(shown, tokens.to(embeddings.dtype), embeddings[:, region])
            embeddings = torch.cat([embeddings[:, :1], image, embeddings[:, region.stop :]], dim=1)
        elif shown.any():
            raise ValueError(
                "the prompt has <image> tokens but no frames were given; build it with "
                "has_frames=False"
            )
        return self._add_slots(embeddings, start=0)

    def embed_actions(self, action_ids: Tensor, skipped: int = 0) -> Tensor:
        """Action ids (batch, n) -> (batch, n, hidden).

        Args:
            action_ids: a part of an action sequence.
            skipped: tokens of the sequence before that part.
        """
        embeddings = self.get_input_embeddings()(action_ids)
        return self._add_slots(embeddings, start=self.config.prompt_length + skipped)

    def _add_slots(self, embeddings: Tensor, start: int) -> Tensor:
        """Embeddings (batch, n, hidden) at positions from `start` on, each told its slot."""
        if self.slots is None:
            return embeddings
        positions = torch.arange(start, start + embeddings.shape[1], device=embeddings.device)
        slots: Tensor = self.slots(positions - (self.config.prompt_length - 1))
        return embeddings + slots

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
        # Recomputing blocks for the backward pass would append to the cache a second time.
        recomputed = self.training and self.is_gradient_checkpointing
        if len(flat) > len(prompt) and not recomputed:
            hidden = self._prompt_once(prompt, actions)
        else:
            hidden = self._in_one_pass(prompt, actions)
        return self.bin_logits(hidden).reshape(*action_ids.shape, self.config.action_bins)

    def window_logits(
        self, prompt_ids: Tensor, frames: Tensor | None, action_ids: Tensor, first_step: int
    ) -> Tensor:
        """Logits of actions cut out of a clip.

        The first is predicted from the prompt alone, each other one also from those before it in
        the window.

        Args:
            prompt_ids: (batch, prompt_length).
            frames: as in `embed_prompt`.
            action_ids: (batch, n), the window.
            first_step: the action step at which the window begins.

        Returns:
            (batch, n, bins).
        """
        skipped = first_step * self.config.action_dims
        prompt = self.embed_prompt(prompt_ids, frames)
        if skipped and self.slots is not None:
            act = prompt[:, -1:] + self.slots.late_start(first_step)
            prompt = torch.cat([prompt[:, :-1], act], dim=1)
        # Two passes: the actions of the window do not attend to the prompt.
        hidden = self._hidden(prompt)[:, -1:]
        hidden_actions = self._hidden(self.embed_actions(action_ids[:, :-1], skipped))
        return self.bin_logits(torch.cat([hidden, hidden_actions], dim=1))

    def _hidden(self, embeddings: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """LLaMA's last hidden states, of the shape of the embeddings."""
        output = self.language_model.model(
            inputs_embeds=embeddings, past_key_values=cache, use_cache=cache is not None
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _in_one_pass(self, prompt: Tensor, actions: Tensor) -> Tensor:
        """Hidden states from <act> on, (rows, 1 + n, hidden).

        A prompt with k rows of actions is computed k times.
        """
        prompt = prompt.repeat_interleave(len(actions) // len(prompt), dim=0)
        sequence = torch.cat([prompt, actions], dim=1)
        return self._hidden(sequence)[:, self.config.prompt_length - 1 :]

    def _prompt_once(self, prompt: Tensor, actions: Tensor) -> Tensor:
        """The same by way of a key-value cache that all continuations of a prompt share.

        Gradients pass through it.
        """
        continuations = len(actions) // len(prompt)
        cache = DynamicCache(config=self.config.text_config)
        act = self._hidden(prompt, cache)[:, -1:].repeat_interleave(continuations, dim=0)
        if not actions.shape[1]:
            return act
        cache.batch_repeat_interleave(continuations)
        return torch.cat([act, self._hidden(actions, cache)], dim=1)

    def bin_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., hidden) -> logits over the bins (..., bins)."""
        start = self.config.action_token_start
        rows = slice(start, start + self.config.action_bins)
        return F.linear(hidden, self.get_output_embeddings().weight[rows])

    def action_log_probs(
        self,
        prompt_ids: Tensor,
        frames: Tensor | None,
        action_ids: Tensor,
        temperature: float = 1.0,
    ) -> Tensor:
        """`action_log_probs` of the logits that `action_logits` returns for these arguments."""
        logits = self.action_logits(prompt_ids, frames, action_ids)
        first_token = self.config.action_token_start
        return action_log_probs(logits, action_ids, first_token, temperature=temperature)

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

        Args:
            prompt_ids: (batch, prompt_length).
            frames: as in `embed_prompt`.
            temperature: of the softmax over the bins.
            generator: that the draws come from; None = torch's global one.
            tokens: how many to sample; None = the whole horizon.

        Returns:
            Ids (batch, tokens) int64 and their log-probs (batch, tokens) float32.
        """
        cache = DynamicCache(config=self.config.text_config)
        embeddings = self.embed_prompt(prompt_ids, frames)
        ids: list[Tensor] = []
        log_probs: list[Tensor] = []
        for position in range(self.config.action_tokens if tokens is None else tokens):
            logits = self.bin_logits(self._hidden(embeddings, cache)[:, -1])
            scores = torch.log_softmax(logits.float() / temperature, dim=-1)
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


# Who has imported this module can also say AutoModel.from_pretrained(folder).
AutoModel.register(FaceVLAConfig, FaceVLA)
