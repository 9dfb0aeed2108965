"""AR-Flow (GDPO-Listener, Eq. 3).

It gives the velocity of the next motion latent from conditions and the latents before it.

One transformer reads two kinds of tokens. The prefix is what was heard and seen: a token of audio
or partner motion attends to those until its own frame, the prompt's to itself. Motion tokens attend
to the prefix, to the clean latents before them and to themselves; a noisy token is attended by
nobody else. Flow time is added to noisy tokens only. So keys and values of the prefix and of clean
latents depend neither on what follows, nor on the noise or the flow time: they are computed once
and kept, exactly, while a latent is denoised and while the sequence grows. And all latents, denoise
steps and samples of a group are computed side by side when they are known.

How much of the prefix a latent sees is its `lead`: latent l, which stands for frames [l r, (l + 1)
r), sees what is heard before frame l r + lead. A policy is trained with several, so one policy
serves any delay. A latent of partner motion is complete with its last frame: with a lead of less
than r the newest one is not there yet.

Nothing is looked back at for longer than `span` latents, in every layer. What is older may be
dropped without a trace: an endless sequence is what one pass over all of it would give.

Before a latent is generated, the transformer says what to expect: a token that is neither noisy nor
knows the own past looks at what was heard and seen, and its output is the path that a face would
take here on average (`ARFlow.expect`). That is learnt by least squares. A velocity alone teaches
next to nothing of it: noise and the own past make up nearly all of its error, and what a speaker
explains is lost among them. Noisy tokens are told what is expected. The paper has nothing of it.

A velocity is the transformer's output plus the state itself times a gain that depends on the flow
time: most of the velocity of a noisy state is minus its noise, which the transformer then need not
carry through in every dimension.

A sample of a group is a `slot`: slots share the prefix of their prompt and have histories of their
own.

Samples of a batch may be at places of their own, as live sessions are: then what counts frames and
latents has a row for each, and all the work is of one shape, whatever the numbers are
(`rapport.policies.flow.step`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rapport.policies.flow.conditions import LEAD, MODALITIES, Conditions, lead_frames
from rapport.policies.flow.config import FlowSizes
from rapport.policies.flow.statistics import mean_and_std
from rapport.policies.flow.tmrope import audio_times, motion_times, rotate, rotations
from rapport.policies.flow.transformer import Block, Blocks, silent
from rapport.policies.flow.voice import Hearing, VoiceEncoder

# Rows of the kind embedding after those of the modalities.
CLEAN_KIND = len(MODALITIES)
NOISY_KIND = len(MODALITIES) + 1
ASKING_KIND = len(MODALITIES) + 2

TIME_FEATURES = 256


@dataclass(frozen=True, eq=False)
class Prefix:
    """The conditions as every layer sees them.

    In memory they are laid out in the order in which matrix products read them.

    Args:
        text: the prompt's keys and values, not rotated; 0 tokens without a prompt.
        scene: those of audio and partner motion, rotated.
        told: (batch, text tokens) bool, whether the sample has a prompt.
        present: (batch, tokens) bool, whether the sample has the token's modality.
        heard: (tokens,) int64, the frame at which a token is complete; or (batch, tokens).
        lead: (batch,) int64, frames of a latent that are heard before it is generated.
        frames: that were encoded so far, those that were dropped too; or (batch, 1) int64.
        voices: what the next tokens of each voice depend on.
    """

    text: Layers
    scene: Layers
    told: Tensor
    present: Tensor
    heard: Tensor
    lead: Tensor
    frames: int | Tensor
    voices: Mapping[str, Hearing]

    def last(self, tokens: int) -> Prefix:
        """With so many of the scene's tokens, the newest."""
        scene = Layers(
            keys=tuple(keys[..., -tokens:] for keys in self.scene.keys),
            values=tuple(values[..., -tokens:, :] for values in self.scene.values),
        )
        return replace(
            self,
            scene=scene,
            present=self.present[..., -tokens:],
            heard=self.heard[..., -tokens:],
        )

    def since(self, frame: int) -> Prefix:
        """Without the tokens of earlier frames."""
        kept = self.heard >= frame
        if kept.all():
            return self
        return replace(
            self,
            scene=self.scene.of_tokens(kept),
            present=self.present[:, kept],
            heard=self.heard[kept],
        )


