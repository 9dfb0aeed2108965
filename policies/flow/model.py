"""AR-Flow (GDPO-Listener, Eq. 3).

It gives the velocity of the next motion latent from conditions and the latents before it.

One transformer reads two kinds of tokens. The prefix (text, audio, partner motion) attends to
itself. Motion tokens attend to the prefix, to the clean latents before them and to themselves; a
noisy token is attended by nobody else. Flow time is added to noisy tokens only. So keys and values
of the prefix and of clean latents depend neither on the noise nor on the flow time: they are
computed once and kept, exactly, while a latent is denoised and while the sequence grows. And all
latents, denoise steps and samples of a group are computed side by side when they are known.

A velocity is the transformer's output plus the state itself times a gain that depends on the flow
time: most of the velocity of a noisy state is minus its noise, which the transformer then need not
carry through in every dimension.

A sample of a group is a `slot`: slots share the prefix of their prompt and have histories of their
own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rapport.policies.flow.conditions import MODALITIES, Conditions
from rapport.policies.flow.config import FlowSizes
from rapport.policies.flow.statistics import mean_and_std
from rapport.policies.flow.tmrope import TEXT_TIME, audio_times, motion_times, rotate, rotations
from rapport.policies.flow.transformer import Block, Blocks, silent

# Rows of the kind embedding after those of the modalities.
CLEAN_KIND = len(MODALITIES)
NOISY_KIND = len(MODALITIES) + 1

TIME_FEATURES = 256


@dataclass(frozen=True, eq=False)
class Prefix:
    """The conditions as every layer sees them.

    In memory they are laid out in the order in which matrix products read them.

    Args:
        keys: of each layer, rotated, (batch, heads, head_dim, tokens).
        values: of each layer, (batch, heads, tokens, head_dim).
        present: (batch, tokens) bool, whether the sample has the token's modality.
        heard: (tokens,) int64, the frame at which a token is complete.
        streaming: (batch,) bool, whether tokens later than the present frame are hidden.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    present: Tensor
    heard: Tensor
    streaming: Tensor

    def visible(self, now: Tensor) -> Tensor:
        """(batch, n, tokens) bool: what is seen at the present frames `now` (n,)."""
        return self.present.unsqueeze(1) & _timely(self.heard, now, self.streaming)


