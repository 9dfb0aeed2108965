"""A live session: what its client sends, chunk by chunk, and what it is answered (docs/serve.md).

No socket is in here and no clock of its own, so that all that can go wrong can be tried in a test.
"""

from __future__ import annotations

import io
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from rapport.actors import telemetry
from rapport.pipeline.serve import wire
from rapport.pipeline.serve.doors import Pace
from rapport.pipeline.serve.engine import Answer, Engine, Job, Line, NotDone, Voice
from rapport.pipeline.serve.wire import Kind, Part, WireError
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.head.arkit import NAMES
from rapport.policies.live import Chunk
from rapport.policies.motion import LayoutError, Motion
from rapport.policies.pictures import BLIND_S

if TYPE_CHECKING:
    from rapport.pipeline.serve.eyes import Eyes

SLOWER = 3  # parts in a row that come after their time: the way to here has become longer
DRIFT = 5e-4  # of a client's clock against ours, at most; sound cards have .0001
AHEAD_S = 2.0  # of sound that may lie before the chunk that is heard
LAGS_S = 2.0  # a client shows an answer later than it should by, and is sent no more
LOST_S = 10.0  # ... and is given up
QUIET_S = 2.0  # a client that sends nothing for so long stands still: it does not lag meanwhile
PING_S = 5.0
GONE_S = 15.0  # without a sign of life
PICTURE_BYTES = 48 * 1024
PICTURE_PIXELS = 512
MOST_PICTURES = 64  # that wait for their chunk
OWN_AHEAD_S = 60.0  # of its own voice that an avatar may send before it says it

# What Pillow raises, of a picture that says that it is huge, too.
_NO_PICTURE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
)

Output = Literal["motion", "arkit", "act"]


class SessionRequest(BaseModel):
    """What a client asks for when it asks for a session; see docs/serve.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    policy: str | None = Field(None, max_length=100)
    seed: int = Field(0, ge=0, lt=2**31)
    text: str | None = Field(None, max_length=1000)
    lead: Literal[0, 4, 8, 12] | None = None
    outputs: list[Output] = Field(["motion", "arkit", "act"], min_length=1, max_length=3)
    number: int = Field(0, ge=0, lt=2**31)


class Reserved(BaseModel):
    """What a ticket stands for: what was asked for, and the end of the session's name."""

    model_config = ConfigDict(frozen=True)

    id: str
    request: SessionRequest


class Channel(Protocol):
    """The way to a client; called in any thread."""

    texts_only: bool
    """whether the client reads texts only"""

    def send(self, message: str | bytes) -> None:
        """A text or a binary message goes to the client."""

    def close(self, code: int, reason: str) -> None:
        """Nothing more goes to the client."""


@dataclass(frozen=True)
class Terms:
    """On which a session is held.

    Args:
        pace: of sound that may be sent; None = any.
        grace: seconds that sound may be late by, before silence is heard in its place.
        wait: seconds until its first chunk may begin, so that sessions share their steps.
    """

    pace: Pace | None = None
    grace: float = 0.08
    wait: float = 0.0


@dataclass
class Hearing:
    """The sound of one person, as far as its chunk is not complete.

    Args:
        at: number of the sample that comes next.
        blocks: samples before it that no chunk has had.
    """

    at: int
    blocks: list[np.ndarray] = field(default_factory=list)

    def add(self, samples: np.ndarray) -> None:
        """Hear what follows."""
        self.blocks.append(samples)
        self.at += len(samples)

    def take(self, count: int) -> np.ndarray:
        """The oldest samples."""
        samples = np.concatenate([*self.blocks, np.zeros(0, np.float32)])
        self.blocks = [samples[count:]]
        return samples[:count]


