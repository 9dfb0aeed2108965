"""ReactFace live: a face that listens as long as somebody talks, window by window.

What it does is what `ReactFacePolicy.sample` does with the same input and seed, which is a loop of
the same steps. A session is a value of its own; nothing is global.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rapport.policies.flow.sampling import latent_noise
from rapport.policies.live import Chunk, LiveError, packed, unpacked
from rapport.policies.motion import Motion
from rapport.policies.pictures import parts, resized
from rapport.policies.reactface.model import Past, Scene, Senses
from rapport.policies.reactface.policy import ReactFacePolicy, seen
from rapport.policies.sessions import (
    apart,
    chunk_motion,
    from_arrays,
    stacked_acts,
    to_arrays,
    together,
)


class Kept(NamedTuple):
    """What a session depends on, as tensors."""

    senses: Senses
    past: Past


class Heard(NamedTuple):
    """What a chunk says of a session's speaker; None where a stream is absent.

    Args:
        motion: (window, dim).
        voice: (window, audio_dim).
        shown: pictures (n, pixels, pixels, 3) uint8, the last one of before first, and when they
            were taken, (n,) seconds from the start of the chunk.
    """

    motion: Tensor | None
    voice: Tensor | None
    shown: tuple[np.ndarray, np.ndarray] | None


class Left(NamedTuple):
    """What of a chunk the next one begins with, see `State`."""

    sound: np.ndarray
    picture: np.ndarray
    part: int


@dataclass(frozen=True, eq=False)
class State:
    """A session between two chunks.

    It holds what the encoders made of the speaker's last seconds and of its own face, the last
    25 ms of a voice, and the last picture of one that sees them. Whoever stores it stores those.

    Args:
        seed: of the noise.
        number: of the next window.
        heard: number of the next chunk; below 0, the next window comes before anything is heard.
        sound: the end of the voice, for the bands of the next chunk.
        picture: the last one, or none: (0 or 1, pixels, pixels, 3) uint8.
        part: of the seconds, in which the newest was taken, see `parts`; -1 = none was.
        kept: all else.
    """

    seed: int
    number: int
    heard: int
    sound: np.ndarray
    picture: np.ndarray
    part: int
    kept: Kept

    @property
    def waits(self) -> bool:
        """Whether the next step is taken before anything more is heard."""
        return self.heard < 0


class LiveReactFace:
    """A listener of any number of sessions.

    Args:
        policy: whose weights it has.
    """

    def __init__(self, policy: ReactFacePolicy) -> None:
        self.policy = policy
        self.model = policy.model.eval()
        sizes = self.model.sizes
        self.chunk: float = sizes.window / policy.layout.fps
        self.memory: float = math.ceil(sizes.memory / sizes.window) * self.chunk
        self.beat = 1

    def start(self, seed: int, prompt: None = None, *, first: int = 0) -> State:
        """A session that nothing has happened in yet.

        Args:
            seed: of its noise.
            prompt: it is told nothing.
            first: number of the first chunk that is heard.
        """
        ahead = self.model.sizes.ahead
        number = first + ahead if first else 0
        kept = Kept(self.model.unsensed(1), self.model.nothing(1))
        pixels = self.model.sizes.pixels
        picture = np.zeros((0, pixels, pixels, 3), np.uint8)
        sound = np.zeros(0, np.float32)
        return State(seed, number, number - ahead, sound, picture, -1, kept)

    def tell(self, state: State, prompt: Any) -> State:
        """It takes no text.

        Raises:
            LiveError: always.
        """
        raise LiveError("a ReactFace takes no text")

    def step(
        self, states: Sequence[State], heard: Sequence[Chunk | None]
    ) -> tuple[list[Motion], list[State]]:
        """The next window of each session, in one pass for all.

        Args:
            states: of sessions.
            heard: the chunk that reached each; None where its state waits.

        Raises:
            ValueError: a chunk is missing, or there is one too early; a voice is not of a chunk.
            LayoutError: motion of another layout.
        """
        after = self._advance(states, heard)
        frames = torch.cat([state.kept.past.frames for state in after])
        shown = self.model.listener.back(frames).float().cpu().numpy()
        return [Motion(values, self.policy.layout) for values in shown], after

    def act(self, state: State) -> np.ndarray:
        """Where the last window ended, z (latent,): all of what was drawn that still counts."""
        latent: np.ndarray = state.kept.past.latent[0].float().cpu().numpy()
        return latent

    def follow(
        self, states: Sequence[State], heard: Sequence[Chunk], acts: Sequence[np.ndarray]
    ) -> list[State]:
        """The new states of sessions that came to these z when they heard that.

        Raises:
            ValueError: as of `step`, or z has another size.
        """
        return self._advance(states, heard, stacked_acts(acts, self.model.sizes.latent, "z"))

    def settled(self, state: State) -> int:
        """All frames of the windows that were made."""
        return state.number * self.model.sizes.window

    def finish(self, state: State) -> Motion:
        """No frame is left."""
        return Motion(np.zeros((0, self.policy.layout.dim)), self.policy.layout)

    def pack(self, state: State) -> bytes:
        """A session as bytes, for another process; see `State` for what they hold."""
        plain = {name: getattr(state, name) for name in ("seed", "number", "heard", "part")}
        arrays = {name: getattr(state, name) for name in ("sound", "picture")}
        return packed(plain, to_arrays(state.kept) | arrays)

    def unpack(self, session: bytes) -> State:
        """What `pack` was given."""
        plain, arrays = unpacked(session)
        kept = from_arrays(arrays, like=self.start(0).kept)
        return State(**plain, sound=arrays["sound"], picture=arrays["picture"], kept=kept)

    @torch.no_grad()
    def _advance(
        self,
        states: Sequence[State],
        heard: Sequence[Chunk | None],
        done: Tensor | None = None,
    ) -> list[State]:
        """The step; `done` is (sessions, latent) z where it is known."""
        model = self.model
        sensed = [self._sensed(state, chunk) for state, chunk in zip(states, heard, strict=True)]
        rows = [row for row, _ in sensed]
        like = model.head.weight
        scene = self._scene(rows)
        senses, past = together([state.kept for state in states])
        tokens, senses = model.sense(scene, senses)
        past = model.listen(past, tokens)
        if done is None:
            drawn = [latent_noise(s.seed, 0, s.number, model.sizes.latent) for s in states]
            noise = torch.stack(drawn).to(like)
            gaussian = model.distribution(past)
            done = model.momentum(past, gaussian, gaussian.sample(noise))
        kept = Kept(senses, model.make(past, done.to(like), model.sizes.heed))
        return [
            replace(
                state,
                number=state.number + 1,
                heard=state.heard + 1,
                kept=alone,
                **left._asdict(),
            )
            for state, (_, left), alone in zip(states, sensed, apart(kept), strict=True)
        ]

    def _sensed(self, state: State, chunk: Chunk | None) -> tuple[Heard, Left]:
        """A chunk as features, and what of it the next one begins with."""
        if (chunk is None) != state.waits:
            raise ValueError(
                "with delay=0 the first window is made before anything is heard, every other one "
                "after a chunk"
            )
        chunk = Chunk() if chunk is None else chunk
        sizes = self.model.sizes
        frames, fps = sizes.window, sizes.layout.fps
        motion = None
        if sizes.sees == "motion" and chunk.motion is not None:
            motion = chunk_motion(chunk.motion, sizes.layout, frames, "the speaker's motion")
        shown, picture, part = None, state.picture[:0], state.part
        if sizes.sees == "frames" and chunk.frames is not None and chunk.taken is not None:
            new, when = chunk.frames, chunk.taken
            if sizes.rate and len(when):  # the first of each part is as many as in training
                numbers = parts(state.heard * self.chunk + when, sizes.rate)
                left = np.diff(numbers, prepend=part) > 0
                new, when, part = new[left], when[left], int(numbers[-1])
            pictures, taken = state.picture, np.full(len(state.picture), -np.inf)
            if len(new):
                pictures = np.concatenate([pictures, resized(new, sizes.pixels)])
                taken = np.concatenate([taken, when])
            shown, picture = (pictures, taken), pictures[-1:]
        voice, sound = None, state.sound[:0]
        if chunk.audio is not None:
            first = state.heard * frames
            voice, sound = self.policy.audio.follow(state.sound, chunk.audio, first, frames, fps)
        return Heard(motion, voice, shown), Left(sound, picture, part)

    def _scene(self, rows: Sequence[Heard]) -> Scene:
        """What sessions heard and saw in a chunk, together."""
        sizes = self.model.sizes
        like = self.model.head.weight
        motion = like.new_zeros(len(rows), sizes.window, sizes.layout.dim)
        voice = like.new_zeros(len(rows), sizes.window, sizes.audio_dim)
        present = []
        for number, row in enumerate(rows):
            if row.motion is not None:
                motion[number] = row.motion.to(like)
            if row.voice is not None:
                voice[number] = row.voice.to(like)
            face = row.motion is not None or row.shown is not None
            present.append([face, row.voice is not None])
        scene = Scene(motion, voice, torch.tensor(present).to(like.device))
        if sizes.sees == "motion":
            return scene
        nothing = np.zeros((0, sizes.pixels, sizes.pixels, 3), np.uint8), np.zeros(0)
        shown = [nothing if row.shown is None else row.shown for row in rows]
        looked_at = seen(shown, sizes.window, sizes.layout.fps)
        return replace(scene, **{name: value.to(like.device) for name, value in looked_at.items()})