@dataclass(frozen=True, eq=False)
class History:
    """Keys and values of clean latents, of each layer.

    Each is (batch, slots, heads, latents, head_dim).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[-2]


class ARFlow(nn.Module):
    """v_theta(m_{l,t}) of Eq. 3. Latents are those of `MotionVAE.encode`; shapes are in `forward`.

    `fit_features`, before training, sets the buffers that make channels of text and audio features
    of zero mean and unit variance. Those of a frozen encoder lie close together and far from 0:
    with the tiny one, what tells two prompts apart is a sixth of what they have in common, and is
    hardly learnt.
    """

    text_mean: Tensor
    text_std: Tensor
    audio_mean: Tensor
    audio_std: Tensor

    def __init__(self, config: FlowSizes) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        for name, dim in (("text", config.text_dim), ("audio", config.audio_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(dim))
            self.register_buffer(f"{name}_std", torch.ones(dim))
        self.project_text = nn.Linear(config.text_dim, hidden)
        # Eq. 1: one projector for the audio of both people.
        self.project_audio = nn.Linear(config.audio_dim, hidden)
        self.project_motion = nn.Linear(config.latent_dim, hidden)
        self.project_latent = nn.Linear(config.latent_dim, hidden)
        # Without it, partner and actor audio of one frame would be the same token.
        self.kinds = nn.Embedding(len(MODALITIES) + 2, hidden)
        self.time = nn.Sequential(
            nn.Linear(TIME_FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )
        self.blocks = Blocks(Block(hidden, config.heads, config.mlp) for _ in range(config.layers))
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.velocity = nn.Linear(hidden, config.latent_dim)
        self.gain = silent(nn.Linear(TIME_FEATURES, config.latent_dim))

    def fit_features(self, text: Iterable[Tensor], audio: Iterable[Tensor]) -> None:
        """Mean and standard deviation of every channel over the features of a corpus.

        They come one by one, so that a corpus need not fit in memory. A modality without features
        keeps its buffers.

        Args:
            text: (..., text_dim).
            audio: (..., audio_dim).
        """
        text_statistics = mean_and_std(text)
        if text_statistics is not None:
            self.text_mean.copy_(text_statistics[0])
            self.text_std.copy_(text_statistics[1])
        audio_statistics = mean_and_std(audio)
        if audio_statistics is not None:
            self.audio_mean.copy_(audio_statistics[0])
            self.audio_std.copy_(audio_statistics[1])

    def encode_prefix(self, conditions: Conditions, streaming: bool | Tensor = False) -> Prefix:
        """Keys and values of the conditions (Eq. 1-2), for any number of latents and samples.

        Args:
            conditions: of the prompts.
            streaming: one for all or (batch,) bool. If true, a token sees only what is heard by its
                own frame and a latent what is heard by the last frame it stands for: the delay is r
                frames. Without it, everything in the window, the future too.
        """
        conditions.check(self.config)
        streaming = torch.as_tensor(streaming, device=self.velocity.weight.device)
        streaming = streaming.expand(conditions.batch)
        presence = conditions.presence()
        tokens: list[Tensor] = []
        times: list[Tensor] = []
        completions: list[Tensor] = []
        kinds: list[int] = []
        for kind, name in enumerate(MODALITIES):
            if name not in conditions.given:
                continue
            embedded, time, complete = self._condition_tokens(name, conditions.given[name])
            # What is absent may be anything, NaN too, and 0 times NaN is NaN.
            embedded = torch.where(presence[:, kind, None, None], embedded, 0.0)
            tokens.append(embedded + self.kinds.weight[kind])
            times.append(time)
            completions.append(complete)
            kinds += [kind] * len(time)
        if not tokens:
            return self._empty_prefix(streaming)
        x = torch.cat(tokens, dim=1)
        heard = torch.cat(completions)
        present = presence[:, kinds]
        seen = present.unsqueeze(1) & _timely(heard, heard, streaming)
        # Every token sees itself, or the softmax of an absent one would have nothing to divide by.
        itself = torch.eye(len(heard), dtype=torch.bool, device=seen.device)
        seen = (seen | itself).unsqueeze(1)
        rotation = rotations(torch.cat(times), self.head_dim)
        prefix_keys: list[Tensor] = []
        prefix_values: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            queries, keys, values = block.queries_keys_values(x)
            keys = rotate(keys, rotation)
            prefix_keys.append(keys.mT.contiguous())
            prefix_values.append(values.contiguous())
            # Nobody reads the prefix after its last keys.
            if layer < self.config.layers - 1:
                queries = rotate(queries, rotation)
                x = block.finish(x, F.scaled_dot_product_attention(queries, keys, values, seen))
        return Prefix(
            keys=tuple(prefix_keys),
            values=tuple(prefix_values),
            present=present,
            heard=heard,
            streaming=streaming,
        )

    def _empty_prefix(self, streaming: Tensor) -> Prefix:
        """The prefix of samples without any modality."""
        batch = len(streaming)
        nothing = self.velocity.weight.new_zeros(batch, self.config.heads, 0, self.head_dim)
        return Prefix(
            keys=(nothing.mT,) * self.config.layers,
            values=(nothing,) * self.config.layers,
            present=torch.zeros(batch, 0, dtype=torch.bool, device=nothing.device),
            heard=torch.zeros(0, dtype=torch.int64, device=nothing.device),
            streaming=streaming,
        )

    def forward(
        self,
        prefix: Prefix,
        clean: Tensor,
        noisy: Tensor,
        time: Tensor,
        number: Tensor,
        past: History | None = None,
        conditioned: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        """Velocities of noisy latents, and the history with the clean ones added.

        Args:
            prefix: of the prompts.
            clean: (batch, slots, c, latent_dim), the latents that follow those in `past` (c may be
                0).
            noisy: (batch, slots, n, latent_dim), states m_{l,t} on their way (n may be 0).
            time: flow time t of each noisy latent in [0, 1], (n,) or broadcast to (batch, slots,
                n): 0 is noise.
            number: (n,) int64, l of each noisy latent in the window; several may have the same. It
                sees clean latents before l, which must all be there.
            past: history so far.
            conditioned: (slots,) bool, which slots see the prefix; None = all. The others are
                unconditional (Eq. 6).

        Returns:
            (batch, slots, n, latent_dim) and the history, to be passed on as `past`.
        """
        self._check_latents(prefix, clean, noisy)
        self._check_numbers(clean, noisy, number=number, past=past)
        known = 0 if past is None else len(past)
        count = clean.shape[2]
        time = time.to(noisy.device, torch.promote_types(noisy.dtype, torch.float32))
        when = time_features(time).to(noisy.dtype).expand(*noisy.shape[:-1], -1)
        clean_tokens = self.project_latent(clean) + self.kinds.weight[CLEAN_KIND]
        noisy_tokens = self.project_latent(noisy) + self.kinds.weight[NOISY_KIND] + self.time(when)
        tokens = torch.cat([clean_tokens, noisy_tokens], dim=2)
        numbers = torch.cat([torch.arange(known, known + count, device=clean.device), number])
        rotation = rotations(motion_times(numbers, self.config.downsample), self.head_dim)
        prefix_mask = self._prefix_mask(prefix, numbers, conditioned)
        history_mask = _or_none(
            torch.arange(known + count, device=clean.device) < numbers.unsqueeze(1)
        )

        history_keys: list[Tensor] = []
        history_values: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            queries, keys, values = block.queries_keys_values(tokens)
            queries = rotate(queries, rotation)
            keys = rotate(keys, rotation)
            past_keys = keys[..., :count, :]
            past_values = values[..., :count, :]
            if past is not None and not count:
                past_keys = past.keys[layer]
                past_values = past.values[layer]
            elif past is not None:
                past_keys = torch.cat([past.keys[layer], past_keys], dim=-2)
                past_values = torch.cat([past.values[layer], past_values], dim=-2)
            history_keys.append(past_keys)
            history_values.append(past_values)
            attended = _attend(
                queries,
                prefix=Attended(prefix.keys[layer], prefix.values[layer], prefix_mask),
                history=Attended(past_keys, past_values, history_mask),
                own=Attended(keys, values, None),
            )
            tokens = block.finish(tokens, attended)
        velocity = self.velocity(self.norm(tokens[:, :, count:])) + self.gain(when) * noisy
        return velocity, History(tuple(history_keys), tuple(history_values))

    def _prefix_mask(
        self, prefix: Prefix, numbers: Tensor, conditioned: Tensor | None
    ) -> Tensor | None:
        """(batch, 1 or slots, 1, tokens, prefix) bool: what latents see of the prefix; None = all.

        A latent sees what is heard by the last frame that it stands for.
        """
        seen = prefix.visible((numbers + 1) * self.config.downsample - 1).unsqueeze(1)
        if conditioned is not None:
            seen = seen & conditioned[:, None, None]
        return _or_none(seen.unsqueeze(2))

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.config.hidden // self.config.heads

    def _condition_tokens(self, name: str, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (batch, n, hidden) of one modality, and (n,) frames at which they stand.

        Returns:
            The tokens, their times of Eq. 2, and the frames at which they are complete.
        """
        r = self.config.downsample
        device = features.device
        if name == "text":
            time = torch.full((1,), TEXT_TIME, device=device)
            text = (features - self.text_mean) / self.text_std
            return self.project_text(text).unsqueeze(1), time, time
        if name == "partner_motion":
            latents = torch.arange(features.shape[1], device=device)
            return self.project_motion(features), motion_times(latents, r), (latents + 1) * r - 1
        time = audio_times(features.shape[1], device)
        return self.project_audio((features - self.audio_mean) / self.audio_std), time, time

    def _check_latents(self, prefix: Prefix, clean: Tensor, noisy: Tensor) -> None:
        """Raise `ValueError` unless shapes fit the config and each other."""
        for name, latents in (("clean", clean), ("noisy", noisy)):
            if latents.ndim != 4 or latents.shape[-1] != self.config.latent_dim:
                raise ValueError(
                    f"{name} latents must be (batch, slots, n, {self.config.latent_dim}), got "
                    f"{tuple(latents.shape)}"
                )
        if clean.shape[:2] != noisy.shape[:2] or len(clean) != len(prefix.present):
            raise ValueError(
                f"prefix of {len(prefix.present)} prompts, clean latents {tuple(clean.shape)} "
                f"and noisy ones {tuple(noisy.shape)} must agree in batch and slots"
            )

    def _check_numbers(
        self, clean: Tensor, noisy: Tensor, number: Tensor, past: History | None
    ) -> None:
        """Raise `ValueError` unless every latent before each noisy one is known."""
        known = clean.shape[2] + (0 if past is None else len(past))
        fits = number.shape == noisy.shape[2:3] and bool(((number >= 0) & (number <= known)).all())
        if not fits:
            raise ValueError(
                f"numbers {number.tolist()} of {noisy.shape[2]} noisy latents must be one each "
                f"and at most {known}, the latents that are known"
            )


