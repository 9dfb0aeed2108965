"""AR-Flow live: a face that listens as long as somebody talks, latent by latent.

What it does is what `FlowPolicy.sample` does with the same input and seed: noise of a latent is a
function of seed and number, and what is heard is encoded as it comes in. A session is a value of
its own; nothing is global.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rapport.policies.flow.conditions import LEAD, MODALITIES
from rapport.policies.flow.encoders import LogMel
from rapport.policies.flow.policy import FlowPolicy, FlowPrompt
from rapport.policies.flow.sampling import latent_noise, ode
from rapport.policies.flow.step import FlowStep, Given, Sessions
from rapport.policies.flow.training import from_bytes
from rapport.policies.live import Chunk, LiveError, packed, unpacked
from rapport.policies.motion import Motion
from rapport.policies.sessions import (
    apart,
    chunk_motion,
    from_arrays,
    stacked_acts,
    to_arrays,
    together,
)

Streams = Mapping[str, Tensor | None]  # of a chunk, by modality


@dataclass(frozen=True, eq=False)
class State:
    """A session between two chunks.

    It holds keys and values of what was heard and seen in the last seconds, and the last 25 ms of
    each voice. Whoever stores it stores those.

    Args:
        seed: of the noise.
        lead: frames of a latent that are heard before it is generated.
        first: number of the latent that is its first; above 0, it goes on with what another began.
        number: of the next latent, from its first on; below 0, more must be heard first.
        sound: the end of the partner's voice, for the bands of the next chunk.
        own_sound: that of the listener's own.
        kept: all else, as tensors.
    """

    seed: int
    lead: int
    first: int
    number: int
    sound: np.ndarray
    own_sound: np.ndarray
    kept: Sessions

    @property
    def waits(self) -> bool:
        """Whether the next step is taken before anything more is heard."""
        return self.lead == 0 and self.number == 0 and self.first == 0


class LiveFlow:
    """A listener of any number of sessions.

    Args:
        policy: whose weights and sampler it has.

    Raises:
        LiveError: the policy hears by wav2vec2, is guided, explores, or waits for the whole window.
    """

    def __init__(self, policy: FlowPolicy) -> None:
        sampler = policy.sampler
        if policy.encoders.audio is not None:
            raise LiveError(
                f"a live AR-Flow hears log-mel bands, this one {policy.encoders.audio}, which "
                "encodes seconds of sound anew for every chunk; train one without encoders.audio"
            )
        if (sampler.omega_speak, sampler.omega_listen) != (1, 1) or sampler.exploration is not None:
            raise LiveError(
                f"a live AR-Flow goes by the ODE, without guidance, not as {sampler} says"
            )
        if sampler.lead is None:
            raise LiveError("a live AR-Flow does not know the whole window: give its lead")
        self.lead = sampler.lead
        self.policy = policy
        self.audio = LogMel()
        self.chunk: float = policy.flow.config.downsample / policy.layout.fps  # seconds
        self.advance = FlowStep(
            policy.flow.eval(),
            policy.vae.eval(),
            partial(ode(sampler.solver, sampler.evaluations), latent=0),
        )
        self.memory: float = self.advance.memory * self.chunk
        self.beat = 1

    def start(
        self,
        seed: int,
        prompt: FlowPrompt | None = None,
        lead: int | None = None,
        first: int = 0,
    ) -> State:
        """A session that nothing has happened in yet.

        Args:
            seed: of its noise.
            prompt: what the listener is told to be like; only its text is read. None = nothing.
            lead: frames of a latent that are heard before it is generated, one of `LEADS`; None =
                as the sampler says. With 0 the first latent is generated before anything is heard;
                with 12 the first chunk is only listened to.
            first: number of the first chunk that is heard.

        Raises:
            ValueError: another lead.
        """
        lead = self.lead if lead is None else lead
        silence = np.zeros(0, np.float32)
        ahead = self.advance.ahead(lead)
        return State(
            seed=seed,
            lead=lead,
            first=first - min(ahead, 0) if first else 0,
            number=-max(ahead, 0),
            sound=silence,
            own_sound=silence,
            kept=self.advance.start(self._text(prompt), lead),
        )

    def tell(self, state: State, prompt: FlowPrompt | None) -> State:
        """The session, told to be like this from its next latent on."""
        told = self.advance.start(self._text(prompt), state.lead).prefix
        prefix = replace(state.kept.prefix, text=told.text, told=told.told)
        return replace(state, kept=replace(state.kept, prefix=prefix))

    def _text(self, prompt: FlowPrompt | None) -> Tensor | None:
        """Features of what a listener is told to be like."""
        told = None if prompt is None or self.policy.sampler.without_text else prompt.row["text"]
        return None if told is None else from_bytes(told, self.policy.flow.config.text_dim)

    def step(
        self, states: Sequence[State], heard: Sequence[Chunk | None]
    ) -> tuple[list[Motion], list[State]]:
        """What each session does next, in one pass for all.

        Args:
            states: of sessions.
            heard: the chunk that reached each; None in the first step of a session with a lead of
                0.

        Returns:
            the frames of each motion that are settled now, half a latent behind, and the new
            states.

        Raises:
            ValueError: a chunk is missing, or there is one too early; a voice is not of a chunk.
            LayoutError: motion of another layout.
        """
        frames, after = self._advance(states, heard)
        shown = frames.float().cpu().numpy()
        motions = [
            Motion(settled[self._unsettled(state) :], self.policy.layout)
            for state, settled in zip(states, shown, strict=True)
        ]
        return motions, after

    def act(self, state: State) -> np.ndarray:
        """The last latent, (latent_dim,) float32."""
        latent: np.ndarray = state.kept.clean[0, 0, 0].float().cpu().numpy()
        return latent

    def follow(
        self, states: Sequence[State], heard: Sequence[Chunk], acts: Sequence[np.ndarray]
    ) -> list[State]:
        """The new states of sessions that came to these latents when they heard that.

        Raises:
            ValueError: as of `step`, or a latent has another size.
        """
        done = stacked_acts(acts, self.policy.flow.config.latent_dim, "a latent")
        return self._advance(states, heard, done)[1]

    def settled(self, state: State) -> int:
        """All but the last half latent; in a session that goes on, all before its first one."""
        r = self.policy.flow.config.downsample
        if state.number <= 0:
            return state.first * r
        return (state.first + state.number) * r - r // 2

    def _advance(
        self,
        states: Sequence[State],
        heard: Sequence[Chunk | None],
        done: Tensor | None = None,
    ) -> tuple[Tensor, list[State]]:
        """The step: frames (sessions, r, dim), and the new states."""
        listened = [self._listen(state, chunk) for state, chunk in zip(states, heard, strict=True)]
        given = self._given(states, [streams for _, streams in listened])
        if done is not None:
            done = done.unsqueeze(1).to(given.noise)
        frames, kept = self.advance(together([state.kept for state in states]), given, done)
        return frames, [
            replace(state, number=state.number + 1, kept=alone)
            for (state, _), alone in zip(listened, apart(kept), strict=True)
        ]

    def finish(self, state: State) -> Motion:
        """The frames that are left when a session ends."""
        with torch.no_grad():
            rest = self.policy.vae.decode_end(state.kept.shown)[0].float().cpu().numpy()
        return Motion(rest if state.number > 0 else rest[:0], self.policy.layout)

    def pack(self, state: State) -> bytes:
        """A session as bytes, for another process; see `State` for what they hold."""
        plain = {name: getattr(state, name) for name in ("seed", "lead", "first", "number")}
        sounds = {"sound": state.sound, "own_sound": state.own_sound}
        return packed(plain, to_arrays(state.kept) | sounds)

    def unpack(self, session: bytes) -> State:
        """What `pack` was given."""
        plain, arrays = unpacked(session)
        return State(
            **plain,
            sound=arrays["sound"],
            own_sound=arrays["own_sound"],
            kept=from_arrays(arrays, like=self.advance.start(None, LEAD)),
        )

    def _unsettled(self, state: State) -> int:
        """How many of the frames that a step gives lie before the beginning."""
        r = self.policy.flow.config.downsample
        if state.number < 0:
            return r
        return r // 2 if state.number == 0 else 0

    def _listen(self, state: State, chunk: Chunk | None) -> tuple[State, Streams]:
        """What a session is given of a chunk, and the session with the ends of its voices."""
        latent = state.first + state.number + self.advance.ahead(state.lead)
        first = latent * self.policy.flow.config.downsample
        if (chunk is None) != state.waits:
            raise ValueError(
                "the first latent of a session with a lead of 0 is generated before anything is "
                "heard, every other one after a chunk"
            )
        chunk = Chunk() if chunk is None else chunk
        voice, sound = self._voice(state.sound, chunk.audio, first)
        own_voice, own_sound = self._voice(state.own_sound, chunk.own_audio, first)
        streams = {
            "partner_audio": voice,
            "partner_motion": self._motion(chunk.motion),
            "actor_audio": own_voice,
        }
        return replace(state, sound=sound, own_sound=own_sound), streams

    def _voice(
        self, before: np.ndarray, audio: np.ndarray | None, first: int
    ) -> tuple[Tensor | None, np.ndarray]:
        """Features of a voice from frame `first` on, and the end of its sound."""
        if audio is None:
            return None, before[:0]
        frames = self.policy.flow.config.downsample
        return self.audio.follow(before, audio, first, frames, self.policy.layout.fps)

    def _motion(self, motion: Motion | None) -> Tensor | None:
        """Frames of the partner."""
        if motion is None:
            return None
        frames = self.policy.flow.config.downsample
        return chunk_motion(motion, self.policy.layout, frames, "the partner's motion")

    def _given(self, states: Sequence[State], streams: Sequence[Streams]) -> Given:
        """What all sessions are given, where they are computed."""
        config = self.policy.flow.config
        like = self.policy.flow.velocity.weight
        r = config.downsample
        present = [[row.get(name) is not None for name in MODALITIES] for row in streams]

        def stacked(name: str, dim: int) -> Tensor:
            rows = [row[name] for row in streams]
            return torch.stack([torch.zeros(r, dim) if row is None else row for row in rows])

        noise = [
            latent_noise(state.seed, 0, max(state.first + state.number, 0), config.latent_dim)
            for state in states
        ]
        motion = stacked("partner_motion", self.policy.layout.dim)
        return Given(
            present=torch.tensor(present).to(like.device),
            partner_audio=stacked("partner_audio", config.audio_dim).to(like),
            partner_motion=motion.to(self.policy.vae.channel_mean),
            actor_audio=stacked("actor_audio", config.audio_dim).to(like),
            noise=torch.stack(noise).unsqueeze(1).to(like),
        )
