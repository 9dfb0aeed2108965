"""One step of AR-Flow: what is heard in the time of a latent, and the latent that answers it.

All tensors have fixed shapes, and nothing depends on what stands in them: sessions that began at
any time, with any prompt, lead and streams, share a pass. A compiler traces it once, as one graph
that never waits for the host. It is made of what `sampling.generate_long` is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rapport.policies.flow.conditions import LEADS, MODALITIES, Conditions
from rapport.policies.flow.model import ARFlow, History, Layers, Prefix
from rapport.policies.flow.sampling import Finished, Velocity, known_latent, next_latent
from rapport.policies.flow.transformer import Memory
from rapport.policies.flow.vae import MotionVAE, Shown
from rapport.policies.flow.voice import Hearing, VoiceEncoder

VOICES = ("partner_audio", "actor_audio")


@dataclass(frozen=True, eq=False)
class Sessions:
    """A batch of sessions between two steps. Every tensor in it has a row for each.

    Args:
        prefix: what was heard and seen, as far back as somebody looks; before the beginning it is
            not `present`.
        seen: of the partner's motion, for the VAE's encoder.
        past: the latents before the last; its `first` says at which number a session is.
        clean: (batch, 1, 1, latent_dim), the last latent.
        shown: how far the motion is decoded.
    """

    prefix: Prefix
    seen: Memory
    past: History
    clean: Tensor
    shown: Shown


@dataclass(frozen=True, eq=False)
class Given:
    """What a batch of sessions is given in a step. Where a stream is absent, zeros stand.

    Args:
        present: (batch, 4) bool, which of `MODALITIES` are there; that of a prompt is not read.
        partner_audio: (batch, r, audio_dim), features.
        partner_motion: (batch, r, dim), frames.
        actor_audio: like `partner_audio`.
        noise: (batch, 1, latent_dim), m_{l,0} of the latent.
    """

    present: Tensor
    partner_audio: Tensor
    partner_motion: Tensor
    actor_audio: Tensor
    noise: Tensor


for structure in (Layers, Prefix, History, Shown, Sessions, Given):
    pytree.register_dataclass(structure)


@dataclass(frozen=True, eq=False)
class FlowStep:
    """The step of a policy.

    Args:
        flow: AR-Flow.
        vae: the motion VAE.
        denoise: how a latent comes from its noise.
    """

    flow: ARFlow
    vae: MotionVAE
    denoise: Callable[[Velocity, Tensor], Tensor]

    def ahead(self, lead: int) -> int:
        """How many latents later than the latent that is generated are heard by then.

        -1 = not even all of its own.
        """
        return -(-lead // self.flow.config.downsample) - 1

    @property
    def tokens(self) -> int:
        """Of the scene, that are kept between two steps."""
        config = self.flow.config
        in_a_latent = 1 + len(VOICES) * config.downsample // self.flow.stride
        # The last latent looks back from its own place, after the newest one is heard.
        return (config.span + 1 + self.ahead(max(LEADS))) * in_a_latent

    @torch.no_grad()
    def start(self, text: Tensor | None, lead: int) -> Sessions:
        """One session in which nothing has happened yet.

        With a lead of 0 its first latent is generated before anything is heard; with one of more
        than a latent its first steps only listen, and what they generate, below number 0, is
        forgotten.

        Args:
            text: (text_dim,), features of its prompt; None = it has none.
            lead: frames of a latent that are heard before it is generated.
        """
        like = self.flow.velocity.weight
        present = torch.zeros(1, len(MODALITIES), dtype=torch.bool, device=like.device)
        present[:, MODALITIES.index("text")] = text is not None
        if text is None:
            text = like.new_zeros(self.flow.config.text_dim)
        prompt = Conditions(text=text.to(like).unsqueeze(0), present=present)
        ahead = self.ahead(lead)
        number = torch.full((1, 1), -max(ahead, 0), device=like.device)
        frames = torch.full_like(number, min(ahead, 0) * self.flow.config.downsample)
        return Sessions(
            prefix=self._in_silence(self.flow.encode_prefix(prompt, lead), frames),
            seen=self.vae.encoder.nothing(1),
            past=self._before(number - 1),
            clean=like.new_zeros(1, 1, 1, self.flow.config.latent_dim),
            shown=self.vae.nothing_shown(1),
        )

    def _in_silence(self, prompt: Prefix, frames: Tensor) -> Prefix:
        """The prefix of a prompt with as many tokens as any, none of which is present."""
        flow = self.flow
        layers = flow.config.layers
        keys = flow.velocity.weight.new_zeros(1, flow.config.heads, flow.head_dim, self.tokens)
        voices: dict[str, Hearing] = {}
        if isinstance(flow.project_audio, VoiceEncoder):
            voices = {name: flow.project_audio.nothing(1) for name in VOICES}
        return replace(
            prompt,
            scene=Layers((keys,) * layers, (keys.mT,) * layers),
            present=torch.zeros(1, self.tokens, dtype=torch.bool, device=keys.device),
            heard=frames.new_zeros(1, self.tokens),
            frames=frames,
            voices=voices,
        )

    def _before(self, latent: Tensor) -> History:
        """A history as long as any, the latents before `latent` (1, 1); those below 0 are none."""
        config = self.flow.config
        shape = (1, 1, config.heads, config.span, self.flow.head_dim)
        keys = (self.flow.velocity.weight.new_zeros(shape),) * config.layers
        return History(keys, keys, latent - config.span)

    @property
    def memory(self) -> int:
        """After how many latents nothing that was heard, seen or done changes anything."""
        config = self.flow.config
        encoder = self.flow.project_audio
        voice = -(-encoder.reach // config.downsample) if isinstance(encoder, VoiceEncoder) else 0
        vae = self.vae.config.look_back * self.vae.config.layers
        # The last latent joins the history, and is decoded, a step later.
        return config.layers * (config.span + 1) + max(voice, vae) + 2

    @torch.no_grad()
    def __call__(
        self, sessions: Sessions, given: Given, done: Tensor | None = None
    ) -> tuple[Tensor, Sessions]:
        """The frames that are settled now, (batch, r, dim), and the sessions after the step.

        See `MotionVAE.decode_next`. A stream that is absent begins anew when it is there again.

        Args:
            sessions: before the step.
            given: to them.
            done: (batch, 1, latent_dim), the latents that they come to, where these are known; None
                = they are generated.
        """
        config = self.flow.config
        partner, seen = self.vae.encode_next(given.partner_motion, sessions.seen)
        features = {
            "partner_audio": given.partner_audio,
            "partner_motion": partner.to(given.noise.dtype),
            "actor_audio": given.actor_audio,
        }
        prefix = self.flow.grow(sessions.prefix, features, given.present, config.downsample)
        number = torch.as_tensor(sessions.past.end) + 1
        finished = Finished(sessions.clean, sessions.past)
        if done is None:
            latent, finished = next_latent(
                self.flow, prefix, number, finished, given.noise, self.denoise
            )
        else:
            latent, finished = done, known_latent(self.flow, prefix, finished, done)
        frames, shown = self.vae.decode_next(latent.to(partner.dtype), sessions.shown)
        return frames, Sessions(
            prefix=prefix.last(self.tokens),
            seen=seen.where(given.present[:, MODALITIES.index("partner_motion")]),
            past=finished.past.last(config.span),
            clean=finished.clean,
            shown=shown.where(number[:, 0] >= 0),
        )
