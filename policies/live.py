"""A policy that listens while somebody talks: what reaches it, and what it is asked for."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rapport.policies.clip import Word
from rapport.policies.motion import Motion


class LiveError(ValueError):
    """A policy cannot listen live, or not as asked; the message says why."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """What reached a listener in a chunk; None where a stream is absent.

    A policy reads what it was trained on and leaves the rest.

    Args:
        frames: (n, height, width, 3) uint8; none may have been taken in a short chunk.
        taken: (n,) when, seconds from the start of the chunk, rising.
        audio: (samples,) float32 in [-1, 1] at `AUDIO_RATE`, the whole chunk.
        words: those that ended in it, in order; their times are not read.
        motion: the speaker's, the whole chunk, in the policy's layout.
        own_audio: the listener's own voice, like `audio`.
    """

    frames: np.ndarray | None = None
    taken: np.ndarray | None = None
    audio: np.ndarray | None = None
    words: tuple[Word, ...] | None = None
    motion: Motion | None = None
    own_audio: np.ndarray | None = None


class State(Protocol):
    """A session between two chunks; each listener has its own kind."""

    @property
    def waits(self) -> bool:
        """Whether the next step is taken before anything more is heard: it is given None."""


class Listener(Protocol):
    """A policy, live. It holds no session: states are values, and it is only asked about its own.

    What it does equals what `Policy.sample` does with the same input and seed.
    """

    chunk: float
    """seconds that are heard in a step"""
    memory: float
    """seconds after which nothing that was heard or done changes anything"""
    beat: int
    """a session goes on elsewhere from a chunk whose number is a multiple of this"""

    def start(self, seed: int, prompt: Any = None, *, first: int = 0) -> Any:
        """A session that nothing has happened in yet.

        Args:
            seed: of its noise.
            prompt: what it is told in advance, of `Policy.told`; None = nothing.
            first: number of the first chunk that it hears; above 0, what came before is forgotten.
        """

    def step(
        self, states: Sequence[Any], heard: Sequence[Chunk | None]
    ) -> tuple[list[Motion], list[Any]]:
        """The frames of each session that are settled now, and the new states.

        Args:
            states: of sessions.
            heard: the chunk that reached each; None where its state `waits`.
        """

    def act(self, state: Any) -> np.ndarray:
        """What a session did in its last step, in the policy's own terms: latents, tokens."""

    def follow(
        self, states: Sequence[Any], heard: Sequence[Chunk], acts: Sequence[np.ndarray]
    ) -> list[Any]:
        """The new states of sessions that did this when they heard that.

        After `memory` seconds of it, a session that began in between is the one that went through
        all, so that it can be lost and go on elsewhere.
        """

    def settled(self, state: Any) -> int:
        """How many frames are settled by now, from the first chunk of all on."""

    def tell(self, state: Any, prompt: Any) -> Any:
        """The session, told something else from now on; of a policy that `takes_text`."""

    def finish(self, state: Any) -> Motion:
        """The frames that are left when a session ends."""

    def pack(self, state: Any) -> bytes:
        """A session as bytes, for another process."""

    def unpack(self, session: bytes) -> Any:
        """What `pack` was given."""


def packed(plain: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """A session as bytes: what JSON can say, and arrays. No code is read back from them."""
    file = io.BytesIO()
    np.savez(file, plain=np.array(json.dumps(plain)), **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def unpacked(session: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `packed` was given."""
    with np.load(io.BytesIO(session), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(str(arrays.pop("plain"))), arrays