def time_features(time: Tensor) -> Tensor:
    """Sinusoids of 1000 t, (..., 256): the usual embedding of flow time.

    DiT, Peebles & Xie 2023. At least in float32: bfloat16 cannot tell 1000 t from 1000 t + 3.
    """
    half = TIME_FEATURES // 2
    time = time.to(torch.promote_types(time.dtype, torch.float32))
    frequencies = torch.exp(
        -math.log(10_000) * torch.arange(half, device=time.device, dtype=time.dtype) / half
    )
    angles = 1000 * time.unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def initialised(config: FlowSizes, seed: int) -> ARFlow:
    """A model with random weights, the same for the same seed.

    The caller's random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARFlow(config)


def _timely(heard: Tensor, now: Tensor, streaming: Tensor) -> Tensor:
    """(batch, n, tokens) bool: whether a token is heard at `now` (n,).

    Where a sample does not stream, every token is.
    """
    return (heard <= now.unsqueeze(1)) | ~streaming[:, None, None]


def _or_none(mask: Tensor) -> Tensor | None:
    """The mask, or None where it hides nothing, which spares the filling of scores."""
    return None if bool(mask.all()) else mask


@dataclass(frozen=True, eq=False)
class Attended:
    """Keys and values that queries attend to, and the mask of what they see; None = all."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None


