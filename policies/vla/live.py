"""The VLA live: a face that listens as long as somebody talks, chunk by chunk.

What it does is what `VlaPolicy.sample` does with the same input and seed: the same sequence, the
same rule for a new context, the same noise. A session is a value of its own; nothing is global.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rapport.policies.clip import Past, Word
from rapport.policies.live import Chunk, LiveError, packed, unpacked
from rapport.policies.motion import Motion
from rapport.policies.pictures import SAME_S, resized
from rapport.policies.vla.actions import Drawn
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.sampling import chunk_noise, next_actions
from rapport.policies.vla.sequence import seen_of
from rapport.policies.vla.sound import log_mel, sound_before
from rapport.policies.vla.vla_prompt import VlaPrompt


@dataclass(frozen=True, eq=False)
class State:
    """A session between two chunks.

    It holds what the present context was made of, a little of the speaker's last sound and their
    last picture. Whoever stores it stores those.

    Args:
        seed: of the noise.
        name: of the prompt, for the noise.
        chunk: number of the next one.
        tokens: (items, item_tokens, hidden) of what the context has perceived, `history` items
            before its own.
        present: (items, 2) bool.
        heard: (text_tokens,) ids in the head.
        said: (chunks, chunk_text) ids, of the chunks of the context.
        own: (n,) ids of the pose before the context.
        rest: (dims,) the listener's face at rest.
        actions: (k,) ids of those in the context.
        known: ids of the words before the last chunk, the newest at the end; None = no transcript.
        latest: ids of those of the last chunk.
        sound: the end of what was heard, for the next chunk's bands.
        picture: the last picture, or none (0, size, size, 3).
        drawn: how far the motion is drawn.
        waits: whether the chunk's observation is there already, from the prompt.
    """

    seed: int
    name: str
    chunk: int
    tokens: np.ndarray
    present: np.ndarray
    heard: np.ndarray
    said: np.ndarray
    own: np.ndarray
    rest: np.ndarray
    actions: np.ndarray
    known: tuple[int, ...] | None
    latest: tuple[int, ...] | None
    sound: np.ndarray
    picture: np.ndarray
    drawn: Drawn
    waits: bool


class LiveVla:
    """A listener of any number of sessions.

    Args:
        policy: whose weights and sampler it has.
    """

    def __init__(self, policy: VlaPolicy) -> None:
        self.policy = policy
        self.model = policy.model
        self.config = policy.model.config
        self.chunk: float = self.config.chunk_seconds  # seconds
        self.beat = self.config.context_chunks
        # A context begins with the chunks that are its history.
        self.memory: float = (self.config.history + 2 * self.beat + 2) * self.chunk
        self.device = next(self.model.parameters()).device

    def start(
        self,
        seed: int,
        prompt: VlaPrompt | None = None,
        past: Past | None = None,
        first: int = 0,
    ) -> State:
        """A session that nothing has happened in yet.

        Args:
            seed: of its noise.
            prompt: what came before it; only what its first chunk sees is read. None = nothing is
                known.
            past: of the clip that the prompt was made from; the end of its sound and its last
                picture belong to the first chunk that is heard here.
            first: number of the first chunk that is heard, a multiple of `beat`. Above 0, the
                listener is taken to have been at rest until then.
        """
        config = self.config
        if first % self.beat:
            raise ValueError(f"a session goes on from a multiple of {self.beat}, not {first}")
        items = config.history + 1
        absent = config.absent_token_id
        if prompt is None:
            prompt = VlaPrompt(
                "",
                frames=None,
                voice=None,
                present=np.zeros((config.items, 2), bool),
                heard=np.full((config.chunks, config.text_tokens), absent),
                said=np.full((config.chunks, config.chunk_text), absent),
                own=np.full(len(config.pose_dims), absent),
                rest=np.asarray(self.policy.actions.rest),
            )
        done, drawn = self._at_rest(first)
        with torch.no_grad():
            tokens = self.model.perceive(self._on_device(prompt))[0, :items]
        return State(
            seed=seed,
            name=prompt.prompt_id,
            chunk=first + 1 if first else 0,
            tokens=tokens.float().cpu().numpy(),
            present=prompt.present[:items],
            heard=prompt.heard[0],
            said=prompt.said[:1],
            own=prompt.own,
            rest=prompt.rest,
            actions=done,
            known=self._words(prompt.heard[0]),
            latest=self._words(prompt.said[0]),
            sound=self._sound_of(past),
            picture=self._picture_of(past),
            drawn=drawn,
            waits=not first,
        )

    def _at_rest(self, chunks: int) -> tuple[np.ndarray, Drawn]:
        """Ids of the chunk before the next one, and how far `chunks` and it are drawn."""
        space = self.policy.actions.space
        if not chunks:
            return np.zeros(0, np.int64), space.start
        steps = self.config.chunk_steps
        rest = np.asarray(self.policy.actions.rest)
        ids = self.policy.actions.encode(np.tile(rest, (steps, 1)), rest)
        known = (chunks + 1) * steps
        return ids, Drawn(known, np.tile(rest, (2, 1)), space.frames_of(known - 1))

    def _sound_of(self, past: Past | None) -> np.ndarray:
        if past is None or past.speaker_audio is None:
            return np.zeros(0, np.float32)
        return past.speaker_audio[-sound_before(self.chunk) :]

    def _picture_of(self, past: Past | None) -> np.ndarray:
        size = self.config.image_size
        if past is None or past.speaker_frames is None:
            return np.zeros((0, size, size, 3), np.uint8)
        return resized(past.speaker_frames[-1:], size)

    def step(
        self, states: Sequence[State], heard: Sequence[Chunk | None]
    ) -> tuple[list[Motion], list[State]]:
        """What each session does in its next chunk.

        Args:
            states: of sessions.
            heard: what reached each in the chunk before; None in the first one, whose observation
                came with `start`.

        Returns:
            the frames of each motion that are settled now, one action behind, and the new states.
        """
        observed = [self.observe(s, chunk) for s, chunk in zip(states, heard, strict=True)]
        motions = []
        after = []
        for state, actions in zip(observed, self.choose(observed), strict=True):
            motion, state = self._done(state, actions)
            motions.append(motion)
            after.append(state)
        return motions, after

    def act(self, state: State) -> np.ndarray:
        """The ids of the last chunk, (chunk_tokens,) int64."""
        return state.actions[-self.config.chunk_tokens :]

    def follow(
        self, states: Sequence[State], heard: Sequence[Chunk], acts: Sequence[np.ndarray]
    ) -> list[State]:
        """The new states of sessions that chose these ids when they heard that.

        Raises:
            ValueError: as of `step`, or there are more ids or fewer than a chunk has.
            ActionError: some ids are no actions.
        """
        after = []
        for state, chunk, act in zip(states, heard, acts, strict=True):
            if act.shape != (self.config.chunk_tokens,):
                raise ValueError(f"a chunk has {self.config.chunk_tokens} ids, got {act.shape}")
            after.append(self._done(self.observe(state, chunk), act)[1])
        return after

    def settled(self, state: State) -> int:
        """All but those of the last action."""
        return state.drawn.frames

    def tell(self, state: State, prompt: VlaPrompt | None) -> State:
        """It takes no text.

        Raises:
            LiveError: always.
        """
        raise LiveError("the VLA is told nothing in advance")

    def _done(self, state: State, actions: np.ndarray) -> tuple[Motion, State]:
        """The frames that are settled by the ids of a chunk, and the state with them."""
        knots = self.policy.actions.decode(actions, state.rest)
        values, drawn = self.policy.actions.space.draw(state.drawn, knots)
        after = replace(
            state,
            actions=np.concatenate([state.actions, actions]),
            chunk=state.chunk + 1,
            drawn=drawn,
        )
        return Motion(values, self.policy.layout), after

    def finish(self, state: State) -> Motion:
        """The frames that are left when a session ends."""
        none = np.zeros((0, self.config.action_dims))
        values, _ = self.policy.actions.space.draw(state.drawn, none, ends=True)
        return Motion(values, self.policy.layout)

    def observe(self, state: State, heard: Chunk | None) -> State:
        """The session with what its next chunk is shown.

        Raises:
            ValueError: the observation is missing, or there is one already.
        """
        if state.waits != (heard is None):
            raise ValueError(
                "the first chunk of a session is shown what `start` was given, every later one "
                "what was heard in the chunk before it"
            )
        if heard is None:
            return replace(state, waits=False)
        config = self.config
        frames, picture = self._pictures(state, heard)
        voice, sound = self._voice(state, heard)
        item = self._item(frames, voice)
        known, latest = self._next_words(state, heard.words)
        state = replace(
            state,
            tokens=np.concatenate([state.tokens, item[None]]),
            present=np.append(state.present, [[frames is not None, voice is not None]], axis=0),
            said=np.append(state.said, [self._region(latest, config.chunk_text)], axis=0),
            known=known,
            latest=latest,
            sound=sound,
            picture=picture,
        )
        if state.chunk % config.context_chunks:
            return state
        items = config.history + 1
        return replace(
            state,
            tokens=state.tokens[-items:],
            present=state.present[-items:],
            heard=self._region(known, config.text_tokens),
            said=state.said[-1:],
            own=state.actions[-config.action_dims :][config.pose_dims],
            actions=state.actions[:0],
        )

    def pack(self, state: State) -> bytes:
        """A session as bytes, for another process; see `State` for what they hold."""
        values = asdict(state)
        drawn = values.pop("drawn")
        values |= {f"drawn_{name}": value for name, value in drawn.items()}
        arrays: dict[str, Any] = {n: v for n, v in values.items() if isinstance(v, np.ndarray)}
        plain = {name: v for name, v in values.items() if name not in arrays}
        return packed(plain, arrays)

    def unpack(self, session: bytes) -> State:
        """What `pack` was given."""
        plain, arrays = unpacked(session)
        values: dict[str, Any] = dict(arrays)
        for name in ("known", "latest"):
            plain[name] = None if plain[name] is None else tuple(plain[name])
        values |= plain
        drawn = {
            name.removeprefix("drawn_"): values.pop(name)
            for name in list(values)
            if name.startswith("drawn_")
        }
        return State(**values, drawn=Drawn(**drawn))

    def choose(self, states: Sequence[State]) -> list[np.ndarray]:
        """Action ids of the next chunk of sessions that have observed it, (chunk_tokens,) each.

        Sessions at the same place of their contexts share a forward pass.
        """
        groups: dict[int, list[int]] = defaultdict(list)
        for place, state in enumerate(states):
            groups[len(state.actions)].append(place)
        chosen: dict[int, np.ndarray] = {}
        for places in groups.values():
            group = [states[place] for place in places]
            ids, _ = next_actions(
                self.model,
                self.seen_by(group),
                stacked(group, "tokens").to(self.device),
                stacked(group, "actions").to(self.device),
                torch.from_numpy(np.stack([self.noise_of(s) for s in group])).to(self.device),
                self.policy.sampler.temperature,
            )
            chosen |= dict(zip(places, ids.cpu().numpy(), strict=True))
        return [chosen[place] for place in range(len(states))]

    def seen_by(self, states: Sequence[State]) -> dict[str, Tensor]:
        """What ids are made of in the contexts of sessions at the same place, (rows, ...) each."""
        seen = {name: stacked(states, name).to(self.device) for name in ("present", "said", "own")}
        return seen | {"heard": stacked(states, "heard")[:, None].to(self.device)}

    def noise_of(self, state: State) -> np.ndarray:
        """Numbers that decide the next chunk, (chunk_tokens,)."""
        return chunk_noise(state.seed, state.name, 0, state.chunk, self.config.chunk_tokens)

    def _on_device(self, prompt: VlaPrompt) -> dict[str, Tensor]:
        seen = seen_of(self.config, [prompt])
        return {name: values.to(self.device) for name, values in seen.items()}

    @torch.no_grad()
    def _item(self, frames: np.ndarray | None, voice: np.ndarray | None) -> np.ndarray:
        """Tokens of a chunk, (item_tokens, hidden); those of absent streams are zeros."""
        config = self.config
        hidden = config.text_config.hidden_size
        tokens = np.zeros((config.item_tokens, hidden), np.float32)
        if frames is not None:
            pictures = self.model.vision(torch.from_numpy(frames).to(self.device))
            tokens[: config.picture_tokens] = pictures.flatten(0, 1).float().cpu().numpy()
        if voice is not None and self.model.voice is not None:
            heard = self.model.voice(torch.from_numpy(voice)[None].to(self.device))
            tokens[config.picture_tokens :] = heard[0].float().cpu().numpy()
        return tokens

    def _pictures(self, state: State, heard: Chunk) -> tuple[np.ndarray | None, np.ndarray]:
        """The pictures of an item, and the last one; see `prompt.pictures`."""
        config = self.config
        if heard.frames is None or heard.taken is None:
            return None, state.picture[:0]
        frames = state.picture
        taken = [-np.inf] * len(frames)
        if len(heard.frames):
            frames = np.concatenate([frames, resized(heard.frames, config.image_size)])
            taken = [*taken, *heard.taken]
        chosen = []
        for part in range(1, config.frames + 1):
            moment = config.chunk_seconds * part / config.frames
            number = int(np.searchsorted(taken, moment + SAME_S, side="right")) - 1
            if number < 0:
                return None, frames[-1:]
            chosen.append(frames[number])
        return np.stack(chosen), frames[-1:]

    def _voice(self, state: State, heard: Chunk) -> tuple[np.ndarray | None, np.ndarray]:
        """The bands of an item, and the sound that the next one begins with."""
        if heard.audio is None or not self.config.voice_tokens:
            return None, state.sound[:0]
        sound = np.concatenate([state.sound, heard.audio])
        return log_mel(sound, self.chunk), sound[-sound_before(self.chunk) :]

    def _next_words(
        self, state: State, words: tuple[Word, ...] | None
    ) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
        """Words before the last chunk, and those of it, as ids."""
        known = state.known
        if state.latest is not None:
            known = ((known or ()) + state.latest)[-self.config.text_tokens :]
        latest = None
        if words is not None:
            latest = tuple(token for word in words for token in self.policy.word_ids(word.text))
        return known, latest

    def _region(self, ids: tuple[int, ...] | None, length: int) -> np.ndarray:
        config = self.config
        if ids is None:
            return np.full(length, config.absent_token_id)
        kept = list(ids[-length:])
        return np.array([config.blank_token_id] * (length - len(kept)) + kept, np.int64)

    def _words(self, region: np.ndarray) -> tuple[int, ...] | None:
        """Ids of a region, without what fills it; None where the transcript is absent."""
        if (region == self.config.absent_token_id).all():
            return None
        return tuple(int(token) for token in region if token != self.config.blank_token_id)


def stacked(states: Sequence[State], name: str) -> Tensor:
    """A field of several sessions, (sessions, ...)."""
    return torch.from_numpy(np.stack([getattr(state, name) for state in states]))
