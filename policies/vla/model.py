"""The VLA policy (VLA + DPO, section III-C).

Encoders of pictures and voice stand in front of LLaMA, which reads and acts in turn.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModel, DynamicCache, LlamaForCausalLM, PreTrainedModel

from rapport.policies.vla.config import FaceVLAConfig
from rapport.policies.vla.encoders import FrameEncoder, VoiceEncoder
from rapport.policies.vla.prompt import picture_shape
from rapport.policies.vla.sequence import (
    Seen,
    context_ids,
    context_of,
    contexts,
    item_offsets,
    predicting,
    slot_tables,
)


class SlotEmbedding(nn.Module):
    """What an action token is about: which dimension it holds, which dimension and step come next.

    All dimensions share the 256 action ids, so that id 900 may be a smile or a nod; only its
    position tells which. A 7B model can count positions from RoPE alone; a small one cannot tell
    dimension 31 from 32 of 56, and would predict the average over dimensions. The slot is a
    function of the position in the context (`slot_tables`), and this table adds it to the input
    embedding: `own[d]` where an action is held, `next[d] + step[t]` where one is predicted. Steps
    begin anew in each chunk.
    """

    def __init__(self, config: FaceVLAConfig) -> None:
        super().__init__()
        hidden = config.text_config.hidden_size
        self.dims = config.action_dims
        self.config = config
        self._tables: dict[torch.device, dict[str, Tensor]] = {}
        self.own = nn.Embedding(config.action_dims, hidden)
        self.next = nn.Embedding(config.action_dims, hidden)
        self.step = nn.Embedding(config.chunk_steps, hidden)

    def forward(self, positions: Tensor) -> Tensor:
        """Positions in a context (...) int64 -> (..., hidden); zero where no action is."""
        at = {name: table[positions] for name, table in self.tables(positions.device).items()}
        ahead: Tensor = self.next(at["next"]) + self.step(at["step"])
        own: Tensor = self.own(at["own"])
        return own * at["holds"].unsqueeze(-1) + ahead * at["predicts"].unsqueeze(-1)

    def tables(self, device: torch.device) -> dict[str, Tensor]:
        """Those of `slot_tables`.

        No buffers: whoever builds a model without memory for its weights would leave them empty.
        """
        if device not in self._tables:
            tables = slot_tables(self.config)
            self._tables[device] = {name: table.to(device) for name, table in tables.items()}
        return self._tables[device]


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
    """pi(actions | what the speaker has shown and said until then), paper Eq. 2-6.

    Sequences are those of `rapport.policies.vla.sequence`; nothing is padded. `lora_scaling` is set
    when adapters are added (`rapport.policies.vla.lora.add_lora`).
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
        self.voice: VoiceEncoder | None = None
        if config.voice_tokens:
            self.voice = VoiceEncoder(config)
        self.language_model = LlamaForCausalLM(config.text_config)  # type: ignore[no-untyped-call]
        self.slots: SlotEmbedding | None = None
        if config.slot_embeddings:
            self.slots = SlotEmbedding(config)
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

    def forward(self, input_ids: Tensor, perceived: Tensor) -> Tensor:
        """Logits (rows, length, vocabulary) of contexts.

        For checks: it computes the whole vocabulary at every position.

        Args:
            input_ids: (rows, length) of `context_ids`.
            perceived: as in `embed`.
        """
        sequence = self.embed(input_ids, perceived)
        logits: Tensor = self.language_model(inputs_embeds=sequence, use_cache=False).logits
        return logits

    def perceive(self, seen: Seen) -> Tensor:
        """Tokens of pictures and voice, (rows, items, item_tokens, hidden).

        Args:
            seen: with `frames` (rows, items, frames, size, size, 3) uint8 and `voice` (rows, items,
                voice_frames, bands) uint8.

        Raises:
            ValueError: the frames are not of the policy's number or size.
        """
        frames = seen["frames"]
        if frames.shape[2:] != picture_shape(self.config):
            raise ValueError(
                f"an item's frames must be {picture_shape(self.config)}, got "
                f"{tuple(frames.shape[2:])}; use build_prompt"
            )
        rows, items = frames.shape[:2]
        pictures: Tensor = self.vision(frames.flatten(0, 2)).reshape(rows, items, -1, self.width)
        if self.voice is None:
            return pictures
        voice = self.voice(seen["voice"].flatten(0, 1)).reshape(rows, items, -1, self.width)
        return torch.cat([pictures, voice], dim=2)

    @property
    def width(self) -> int:
        """Of the language model."""
        hidden: int = self.config.text_config.hidden_size
        return hidden

    def embed(self, ids: Tensor, perceived: Tensor) -> Tensor:
        """Ids of contexts (rows, length) -> (rows, length, hidden), each action told its slot.

        Args:
            ids: of `context_ids`.
            perceived: (rows, items, item_tokens, hidden) of `perceive`, from the context's first
                item on; where an id is not <image>, its token is not looked at.
        """
        embeddings: Tensor = self.get_input_embeddings()(ids)
        config = self.config
        chunks = -(-(ids.shape[1] - config.head_length) // config.period)
        offsets = torch.tensor(item_offsets(config, chunks), device=ids.device)
        width = torch.arange(config.item_tokens, device=ids.device)
        places = (offsets[:, None] + width).flatten()
        tokens = perceived[:, : len(offsets)].flatten(1, 2).to(embeddings.dtype)
        shown = (ids[:, places] == config.image_token_id).unsqueeze(-1)
        placed = torch.where(shown, tokens, embeddings[:, places])
        return self.with_slots(embeddings.index_copy(1, places, placed), start=0)

    def with_slots(self, embeddings: Tensor, start: int) -> Tensor:
        """Embeddings (rows, n, hidden) at positions from `start` on, each told its slot."""
        if self.slots is None:
            return embeddings
        positions = torch.arange(start, start + embeddings.shape[1], device=embeddings.device)
        slots: Tensor = self.slots(positions)
        return embeddings + slots

    def action_logits(self, seen: Seen, actions: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Logits over the 256 bins at every action, teacher-forced.

        Args:
            seen: of prompts (rows, ...), see `seen_of`.
            actions: (rows, n) ids, the first n of reactions, or (rows, k, n) for k reactions to
                each prompt, which is then looked at once.
            inputs: what stands for them before the next ones; None = themselves.

        Returns:
            (rows, n, bins) or (rows, k, n, bins). The vocabulary beyond the bins is never
            computed.
        """
        return self.logits_of(seen, self.perceive(seen), actions, inputs)

    def logits_of(
        self, seen: Seen, perceived: Tensor, actions: Tensor, inputs: Tensor | None = None
    ) -> Tensor:
        """`action_logits` of what is perceived already: of `seen`, ids alone are read.

        Args:
            seen: of prompts (rows, ...).
            perceived: (rows, items, item_tokens, hidden) of `perceive`.
            actions: as in `action_logits`, and what it returns.
            inputs: likewise.
        """
        given = actions if inputs is None else inputs
        flat = given.reshape(-1, given.shape[-1])
        times = len(flat) // len(seen["own"])
        told = {name: seen[name] for name in ("present", "heard", "said", "own")}
        if times > 1:
            perceived = perceived.repeat_interleave(times, dim=0)
            told = {name: value.repeat_interleave(times, dim=0) for name, value in told.items()}
        hidden = []
        for chunk, part in contexts(self.config, flat.shape[1]):
            shown = context_of(self.config, told, flat[:, : part.start])[0]
            ids = context_ids(self.config, shown, flat[:, part][:, :-1])
            sequence = self.embed(ids, perceived[:, chunk:])
            places = predicting(self.config, part.stop - part.start).to(ids.device)
            hidden.append(self.hidden(sequence)[:, places])
        logits = self.bin_logits(torch.cat(hidden, dim=1))
        return logits.reshape(*actions.shape, self.config.action_bins)

    def hidden(self, embeddings: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """LLaMA's last hidden states, of the shape of the embeddings."""
        output = self.language_model.model(
            inputs_embeds=embeddings, past_key_values=cache, use_cache=cache is not None
        )
        last: Tensor = output.last_hidden_state
        return last

    def bin_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., hidden) -> logits over the bins (..., bins)."""
        start = self.config.action_token_start
        rows = slice(start, start + self.config.action_bins)
        return F.linear(hidden, self.get_output_embeddings().weight[rows])

    def action_log_probs(self, seen: Seen, actions: Tensor, temperature: float = 1.0) -> Tensor:
        """`action_log_probs` of the logits that `action_logits` returns for these arguments."""
        logits = self.action_logits(seen, actions)
        first_token = self.config.action_token_start
        return action_log_probs(logits, actions, first_token, temperature=temperature)


def weight_names(config: FaceVLAConfig) -> set[str]:
    """Names of the policy's weights, without building them."""
    with init_empty_weights():
        return set(FaceVLA(config).state_dict())


# Who has imported this module can also say AutoModel.from_pretrained(folder).
AutoModel.register(FaceVLAConfig, FaceVLA)