@dataclass(frozen=True, eq=False)
class Layers:
    """Keys and values of the tokens of a prefix, of each layer.

    Args:
        keys: (batch, heads, head_dim, tokens) each.
        values: (batch, heads, tokens, head_dim) each.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def of_tokens(self, kept: Tensor) -> Layers:
        """Some of the tokens, by a mask (tokens,)."""
        return Layers(
            keys=tuple(keys[..., kept].contiguous() for keys in self.keys),
            values=tuple(values[..., kept, :].contiguous() for values in self.values),
        )


@dataclass(frozen=True, eq=False)
class History:
    """Keys and values of clean latents, of each layer.

    Each is (batch, slots, heads, latents, head_dim).

    Args:
        keys: of each layer.
        values: of each layer.
        first: number of the first latent; or (batch, 1) int64. There are none below 0, whatever
            stands in their places.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    first: int | Tensor = 0

    @property
    def latents(self) -> int:
        """How many there are."""
        return self.keys[0].shape[-2] if self.keys else 0

    @property
    def end(self) -> int | Tensor:
        """Number of the latent that follows."""
        return self.first + self.latents

    def last(self, latents: int) -> History:
        """With so many latents at most, the newest."""
        dropped = max(self.latents - latents, 0)
        return History(
            keys=tuple(keys[..., dropped:, :] for keys in self.keys),
            values=tuple(values[..., dropped:, :] for values in self.values),
            first=self.first + dropped,
        )