def _attend(queries: Tensor, prefix: Attended, history: Attended, own: Attended) -> Tensor:
    """Attention of motion tokens over prefix, history and themselves in one softmax.

    Written out so that the prefix of a prompt is read once for all its slots, and a noisy token's
    key by itself only.

    Args:
        queries: (batch, slots, heads, n, head_dim).
        prefix: keys (batch, heads, head_dim, p), values (batch, heads, p, head_dim), mask (batch, 1
            or slots, 1, n, p).
        history: keys and values (batch, slots, heads, h, head_dim), mask (n, h).
        own: keys and values of the tokens themselves, shaped like the queries.
    """
    slots = queries.shape[1]
    count = queries.shape[3]
    queries = queries * queries.shape[-1] ** -0.5
    # All slots of a prompt in one product with its prefix: (batch, heads, slots n, head_dim).
    together = queries.transpose(1, 2).flatten(2, 3)
    prefix_scores = torch.unflatten(together @ prefix.keys, 2, (slots, count)).transpose(1, 2)
    if prefix.mask is not None:
        prefix_scores = prefix_scores.masked_fill(~prefix.mask, -torch.inf)
    history_scores = queries @ history.keys.mT
    if history.mask is not None:
        history_scores = history_scores.masked_fill(~history.mask, -torch.inf)
    own_scores = (queries * own.keys).sum(-1, keepdim=True)
    weights = torch.cat([prefix_scores, history_scores, own_scores], dim=-1).softmax(dim=-1)
    prefix_weights, history_weights, own_weights = torch.split(
        weights, [prefix_scores.shape[-1], history_scores.shape[-1], 1], dim=-1
    )
    from_prefix = prefix_weights.transpose(1, 2).flatten(2, 3) @ prefix.values
    from_prefix = torch.unflatten(from_prefix, 2, (slots, count)).transpose(1, 2)
    return from_prefix + history_weights @ history.values + own_weights * own.values
