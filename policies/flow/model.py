"""AR-Flow: the velocity of the next motion latent, given conditions and the latents before it
(GDPO-Listener, Eq. 3).

One transformer reads two kinds of tokens. The prefix (text, audio, partner motion) attends to
itself. Motion tokens attend to the prefix, to the clean latents before them and to themselves; a
noisy token is attended by nobody else. Flow time is added to noisy tokens only. So keys and values
of the prefix and of clean latents depend neither on the noise nor on the flow time: they are
computed once and kept, exactly, while a latent is denoised and while the sequence grows. And all
latents, denoise steps and samples of a group are computed side by side when they are known.

A velocity is what the transformer says plus the state itself times a gain that depends on the flow
time: most of the velocity of a noisy state is minus its noise, and the transformer is spared to
carry every dimension of it through.

A sample of a group is a `slot`: slots share the prefix of their prompt and have histories of their
own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rapport.policies.flow.conditions import MODALITIES, Conditions
from rapport.policies.flow.config import FlowConfig
from rapport.policies.flow.statistics import mean_and_std
from rapport.policies.flow.tmrope import TEXT_TIME, audio_times, motion_times, rotate, rotations
from rapport.policies.flow.transformer import Block, silent

KEPT, NOISY = (
    len(MODALITIES),
    len(MODALITIES) + 1,
)  # rows of the kind embedding after those of the modalities


@dataclass(frozen=True, eq=False)
class Prefix:
    """The conditions as every layer sees them, laid out in memory as products with them read them.

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
    """Keys and values of clean latents, of each layer: (batch, slots, heads, latents, head_dim)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[-2]


class ARFlow(nn.Module):
    """v_theta(m_{l,t}) of Eq. 3. Latents are those of `MotionVAE.encode`; shapes are in `forward`.

    `fit_features`, before training, sets the buffers that make channels of text and audio features
    of zero mean and unit variance. Those of a frozen encoder lie close together and far from 0:
    with the tiny one, what tells two prompts apart is a sixth of what they have in common, and is
    hardly learnt."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        for name, dim in (("text", config.text_dim), ("audio", config.audio_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(dim))
            self.register_buffer(f"{name}_std", torch.ones(dim))
        self.project_text = nn.Linear(config.text_dim, hidden)
        self.project_audio = nn.Linear(
            config.audio_dim, hidden
        )  # Eq. 1: one projector for both people
        self.project_motion = nn.Linear(config.latent_dim, hidden)
        self.project_latent = nn.Linear(config.latent_dim, hidden)
        # Without it, partner and actor audio of one frame would be the same token.
        self.kinds = nn.Embedding(len(MODALITIES) + 2, hidden)
        self.time = nn.Sequential(
            nn.Linear(TIME_FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )
        self.blocks = nn.ModuleList(
            Block(hidden, config.heads, config.mlp) for _ in range(config.layers)
        )
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.velocity = nn.Linear(hidden, config.latent_dim)
        self.gain = silent(nn.Linear(TIME_FEATURES, config.latent_dim))

    def fit_features(self, text: Iterable[Tensor], audio: Iterable[Tensor]) -> None:
        """Mean and standard deviation of every channel over the features of a corpus; none given
        change nothing.

        Args:
            text, audio: (..., text_dim) and (..., audio_dim), one by one, so that a corpus need not
                fit in memory.
        """
        for name, given in (("text", text), ("audio", audio)):
            if (found := mean_and_std(given)) is not None:
                getattr(self, f"{name}_mean").copy_(found[0])
                getattr(self, f"{name}_std").copy_(found[1])

    def encode_prefix(self, conditions: Conditions, streaming: bool | Tensor = False) -> Prefix:
        """Keys and values of the conditions (Eq. 1-2), to be used for as many latents and samples
        as wanted.

        Args:
            streaming: one for all or (batch,) bool. If true, a token sees only what is heard by its
                own frame and a latent what is heard by the last frame it stands for: the delay is r
                frames. Without it, everything in the window, the future too.
        """
        conditions.check(self.config)
        batch, device = conditions.batch, self.velocity.weight.device
        streaming = torch.as_tensor(streaming, device=device).expand(batch)
        tokens, times, heard, kinds = [], [], [], []
        for kind, name in enumerate(MODALITIES):
            if name not in conditions.given:
                continue
            token, time, complete = self._condition_tokens(name, conditions.given[name])
            # What is absent may be anything, NaN too, and 0 times NaN is NaN.
            token = torch.where(conditions.presence()[:, kind, None, None], token, 0.0)
            tokens.append(token + self.kinds.weight[kind])
            times.append(time)
            heard.append(complete)
            kinds += [kind] * len(time)
        if not tokens:
            empty = self.velocity.weight.new_zeros(batch, self.config.heads, 0, self.head_dim)
            none, layers = torch.zeros(0, dtype=torch.int64, device=device), self.config.layers
            return Prefix(
                (empty.mT,) * layers,
                (empty,) * layers,
                none.new_zeros(batch, 0, dtype=torch.bool),
                none,
                streaming,
            )
        x, heard = torch.cat(tokens, dim=1), torch.cat(heard)
        present = conditions.presence()[:, kinds]
        seen = present.unsqueeze(1) & _timely(heard, heard, streaming)
        seen = (seen | torch.eye(len(heard), dtype=torch.bool, device=device)).unsqueeze(1)
        rotation = rotations(torch.cat(times), self.head_dim)
        keys, values = [], []
        for block in self.blocks:
            q, k, v = block.queries_keys_values(x)
            k = rotate(k, rotation)
            keys.append(k.mT.contiguous())
            values.append(v.contiguous())
            if block is not self.blocks[-1]:  # nobody reads the prefix after its last keys
                x = block.finish(x, F.scaled_dot_product_attention(rotate(q, rotation), k, v, seen))
        return Prefix(tuple(keys), tuple(values), present, heard, streaming)

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
        self._check(prefix, clean, noisy, number, past)
        config, device = self.config, clean.device
        known, count = 0 if past is None else len(past), clean.shape[2]
        when = time_features(time.to(noisy)).expand(*noisy.shape[:-1], -1)
        tokens = torch.cat(
            [
                self.project_latent(clean) + self.kinds.weight[KEPT],
                self.project_latent(noisy) + self.kinds.weight[NOISY] + self.time(when),
            ],
            dim=2,
        )
        numbers = torch.cat([torch.arange(known, known + count, device=device), number])
        rotation = rotations(motion_times(numbers, config.downsample), self.head_dim)
        seen = prefix.visible((numbers + 1) * config.downsample - 1).unsqueeze(1)
        if conditioned is not None:
            seen = seen & conditioned[:, None, None]
        seen = None if seen.all() else seen.unsqueeze(2)  # (batch, slots, 1, tokens, prefix)
        earlier = torch.arange(known + count, device=device) < numbers.unsqueeze(1)
        earlier = None if earlier.all() else earlier

        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            q, k, v = block.queries_keys_values(tokens)
            q, k = rotate(q, rotation), rotate(k, rotation)
            past_k, past_v = k[..., :count, :], v[..., :count, :]
            if past is not None and not count:
                past_k, past_v = past.keys[layer], past.values[layer]
            elif past is not None:
                past_k = torch.cat([past.keys[layer], past_k], dim=-2)
                past_v = torch.cat([past.values[layer], past_v], dim=-2)
            keys.append(past_k)
            values.append(past_v)
            attended = _attend(
                q,
                (prefix.keys[layer], prefix.values[layer], seen),
                (past_k, past_v, earlier),
                (k, v),
            )
            tokens = block.finish(tokens, attended)
        velocity = self.velocity(self.norm(tokens[:, :, count:])) + self.gain(when) * noisy
        return velocity, History(tuple(keys), tuple(values))

    @property
    def head_dim(self) -> int:
        return self.config.hidden // self.config.heads

    def _condition_tokens(self, name: str, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (batch, n, hidden) of one modality, their times of Eq. 2 and the frames at which
        they are complete.
        """
        r, device = self.config.downsample, features.device
        if name == "text":
            time = torch.full((1,), TEXT_TIME, device=device)
            return (
                self.project_text((features - self.text_mean) / self.text_std).unsqueeze(1),
                time,
                time,
            )
        if name == "partner_motion":
            latents = torch.arange(features.shape[1], device=device)
            return self.project_motion(features), motion_times(latents, r), (latents + 1) * r - 1
        time = audio_times(features.shape[1], device)
        return self.project_audio((features - self.audio_mean) / self.audio_std), time, time

    def _check(
        self, prefix: Prefix, clean: Tensor, noisy: Tensor, number: Tensor, past: History | None
    ) -> None:
        for name, latents in (("clean", clean), ("noisy", noisy)):
            if latents.ndim != 4 or latents.shape[-1] != self.config.latent_dim:
                raise ValueError(
                    f"{name} latents must be (batch, slots, n, {self.config.latent_dim}), got "
                    f"{tuple(latents.shape)}"
                )
        if clean.shape[:2] != noisy.shape[:2] or len(clean) != len(prefix.present):
            raise ValueError(
                f"prefix of {len(prefix.present)} prompts, clean latents {tuple(clean.shape)} "
                "and noisy "
                f"ones {tuple(noisy.shape)} must agree in batch and slots"
            )
        known = clean.shape[2] + (0 if past is None else len(past))
        fits = number.shape == noisy.shape[2:3] and bool(((number >= 0) & (number <= known)).all())
        if not fits:
            raise ValueError(
                f"numbers {number.tolist()} of {noisy.shape[2]} noisy latents must be one each "
                "and at most"
                f" {known}, the latents that are known"
            )


TIME_FEATURES = 256


def time_features(time: Tensor) -> Tensor:
    """Sinusoids of 1000 t, (..., 256): the usual embedding of flow time (DiT, Peebles & Xie 2023)."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(
        -math.log(10_000) * torch.arange(half, device=time.device, dtype=time.dtype) / half
    )
    angles = 1000 * time.unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def initialised(config: FlowConfig, seed: int) -> ARFlow:
    """A model with random weights, the same for the same seed; the caller's random state is left
    alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARFlow(config)


def _timely(heard: Tensor, now: Tensor, streaming: Tensor) -> Tensor:
    """(batch, n, tokens) bool: whether a token is heard at `now` (n,), or the sample does not
    stream.
    """
    return (heard <= now.unsqueeze(1)) | ~streaming[:, None, None]


def _attend(
    q: Tensor,
    prefix: tuple[Tensor, Tensor, Tensor | None],
    history: tuple[Tensor, Tensor, Tensor | None],
    own: tuple[Tensor, Tensor],
) -> Tensor:
    """Attention of motion tokens over prefix, history and themselves in one softmax.

    Written out so that the prefix of a prompt is read once for all its slots, and a noisy token's
    key by itself only.

    Args:
        q: (batch, slots, heads, n, head_dim).
        prefix: keys (batch, heads, head_dim, p), values (batch, heads, p, head_dim), mask (batch, 1
            or slots, 1, n, p) or None.
        history: keys and values (batch, slots, heads, h, head_dim), mask (n, h) or None.
        own: keys and values like `q`.
    """
    slots, n = q.shape[1], q.shape[3]
    q = q * q.shape[-1] ** -0.5
    together = q.transpose(1, 2).flatten(2, 3)  # (batch, heads, slots n, head_dim)
    of_prefix = (together @ prefix[0]).unflatten(2, (slots, n)).transpose(1, 2)
    of_history = q @ history[0].mT
    if prefix[2] is not None:
        of_prefix = of_prefix.masked_fill(~prefix[2], -torch.inf)
    if history[2] is not None:
        of_history = of_history.masked_fill(~history[2], -torch.inf)
    of_own = (q * own[0]).sum(-1, keepdim=True)
    weights = torch.cat([of_prefix, of_history, of_own], dim=-1).softmax(dim=-1)
    to_prefix, to_history, to_own = weights.split(
        [of_prefix.shape[-1], of_history.shape[-1], 1], dim=-1
    )
    from_prefix = to_prefix.transpose(1, 2).flatten(2, 3) @ prefix[1]
    from_prefix = from_prefix.unflatten(2, (slots, n)).transpose(1, 2)
    return from_prefix + to_history @ history[1] + to_own * own[1]