@dataclass(frozen=True, eq=False)
class Sight:
    """Who sees what.

    Args:
        conditioned: (slots,) bool, which slots see the prefix; None = all. The others are
            unconditional (Eq. 6).
        remembers: (batch,) bool, whose noisy latents see clean ones; None = all.
        expected: what `ARFlow.expect` says of the noisy latents; None = it is asked. Whoever
            evaluates a latent several times asks once.
    """

    conditioned: Tensor | None = None
    remembers: Tensor | None = None
    expected: Tensor | None = None


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
        # Eq. 1: one for the audio of both people.
        self.project_audio: nn.Linear | VoiceEncoder = nn.Linear(config.audio_dim, hidden)
        if config.voice is not None:
            self.project_audio = VoiceEncoder(config.audio_dim, config.voice, hidden)
        self.project_motion = nn.Linear(config.latent_dim, hidden)
        self.project_latent = nn.Linear(config.latent_dim, hidden)
        # Without it, partner and actor audio of one frame would be the same token.
        self.kinds = nn.Embedding(len(MODALITIES) + 3, hidden)
        self.time = nn.Sequential(
            nn.Linear(TIME_FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )
        self.blocks = Blocks(Block(hidden, config.heads, config.mlp) for _ in range(config.layers))
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.velocity = nn.Linear(hidden, config.latent_dim)
        self.gain = silent(nn.Linear(TIME_FEATURES, config.latent_dim))
        if config.path is not None:
            self.path_norm = nn.RMSNorm(hidden, eps=1e-6)
            self.path = nn.Linear(hidden, config.path)
            self.project_path = nn.Linear(config.path, hidden)

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

    def encode_prefix(
        self,
        conditions: Conditions,
        lead: int | Tensor | None = LEAD,
        past: Prefix | None = None,
    ) -> Prefix:
        """Keys and values of the conditions (Eq. 1-2), for any number of latents and samples.

        They are causal: those of a token depend on what is heard and seen until its own frame.

        Args:
            conditions: of the prompts.
            lead: frames of a latent that are heard before it is generated, one of `LEADS`, None =
                everything in the window; or (batch,) int64 frames, as `draw_leads` gives them.
            past: what these conditions follow, which goes on. Its prompt, and its lead, stay.
        """
        conditions.check(self.config)
        presence = conditions.presence()
        if past is None:
            past = self._nothing_heard(conditions, presence, lead)
        elif conditions.text is not None:
            raise ValueError("a prompt cannot change while a sequence grows; leave text out")
        frames = conditions.frames(self.config.downsample)
        return self.grow(past, conditions.given, presence, frames)

    def grow(
        self, past: Prefix, features: Mapping[str, Tensor], presence: Tensor, frames: int
    ) -> Prefix:
        """The prefix with what is heard and seen in the frames that follow.

        A voice that is absent in them begins anew when it is there again.

        Args:
            past: the prefix so far.
            features: of `Conditions`, by modality, all of the same frames; a prompt is not read.
            presence: (batch, 4) bool, which of `MODALITIES` each sample has in them.
            frames: how many they are.
        """
        tokens: list[Tensor] = []
        times: list[Tensor] = []
        completions: list[Tensor] = []
        presences: list[Tensor] = []
        voices: dict[str, Hearing] = {}
        for kind, name in enumerate(MODALITIES):
            if name == "text" or name not in features:
                continue
            there = presence[:, kind]
            # What is absent may be anything, NaN too, and 0 times NaN is NaN.
            values = torch.where(there[:, None, None], features[name], 0.0)
            if name == "partner_motion":
                latents = torch.arange(values.shape[1], device=values.device)
                embedded = self.project_motion(values)
                times.append(motion_times(latents, self.config.downsample))
                completions.append((latents + 1) * self.config.downsample - 1)
            else:
                embedded, hearing = self._voice(values, past.voices.get(name))
                if hearing is not None:
                    voices[name] = hearing.where(there)
                times.append(audio_times(frames, self.stride, values.device))
                completions.append(times[-1])
            tokens.append(embedded + self.kinds.weight[kind])
            presences.append(there.unsqueeze(1).expand(-1, embedded.shape[1]))
        if not tokens:
            return past
        heard = past.frames + torch.cat(completions)
        everything = torch.cat([past.heard, heard], dim=-1)
        present = torch.cat([past.present, *presences], dim=1)
        seen = self._within_span(everything, heard // self.config.downsample)
        seen = seen & (everything.unsqueeze(-2) <= heard.unsqueeze(-1)) & present.unsqueeze(1)
        # Every token sees itself, or the softmax of an absent one would have nothing to divide by.
        itself = torch.eye(heard.shape[-1], dtype=torch.bool, device=heard.device)
        seen = (seen | F.pad(itself, (past.heard.shape[-1], 0))).unsqueeze(1)
        rotation = rotations((past.frames + torch.cat(times)).unsqueeze(-2), self.head_dim)
        scene = self._scene(torch.cat(tokens, dim=1), rotation, seen=seen, past=past.scene)
        return replace(
            past,
            scene=scene,
            present=present,
            heard=everything,
            frames=past.frames + frames,
            voices=voices,
        )

    def _nothing_heard(
        self, conditions: Conditions, presence: Tensor, lead: int | Tensor | None
    ) -> Prefix:
        """The prefix before the first frame: the prompt, if there is one."""
        batch = len(presence)
        weight = self.velocity.weight
        frames = lead if isinstance(lead, Tensor) else torch.tensor(lead_frames(lead))
        none = torch.zeros(batch, 0, dtype=torch.bool, device=weight.device)
        nothing = weight.new_zeros(batch, self.config.heads, 0, self.head_dim)
        empty = Layers(
            keys=(nothing.mT,) * self.config.layers, values=(nothing,) * self.config.layers
        )
        text = empty
        told = none
        if conditions.text is not None:
            told = presence[:, :1]
            text = self._prompt(torch.where(told, conditions.text, 0.0))
        return Prefix(
            text=text,
            scene=empty,
            told=told,
            present=none,
            heard=torch.zeros(0, dtype=torch.int64, device=weight.device),
            lead=frames.to(weight.device).expand(batch),
            frames=0,
            voices={},
        )

    def _prompt(self, features: Tensor) -> Layers:
        """Keys and values of the prompt (batch, text_dim), which attends to nothing but itself."""
        standardised = (features - self.text_mean) / self.text_std
        x = self.project_text(standardised).unsqueeze(1) + self.kinds.weight[0]
        all_keys: list[Tensor] = []
        all_values: list[Tensor] = []
        for block in self.blocks:
            _, keys, values = block.queries_keys_values(x)
            all_keys.append(keys.mT.contiguous())
            all_values.append(values.contiguous())
            x = block.finish(x, values)
        return Layers(tuple(all_keys), tuple(all_values))

    def _voice(self, features: Tensor, before: Hearing | None) -> tuple[Tensor, Hearing | None]:
        """Tokens (batch, frames / stride, hidden) of a voice, and what the next ones depend on.

        Args:
            features: (batch, frames, audio_dim), of the new frames.
            before: of the frames before them; None = there were none.
        """
        standardised = (features - self.audio_mean) / self.audio_std
        if isinstance(self.project_audio, nn.Linear):
            return self.project_audio(standardised), None
        return self.project_audio.follow(standardised, before)

    def _scene(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], seen: Tensor, past: Layers
    ) -> Layers:
        """Keys and values of earlier tokens and of new ones.

        Args:
            x: (batch, n, hidden), the new tokens.
            rotation: of them, (batch or 1, 1, n, head_dim / 2).
            seen: (batch, 1, n, tokens) bool, what they see of all.
            past: of the earlier ones.
        """
        all_keys: list[Tensor] = []
        all_values: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            queries, keys, values = block.queries_keys_values(x)
            keys = torch.cat([past.keys[layer].mT, rotate(keys, rotation)], dim=-2)
            values = torch.cat([past.values[layer], values], dim=-2)
            all_keys.append(keys.mT.contiguous())
            all_values.append(values.contiguous())
            # Nobody reads the prefix after its last keys.
            if layer < self.config.layers - 1:
                queries = rotate(queries, rotation)
                x = block.finish(x, F.scaled_dot_product_attention(queries, keys, values, seen))
        return Layers(tuple(all_keys), tuple(all_values))

    def _within_span(self, heard: Tensor, numbers: Tensor) -> Tensor:
        """Which tokens are of the last `span` latents before `numbers`, or later.

        Args:
            heard: (tokens,), the frame at which a token is complete; or (batch, tokens).
            numbers: (n,), of the latents that look, or in which who looks stands; or (batch, n).

        Returns:
            (n, tokens) bool, or (batch, n, tokens).
        """
        latents = heard // self.config.downsample
        return latents.unsqueeze(-2) >= numbers.unsqueeze(-1) - self.config.span

    def forward(
        self,
        prefix: Prefix,
        clean: Tensor,
        noisy: Tensor,
        time: Tensor,
        number: Tensor,
        past: History | None = None,
        sight: Sight | None = None,
    ) -> tuple[Tensor, History]:
        """Velocities of noisy latents, and the history with the clean ones added.

        Args:
            prefix: of the prompts.
            clean: (batch, slots, c, latent_dim), the latents that follow those in `past` (c may be
                0).
            noisy: (batch, slots, n, latent_dim), states m_{l,t} on their way (n may be 0).
            time: flow time t of each noisy latent in [0, 1], (n,) or broadcast to (batch, slots,
                n): 0 is noise.
            number: (n,) int64, l of each noisy latent in the sequence; several may have the same.
                It sees the `span` clean latents before l, which must all be there. Or (batch, n),
                where samples are at places of their own; those are not checked.
            past: history so far.
            sight: what is hidden from some; None = nothing.

        Returns:
            (batch, slots, n, latent_dim) and the history, to be passed on as `past`.
        """
        self._check_latents(prefix, clean, noisy)
        self._check_numbers(clean, noisy, number=number, past=past)
        past = History((), ()) if past is None else past
        count = clean.shape[2]
        time = time.to(noisy.device, torch.promote_types(noisy.dtype, torch.float32))
        when = time_features(time).to(noisy.dtype).expand(*noisy.shape[:-1], -1)
        sight = sight or Sight()
        clean_tokens = self.project_latent(clean) + self.kinds.weight[CLEAN_KIND]
        noisy_tokens = self.project_latent(noisy) + self.kinds.weight[NOISY_KIND] + self.time(when)
        if self.config.path is not None:
            expected = sight.expected
            if expected is None:
                expected = self.expect(prefix, number, sight.conditioned)
            noisy_tokens = noisy_tokens + self.project_path(expected)
        tokens = torch.cat([clean_tokens, noisy_tokens], dim=2)
        clean_numbers = past.end + torch.arange(count, device=clean.device)
        numbers = torch.cat([clean_numbers, number], dim=-1)
        tokens, history = self._read(
            prefix,
            tokens,
            numbers,
            past=past,
            count=count,
            known=self._known(past, numbers, count, sight.remembers),
            conditioned=sight.conditioned,
        )
        velocity = self.velocity(self.norm(tokens[:, :, count:])) + self.gain(when) * noisy
        return velocity, history

    def expect(self, prefix: Prefix, number: Tensor, conditioned: Tensor | None = None) -> Tensor:
        """The path that a face takes on average at latents `number` (n,), given what is heard.

        It is the mean over people and their moods, as far as the conditions leave them open, and so
        stiller than anybody: a hint to the velocity, not a reaction.

        Args:
            prefix: of the prompts.
            number: of the latents; or (batch, n).
            conditioned: (slots,) bool, which slots see the prefix; None = all, so that one answer
                is that of all.

        Returns:
            (batch, slots or 1, n, path), as `loss.paths` has it; (batch, 1, n, 0) of a model that
            expects nothing.
        """
        batch = len(prefix.lead)
        count = number.shape[-1]
        if self.config.path is None:
            return self.velocity.weight.new_zeros(batch, 1, count, 0)
        slots = 1 if conditioned is None else len(conditioned)
        asking = self.kinds.weight[ASKING_KIND].expand(batch, slots, count, -1)
        tokens, _ = self._read(
            prefix, asking, number, past=History((), ()), count=0, conditioned=conditioned
        )
        path: Tensor = self.path(self.path_norm(tokens))
        return path

    def heeded(self, prefix: Prefix, number: Tensor, conditioned: Tensor | None = None) -> Tensor:
        """What samplers tell the velocity of what is expected; arguments as of `expect`."""
        return self.config.heed * self.expect(prefix, number, conditioned)

    def _read(
        self,
        prefix: Prefix,
        tokens: Tensor,
        numbers: Tensor,
        past: History,
        count: int,
        known: Tensor | None = None,
        conditioned: Tensor | None = None,
    ) -> tuple[Tensor, History]:
        """Motion tokens through all blocks; the first `count` of them join the history.

        Args:
            prefix: that they see.
            tokens: (batch, slots, n, hidden).
            numbers: (n,), of the latents that they stand for; or (batch, n).
            past: history so far; without layers, there is none.
            count: of the first tokens, those of clean latents that follow it.
            known: what they see of the history, the new part included, as `_known` says; None =
                all.
            conditioned: (slots,), which slots see the prefix; None = all.
        """
        times = motion_times(numbers, self.config.downsample)[..., None, None, :]
        rotation = rotations(times, self.head_dim)
        text_mask, scene_mask = self._prefix_masks(prefix, numbers, conditioned)
        history_keys: list[Tensor] = []
        history_values: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            plain, keys, values = block.queries_keys_values(tokens)
            keys = rotate(keys, rotation)
            past_keys = keys[..., :count, :]
            past_values = values[..., :count, :]
            if past.keys and not count:
                past_keys = past.keys[layer]
                past_values = past.values[layer]
            elif past.keys:
                past_keys = torch.cat([past.keys[layer], past_keys], dim=-2)
                past_values = torch.cat([past.values[layer], past_values], dim=-2)
            history_keys.append(past_keys)
            history_values.append(past_values)
            attended = _attend(
                rotate(plain, rotation),
                plain,
                text=Attended(prefix.text.keys[layer], prefix.text.values[layer], text_mask),
                scene=Attended(prefix.scene.keys[layer], prefix.scene.values[layer], scene_mask),
                history=Attended(past_keys, past_values, known),
                own=Attended(keys, values, None),
            )
            tokens = block.finish(tokens, attended)
        return tokens, History(tuple(history_keys), tuple(history_values), past.first)

    def _known(
        self, past: History, numbers: Tensor, count: int, remembers: Tensor | None
    ) -> Tensor:
        """What latents `numbers` see of a history that `count` more joined.

        (batch or 1, 1, 1, tokens, latents) bool.
        """
        there = past.first + torch.arange(past.latents + count, device=numbers.device)
        age = numbers.unsqueeze(-1) - there.unsqueeze(-2)
        known = (age > 0) & (age <= self.config.span) & (there >= 0).unsqueeze(-2)
        known = known[..., None, None, :, :]
        if remembers is not None:
            known = known & remembers[:, None, None, None, None]
        return known

    def _prefix_masks(
        self, prefix: Prefix, numbers: Tensor, conditioned: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What latents see of prompt and scene: (batch, 1 or slots, 1, n, prefix) bool each."""
        now = numbers * self.config.downsample + prefix.lead.unsqueeze(1)
        timely = prefix.heard.unsqueeze(-2) < now.unsqueeze(2)
        timely = timely & self._within_span(prefix.heard, numbers)
        text = prefix.told[:, None, None].expand(-1, 1, numbers.shape[-1], -1)
        scene = (prefix.present.unsqueeze(1) & timely).unsqueeze(1)
        if conditioned is not None:
            text = text & conditioned[:, None, None]
            scene = scene & conditioned[:, None, None]
        return text.unsqueeze(2), scene.unsqueeze(2)

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.config.hidden // self.config.heads

    @property
    def stride(self) -> int:
        """Frames of a voice that are one token."""
        return 1 if self.config.voice is None else self.config.voice.stride

    def _check_latents(self, prefix: Prefix, clean: Tensor, noisy: Tensor) -> None:
        """Raise `ValueError` unless shapes fit the config and each other."""
        for name, latents in (("clean", clean), ("noisy", noisy)):
            if latents.ndim != 4 or latents.shape[-1] != self.config.latent_dim:
                raise ValueError(
                    f"{name} latents must be (batch, slots, n, {self.config.latent_dim}), got "
                    f"{tuple(latents.shape)}"
                )
        if clean.shape[:2] != noisy.shape[:2] or len(clean) != len(prefix.lead):
            raise ValueError(
                f"prefix of {len(prefix.lead)} prompts, clean latents {tuple(clean.shape)} "
                f"and noisy ones {tuple(noisy.shape)} must agree in batch and slots"
            )

    def _check_numbers(
        self, clean: Tensor, noisy: Tensor, number: Tensor, past: History | None
    ) -> None:
        """Raise `ValueError` unless every latent that a new one looks back at is known."""
        first = 0 if past is None else past.first
        known = 0 if past is None else past.end
        if isinstance(first, Tensor) or isinstance(known, Tensor):
            # A GPU would have to be waited for.
            return
        end = known + clean.shape[2]
        earliest = first + self.config.span if first else 0
        fits = number.shape == noisy.shape[2:3] and bool(
            ((number >= earliest) & (number <= end)).all()
        )
        if not fits or (clean.shape[2] and known < earliest):
            raise ValueError(
                f"numbers {number.tolist()} of {noisy.shape[2]} noisy latents must be one each, "
                f"from {earliest} to {end}: latents {first} to {end - 1} are known, each of which "
                f"looks back at {self.config.span}, and {known} is the first new one"
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


@dataclass(frozen=True, eq=False)
class Attended:
    """Keys and values that queries attend to, and the mask of what they see; None = all."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None


def _attend(
    queries: Tensor,
    plain: Tensor,
    text: Attended,
    scene: Attended,
    history: Attended,
    own: Attended,
) -> Tensor:
    """Attention of motion tokens over prefix, history and themselves in one softmax.

    Written out so that the prefix of a prompt is read once for all its slots, and a noisy token's
    key by itself only.

    Args:
        queries: (batch, slots, heads, n, head_dim), rotated.
        plain: the same, not rotated: the prompt's.
        text: keys (batch, heads, head_dim, p), values (batch, heads, p, head_dim), mask (batch, 1
            or slots, 1, n, p).
        scene: likewise.
        history: keys and values (batch, slots, heads, h, head_dim), mask (batch or 1, 1, 1, n, h).
        own: keys and values of the tokens themselves, shaped like the queries.
    """
    scale = queries.shape[-1] ** -0.5
    queries = queries * scale
    text_scores = _of_all_slots(plain * scale, text.keys)
    scene_scores = _of_all_slots(queries, scene.keys)
    history_scores = queries @ history.keys.mT
    own_scores = (queries * own.keys).sum(-1, keepdim=True)
    scores = [
        _hidden(text_scores, text.mask),
        _hidden(scene_scores, scene.mask),
        _hidden(history_scores, history.mask),
        own_scores,
    ]
    weights = torch.cat(scores, dim=-1).softmax(dim=-1)
    of_text, of_scene, of_history, of_own = torch.split(
        weights, [part.shape[-1] for part in scores], dim=-1
    )
    from_prefix = _of_all_slots(of_text, text.values) + _of_all_slots(of_scene, scene.values)
    return from_prefix + of_history @ history.values + of_own * own.values


def _of_all_slots(rows: Tensor, of_prompt: Tensor) -> Tensor:
    """All slots of a prompt in one product with what belongs to it.

    (batch, slots, heads, n, k) times (batch, heads, k, m) -> (batch, slots, heads, n, m).
    """
    slots = rows.shape[1]
    count = rows.shape[3]
    together = rows.transpose(1, 2).flatten(2, 3) @ of_prompt
    return torch.unflatten(together, 2, (slots, count)).transpose(1, 2)


def _hidden(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores, without those that a mask hides."""
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)