class Session:
    """One client, from `ready` to the end.

    Args:
        name: of the session.
        request: what was asked for.
        voice: who listens.
        engine: that steps it.
        channel: to the client.
        terms: of the session.
        eyes: that read the speaker's face off pictures, for a policy that perceives motion; None =
            nobody does.
    """

    def __init__(
        self,
        name: str,
        request: SessionRequest,
        voice: Voice,
        engine: Engine,
        channel: Channel,
        terms: Terms = Terms(),
        eyes: Eyes | None = None,
    ) -> None:
        self.name = name
        self.request = request
        self.voice = voice
        self.late = 0
        self.dropped = 0
        self.answer_s = 0.0
        self.ended = False
        self.noted: Callable[..., None] | None = None  # hears what the session hears, see `record`
        self._ending = False
        self._ends = threading.Lock()  # of the end, which meets answers
        self._answered = request.number - 1  # the newest chunk that was, or was followed
        self._begun: Answer | None = None  # what was done before anything was heard
        self._engine = engine
        self._channel = channel
        self._terms = terms
        self._number = request.number  # of the chunk that is heard
        self._sound = Hearing(voice.border(request.number))
        self._own: Hearing | None = None
        self._motion: Motion | None = None
        self._pictures: list[tuple[int, np.ndarray]] = []
        self._saw = -math.inf  # when the newest picture of the chunks until now was taken, samples
        self._eyes = eyes
        self._watch = None if eyes is None else eyes.watch(voice.policy.layout)
        self._looked_on: dict[int, bytes] = {}  # motion that was read, by chunk, not yet told
        self._past: list[tuple[Chunk, np.ndarray]] = []
        self._to_come = 0  # chunks of the past
        self._recalled: list[Part] = []  # of the next of them
        self._line: Line | None = None
        self._prompt: Any = None  # what the listener is told, of the policy
        self._told: str | None = None
        self._changed_text = False
        self._liveliness = 1.0
        self._began: float | None = None  # when sample 0 was spoken, on the engine's clock
        self._too_late: list[float] = []  # the same by parts in a row that came after their time
        self._shown = voice.border(request.number)
        self._sent = self._shown  # newest sample that an answer was sent for
        self._unshown: deque[tuple[int, float]] = deque()  # answers: first sample, when sent
        self._lost_answers = False
        self._acts: list[Part] = []  # that were not sent yet
        now = engine.clock()
        self._alive = now
        self._pinged = now
        self._say(wire.Ready(id=name, number=request.number, wait_s=terms.wait))

    # -- What the client sends --

    def hear(self, message: str | bytes) -> None:
        """A message of the client.

        Raises:
            WireError: it cannot be understood, or is not allowed; the session is to be closed.
        """
        now = self._engine.clock()
        quiet = now - self._alive
        if quiet > QUIET_S:
            self._unshown = deque((first, sent + quiet) for first, sent in self._unshown)
        self._alive = now
        if isinstance(message, bytes):
            if self._channel.texts_only:
                raise WireError("this socket has texts only", "binary")
            parts = wire.unpacked(message)
        else:
            said = wire.said(message)
            if not isinstance(said, Part):
                self._obey(said)
                return
            parts = [said]
        if self._to_come:
            self._remember(parts)
            return
        for part in parts:
            self._take(part)

    def _obey(self, said: wire.Text) -> None:
        """A text that is no part."""
        match said:
            case wire.Ack():
                self._acknowledge(said.sample)
            case wire.Told():
                if not self.voice.policy.takes_text:
                    raise WireError(f"{self.voice.name} takes no text", "text", "text")
                self._told = said.text
                self._changed_text = True
            case wire.Liveliness():
                self._liveliness = said.value
            case wire.Went():
                self._expect_the_past(said.chunks)
            case wire.Ping():
                self._say(wire.Pong(id=said.id))
            case wire.End():
                self._end()

    def _acknowledge(self, sample: int) -> None:
        """The client shows this sample; it cannot show what it was never sent."""
        self._shown = max(self._shown, min(sample, self._sent))

    def _take(self, part: Part) -> None:
        """A part of the present."""
        match part.kind:
            case Kind.SOUND:
                self._hear_sound(part)
            case Kind.OWN_SOUND:
                if self._own is None:
                    self._own = Hearing(self.voice.border(self._number))
                self._extend(self._own, part)
                if self._own.at > self._sound.at + OWN_AHEAD_S * AUDIO_RATE:
                    raise WireError(
                        f"own sound is {OWN_AHEAD_S:g} s ahead at most", "own_sound", "sample"
                    )
            case Kind.MOTION:
                self._require_present(part)
                self._motion = self._motion_of(part)
            case Kind.PICTURE:
                self._require_present(part)
                if len(self._pictures) == MOST_PICTURES:
                    raise WireError(
                        f"{MOST_PICTURES} pictures wait for the sound of their chunk",
                        "pictures",
                        "picture",
                    )
                self._see(part.sample, _picture(part))
            case _:
                raise WireError(f"{part.kind.name.lower()} is sent by servers", "kind", "kind")

    def _see(self, sample: int, picture: np.ndarray) -> None:
        if self._watch is not None:
            assert self._eyes is not None
            self._eyes.see(self._watch, sample / AUDIO_RATE, picture)
        else:
            self._pictures.append((sample, picture))

    def _hear_sound(self, part: Part) -> None:
        now = self._engine.clock()
        samples = len(part.payload) // 2
        before = self._sound.at
        self._extend(self._sound, part)
        # What is left out takes its time, too, but before the first part: a client may begin late.
        heard = 0 if self._began is None else self._sound.at - before
        pace = self._terms.pace
        if pace is not None and not pace.take(max(samples, heard)):
            raise WireError(
                f"sound comes faster than it is spoken, at sample {part.sample}; "
                "POST /v1/generations takes recordings",
                "pace",
                close=wire.FORBIDDEN,
            )
        self._set_clock(now - (part.sample + samples) / AUDIO_RATE, samples, late=not heard)
        while self._sound.at >= self.voice.border(self._number + 1):
            self._complete(flags=0)

    def _set_clock(self, began: float, samples: int, *, late: bool) -> None:
        """Say when sample 0 was spoken.

        The earliest moment at which all of a part can have been spoken says it. Where parts come
        after their time one after the other, the way to here takes longer than it did.

        Args:
            began: by the part that came.
            samples: of that part.
            late: silence was heard in its place.
        """
        if self._began is None:
            self._began = began
        elif late:
            self._too_late.append(began)
            if len(self._too_late) == SLOWER:
                self._began = max(self._began, min(self._too_late))
                self._too_late.clear()
        else:
            self._too_late.clear()
            self._began = min(began, self._began + DRIFT * samples / AUDIO_RATE)

    def _extend(self, hearing: Hearing, part: Part) -> None:
        """More of a voice: what comes twice is left out, what is missing was silence."""
        sound = _sound(part)
        if len(sound) > self.voice.border(1) + 1:
            raise WireError("sound of more than a chunk; send chunk by chunk", "sound", "sound")
        known = hearing.at - part.sample
        if known < -AHEAD_S * AUDIO_RATE:
            raise WireError(
                f"sample {part.sample} follows {hearing.at}: what is between is missing",
                "sample",
                "sample",
            )
        if known < 0:
            hearing.add(np.zeros(-known, np.float32))
            known = 0
        hearing.add(sound[known:])

    def _require_present(self, part: Part) -> None:
        first, end = (self.voice.border(self._number + n) for n in (0, 1))
        if part.sample < first - AHEAD_S * AUDIO_RATE or part.sample >= end + AHEAD_S * AUDIO_RATE:
            raise WireError(
                f"sample {part.sample} is not of the present chunk, which has {first} to {end}",
                "sample",
                "sample",
            )

    def _motion_of(self, part: Part) -> Motion:
        """The partner's motion in a chunk."""
        layout = self.voice.policy.layout
        try:
            values = np.frombuffer(part.payload, "<f4").reshape(-1, layout.dim)
            motion = Motion(values.copy(), layout)
        except (ValueError, LayoutError) as error:
            raise WireError(f"motion: {error}", "motion", "motion") from None
        frames = self.voice.frames
        if len(motion) != frames or not np.isfinite(values).all():
            raise WireError(
                f"motion: {frames} frames of finite numbers a chunk", "motion", "motion"
            )
        return motion

    # -- Chunks --

    def tick(self) -> None:
        """Time passed: hear silence where sound is late, look whether the client is there."""
        now = self._engine.clock()
        if now - self._alive > GONE_S:
            self._leave(wire.MOVED, f"nothing was heard of the client for {GONE_S:g} s")
            return
        if now - self._pinged > PING_S:
            self._pinged = now
            self._say(wire.Ping())
        if self._began is None or self._to_come or self._ending or self.ended:
            return
        while now > self._due(self._number) + self._terms.grace:
            missing = self.voice.border(self._number + 1) - self._sound.at
            if missing > 0:
                self._sound.add(np.zeros(missing, np.float32))
                self.late += 1
                telemetry.record(telemetry.LATE, 1)
            self._complete(flags=wire.LATE if missing > 0 else 0)

    def _due(self, chunk: int) -> float:
        """When the last sample of a chunk was spoken, on the engine's clock."""
        assert self._began is not None
        return self._began + self.voice.border(chunk + 1) / AUDIO_RATE

    def _complete(self, flags: int) -> None:
        """The present chunk is heard."""
        first, end = (self.voice.border(self._number + n) for n in (0, 1))
        heard = self._chunk(first, end)
        due = self._engine.clock() + self.voice.listener.chunk
        job = Job(self._number, heard, due, flags=flags)
        self._number += 1
        self._submit(job)

    def _chunk(self, first: int, end: int) -> Chunk:
        """What was heard and seen of a chunk, and is taken from what waits."""
        own = None
        if self._own is not None:
            missing = end - self._own.at
            if missing > 0:
                self._own.add(np.zeros(missing, np.float32))
            own = self._own.take(end - first)
            if missing >= end - first:
                own, self._own = None, None  # it has ended
        seen = [(sample, image) for sample, image in self._pictures if sample < end]
        self._pictures = [(sample, image) for sample, image in self._pictures if sample >= end]
        frames, taken = self._seen(seen, first)
        motion, self._motion = self._motion, None
        if motion is None and self._watch is not None:
            motion = self._read(first)
        return Chunk(
            audio=self._sound.take(end - first),
            own_audio=own,
            motion=motion,
            frames=frames,
            taken=taken,
        )

    def _seen(
        self, pictures: Sequence[tuple[int, np.ndarray]], first: int
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Pictures of a chunk and when they were taken; None once there was none for `BLIND_S`."""
        self._saw = max([self._saw, *(sample for sample, _ in pictures)])
        if first - self._saw > BLIND_S * AUDIO_RATE:
            return None, None
        return _of_one_size(pictures, first)

    def _read(self, first: int) -> Motion | None:
        """The speaker's motion in the present chunk, as far as it was read off pictures."""
        assert self._watch is not None
        motion = self._watch.watcher.motion(first / AUDIO_RATE, self.voice.frames)
        if motion is not None and "act" in self.request.outputs:
            self._looked_on[self._number] = motion.values.astype("<f4").tobytes()
        return motion

    def _submit(self, job: Job) -> None:
        line = self._line or self._begin(self.request.number)
        if self.noted is not None:
            self.noted(job.chunk, job.heard, *([self._told] if self._changed_text else []))
        if self._changed_text:
            self._changed_text = False
            prompt = self._prompt = self._told_by(self._told)
            tell = self.voice.listener.tell
            job = replace(job, told=lambda state: tell(state, prompt))
        self._engine.submit(line, job)

    def _begin(self, first: int) -> Line:
        """The session's state, and what it does before it hears anything."""
        self._prompt = self._told_by(self.request.text)
        try:
            state = self._begun_at(first)
        except ValueError as error:
            raise WireError(f"number {first}: {error}", "number", "number") from None
        wants = self.voice.rig is not None and "arkit" in self.request.outputs
        self._line = Line(
            self.name,
            self.voice,
            state,
            wants,
            self._begun_at,
            self._answer,
            self._fail,
            followed=self._followed,
        )
        if state.waits:
            due = self._engine.clock() + self.voice.listener.chunk
            self._engine.submit(self._line, Job(-1, None, due))
        return self._line

    def _told_by(self, text: str | None) -> Any:
        """What a listener is told by a text; None = nothing."""
        return None if text is None else self.voice.policy.told(text)

    def _begun_at(self, first: int) -> Any:
        """The state of a session that knows of nothing before its chunk `first`."""
        return self.voice.start(self.request.seed, self._prompt, self.request.lead, first)

    # -- Going on --

    def _expect_the_past(self, chunks: int) -> None:
        if self._to_come:
            raise WireError("the past is told once", "went", "chunks")
        if self._line is not None or self._sound.blocks:
            raise WireError("the past comes before the present", "went", "chunks")
        most = round(self.voice.listener.memory / self.voice.listener.chunk)
        most += self.voice.listener.beat
        if chunks > min(most, self.request.number):
            raise WireError(
                f"chunks: at most {most} are heeded, and {self.request.number} were before",
                "went",
                "chunks",
            )
        self._to_come = chunks

    def _remember(self, parts: Sequence[Part]) -> None:
        """Parts of a chunk of the past, the last of which is its act.

        With the last chunk the listener catches up.
        """
        self._recalled += parts
        if len(self._recalled) > MOST_PICTURES:
            raise WireError(f"{MOST_PICTURES} parts, and no act among them", "went", "parts")
        if parts[-1].kind is not Kind.ACT:
            return
        number = self.request.number - self._to_come
        pictures = [p for p in self._recalled if p.kind is Kind.PICTURE and self._watch is None]
        by_kind = {part.kind: part for part in self._recalled}
        self._recalled = []
        if Kind.SOUND not in by_kind:
            raise WireError("a chunk of the past has its sound and its act", "went", "parts")
        sounds = {
            kind: self._whole(by_kind[kind], number)
            for kind in (Kind.SOUND, Kind.OWN_SOUND)
            if kind in by_kind
        }
        motion = by_kind.get(Kind.MOTION)
        seen = [(part.sample, _picture(part)) for part in pictures]
        frames, taken = self._seen(seen, self.voice.border(number))
        chunk = Chunk(
            audio=sounds[Kind.SOUND],
            own_audio=sounds.get(Kind.OWN_SOUND),
            motion=None if motion is None else self._motion_of(motion),
            frames=frames,
            taken=taken,
        )
        self._past.append((chunk, self._act_of(by_kind[Kind.ACT])))
        self._to_come -= 1
        if not self._to_come:
            self._catch_up()

    def _whole(self, part: Part, number: int) -> np.ndarray:
        """A voice in all of a chunk."""
        sound = _sound(part)
        samples = self.voice.border(number + 1) - self.voice.border(number)
        if len(sound) != samples:
            raise WireError(f"chunk {number} has {samples} samples", "went", "sound")
        return sound

    def _act_of(self, part: Part) -> np.ndarray:
        """What the listener did in a chunk of the past."""
        try:
            act = np.frombuffer(part.payload, self.voice.act_type)
        except ValueError as error:
            raise WireError(f"act: {error}", "act", "act") from None
        if not np.isfinite(act).all():
            raise WireError("act: finite numbers", "act", "act")
        return act.astype(np.int64) if act.dtype.kind == "i" else act.copy()

    def _catch_up(self) -> None:
        beat = self.voice.listener.beat
        first = self.request.number - len(self._past)
        skipped = -first % beat
        if skipped >= len(self._past):
            raise WireError(f"go on with {beat} chunks at least", "went", "chunks")
        line = self._begin(first + skipped)
        self._answered = first + skipped - 1
        due = self._engine.clock() + self.voice.listener.chunk
        for number, (chunk, act) in enumerate(self._past[skipped:], first + skipped):
            self._engine.submit(line, Job(number, chunk, due, done=act))
        self._past = []

    # -- What the client is sent --

    def _answer(self, answer: Answer) -> None:
        """In the engine's thread."""
        if self._begun is not None:
            answer = _after(self._begun, answer)
            self._begun = None
        if answer.chunk < 0:
            # It goes with the first chunk's; a client that goes on had it where it was before.
            self._begun = None if self.request.number else answer
            return
        self.answer_s = answer.seconds
        telemetry.record(telemetry.ANSWER_SECONDS, answer.seconds, policy=self.voice.name)
        rate = AUDIO_RATE / answer.motion.layout.fps
        first = round(answer.first * rate)
        behind = self._behind(first)
        self._sent = round((answer.first + len(answer.motion)) * rate)
        self._acts += self._act_part(answer)
        last = self._ending and answer.chunk == self._number - 1
        if behind > LOST_S:
            self._leave(wire.MOVED, f"the client is {LOST_S:g} s behind, or sends no ack")
        elif behind > LAGS_S + self.voice.delay[self.request.lead] and not last:
            self.dropped += 1
            telemetry.record(telemetry.DROPPED, 1)
            self._lost_answers = True
        else:
            flags = answer.flags | (wire.DROPPED if self._lost_answers else 0)
            self._lost_answers = False
            acts, self._acts = self._acts, []
            self._deliver(self._shown_by(answer.motion, answer.arkit, first, flags) + acts)
        # Only now: the client's end may come meanwhile, and must find this chunk sent.
        if self._is_last(answer.chunk):
            self._finish()

    def _followed(self, chunk: int) -> None:
        """The listener did what it did elsewhere; in the engine's thread."""
        if self._is_last(chunk):
            self._finish()

    def _is_last(self, chunk: int) -> bool:
        """Whether nothing comes after this chunk, which is done."""
        with self._ends:
            self._answered = chunk
            return self._ending and chunk == self._number - 1

    def _behind(self, first: int) -> float:
        """Seconds since the oldest answer that the client does not show yet; `first` of a new one.

        By the clock, as a session that goes on is answered much at once.
        """
        now = self._engine.clock()
        while self._unshown and self._unshown[0][0] <= self._shown:
            self._unshown.popleft()
        self._unshown.append((first, now))
        return now - self._unshown[0][1]

    def _shown_by(
        self, motion: Motion, arkit: np.ndarray | None, first: int, flags: int
    ) -> list[Part]:
        """Parts of frames, as lively as the client wants them."""
        parts = []
        lively = np.float32(self._liveliness)
        if "motion" in self.request.outputs:
            values = (motion.values * lively).astype("<f4")
            parts.append(Part(Kind.SHOWN, first, values.tobytes(), flags))
        if arkit is not None:
            values = (arkit * lively).astype("<f4")
            weights = values[:, : len(NAMES)]  # angles follow
            weights.clip(0, 1, out=weights)
            parts.append(Part(Kind.ARKIT, first, values.tobytes(), flags))
        return parts

    def _act_part(self, answer: Answer) -> list[Part]:
        """What the listener did, and what was read of the speaker's face: to go on elsewhere."""
        if "act" not in self.request.outputs:
            return []
        first = self.voice.border(answer.chunk)
        act = answer.act.astype(self.voice.act_type).tobytes()
        parts = [Part(Kind.ACT, first, act, answer.flags)]
        if answer.chunk in self._looked_on:
            parts.append(Part(Kind.SEEN, first, self._looked_on.pop(answer.chunk), answer.flags))
        return parts

    def _deliver(self, parts: list[Part]) -> None:
        if not parts:
            return
        if self._channel.texts_only:
            for part in parts:
                self._channel.send(wire.as_text(part))
        else:
            self._channel.send(wire.packed(parts))

    def _end(self) -> None:
        """The client says nothing more: a chunk that it is in ends in silence."""
        if self._ending:
            return
        if self._sound.at > self.voice.border(self._number):
            missing = self.voice.border(self._number + 1) - self._sound.at
            self._sound.add(np.zeros(missing, np.float32))
            self._complete(flags=0)
        if self._line is None:
            self._leave(wire.ENDED, "ended")
            return
        with self._ends:
            self._ending = True
            over = self._answered == self._number - 1
        if over:
            self._finish()

    def _finish(self) -> None:
        """The frames that are left, once the last chunk is answered."""
        assert self._line is not None
        listener = self.voice.listener
        motion = self._line.joints.join(listener.finish(self._line.state))
        first = round(listener.settled(self._line.state) * AUDIO_RATE / motion.layout.fps)
        wants = self._line.wants_arkit and len(motion) > 0
        self._deliver(self._shown_by(motion, self.voice.arkit(motion) if wants else None, first, 0))
        self._leave(wire.ENDED, "ended")

    def _fail(self, error: Exception) -> None:
        """The policy failed, or never did what the client tells; in the engine's thread."""
        if isinstance(error, NotDone):
            self._say(wire.Error(code="act", field="act", message=f"act: {error}"))
            self._leave(wire.MISUNDERSTOOD, f"act: {error}")
            return
        self._say(wire.Error(code="failed", message=f"{self.voice.name} failed; go on elsewhere"))
        self._leave(wire.FAILED, "the policy failed")

    def move(self) -> None:
        """This replica goes away."""
        self._say(wire.Move())

    def fares(self, sessions: int) -> None:
        """Tell the client how its session fares, among so many."""
        self._say(
            wire.Stats(
                late=self.late, dropped=self.dropped, sessions=sessions, answer_s=self.answer_s
            )
        )

    def leave(self) -> None:
        """The client is gone, or the socket is closed."""
        self.ended = True
        if self._line is not None:
            self._engine.close(self._line)

    def _leave(self, code: int, reason: str) -> None:
        self.leave()
        self._channel.close(code, reason)

    def _say(self, text: wire.Text) -> None:
        self._channel.send(text.model_dump_json())


def _after(begun: Answer, answer: Answer) -> Answer:
    """An answer with the frames before it."""
    values = np.concatenate([begun.motion.values, answer.motion.values])
    arkit = None if answer.arkit is None else np.concatenate([begun.arkit, answer.arkit])
    motion = Motion(values, answer.motion.layout)
    return replace(answer, motion=motion, first=begun.first, arkit=arkit)


def _sound(part: Part) -> np.ndarray:
    """Samples (n,) float32 in [-1, 1]."""
    if not part.payload or len(part.payload) % 2:
        raise WireError(
            f"sound of {len(part.payload)} bytes: int16 samples have two", "sound", "sound"
        )
    return np.frombuffer(part.payload, "<i2").astype(np.float32) / 32768


def _picture(part: Part) -> np.ndarray:
    """(height, width, 3) uint8."""
    if len(part.payload) > PICTURE_BYTES:
        raise WireError(
            f"a picture of {len(part.payload)} bytes, at most {PICTURE_BYTES}", "picture", "picture"
        )
    try:
        image = Image.open(io.BytesIO(part.payload), formats=["JPEG"])
        if max(image.size) > PICTURE_PIXELS:
            raise WireError(
                f"a picture of {image.size} pixels, at most {PICTURE_PIXELS} a side",
                "picture",
                "picture",
            )
        return np.asarray(image.convert("RGB"))
    except _NO_PICTURE as error:
        if isinstance(error, WireError):
            raise
        raise WireError("a picture is no JPEG", "picture", "picture") from None


def _of_one_size(
    pictures: Sequence[tuple[int, np.ndarray]], first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of a chunk of one size, and when they were taken, seconds from its first sample."""
    if not pictures:
        return np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0)
    size = pictures[-1][1].shape
    same = [(sample, image) for sample, image in sorted(pictures, key=lambda p: p[0])]
    same = [(sample, image) for sample, image in same if image.shape == size]
    frames = np.stack([image for _, image in same])
    taken = np.array([(sample - first) / AUDIO_RATE for sample, _ in same])
    return frames, taken
