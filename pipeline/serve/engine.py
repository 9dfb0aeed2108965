"""The engine of a replica: one thread in which all sessions are stepped, the most urgent first.

Sessions whose chunk is complete share a forward pass. Nobody waits in a queue for longer than a
pass or two: how many sessions fit is measured when a policy is loaded, and no more are let in.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rapport.actors import telemetry
from rapport.log import logger
from rapport.policies.clip import AUDIO_RATE
from rapport.policies.head.arkit import ArkitRig
from rapport.policies.head.livelink import channels
from rapport.policies.live import Chunk, Listener
from rapport.policies.motion import Motion
from rapport.policies.policy import Policy
from rapport.policies.seams import Joints, Smoother

MEASURED = 3  # steps of each batch size, of which the median counts
PROBED_S = 4.0  # of silence, in which a listener shows its delay
FULL = 0.5  # share of a chunk that a step of all sessions may take
PICTURE_S = 0.2  # from one picture of a page to the next
SIDE = 224  # pixels of theirs


class NotDone(ValueError):
    """A client tells of something that its listener cannot have done."""


@dataclass(frozen=True, eq=False)
class Voice:
    """A policy that can be talked to.

    Args:
        name: by which clients ask for it.
        policy: the policy.
        listener: the same, live.
        rig: gives ARKit's weights; None = its head has none.
        start: of a session: seed, prompt, lead, number of the first chunk -> state.
        delay: seconds from a sound to the frames that belong to it, before any computing, by lead;
            None is the policy's own.
        act_type: of what it does, as it is sent: "<f4" or "<i4".
        costs: seconds of a step, by sessions that share it.
        simulated: whether it was trained on synthetic people.
        smoother: joins the frames of a chunk to those before; None = nothing does.
    """

    name: str
    policy: Policy
    listener: Listener
    rig: ArkitRig | None
    start: Callable[..., Any]
    delay: Mapping[int | None, float]
    act_type: str
    costs: Mapping[int, float]
    simulated: bool
    smoother: Smoother | None = None

    @property
    def sessions(self) -> int:
        """How many a step may have, so that they are answered in time."""
        return capacity(self.costs, FULL * self.listener.chunk)

    @property
    def frames(self) -> int:
        """Frames of motion in a chunk."""
        return round(self.listener.chunk * self.policy.layout.fps)

    def border(self, chunk: int) -> int:
        """Number of the first sample of a chunk."""
        return border(self.listener, chunk)

    def arkit(self, motion: Motion) -> np.ndarray:
        """Live Link Face's 61 columns of frames, float32."""
        assert self.rig is not None
        return channels(self.rig.weights(motion)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Job:
    """A chunk that a session is stepped by.

    Args:
        chunk: its number; -1 in the first step of a session that waits for none.
        heard: it; None in that first step.
        due: when it should be answered, on the engine's clock.
        done: what the listener did, in a session that goes on; None = it is asked.
        told: called on the state before the step, where the listener is told something else.
        flags: of the answer.
    """

    chunk: int
    heard: Chunk | None
    due: float
    done: np.ndarray | None = None
    told: Callable[[Any], Any] | None = None
    flags: int = 0


@dataclass(frozen=True, eq=False)
class Answer:
    """What a session did in a chunk.

    Args:
        chunk: its number.
        motion: frames that are settled now.
        first: number of the first of them.
        act: what the policy did.
        arkit: Live Link Face's columns of the frames, where they were asked for.
        flags: of its job.
        anew: whether the policy gave what is no number, so that the face stayed as it was and the
            session began anew.
        seconds: that the answer took from when its chunk was complete.
    """

    chunk: int
    motion: Motion
    first: int
    act: np.ndarray
    arkit: np.ndarray | None
    flags: int = 0
    anew: bool = False
    seconds: float = 0.0


@dataclass(eq=False)
class Line:
    """A session as the engine knows it.

    Args:
        name: of the session.
        voice: who listens.
        state: of the session.
        wants_arkit: whether its answers hold ARKit's weights.
        begun: gives the state of a session whose first chunk has that number.
        answered: called in the engine's thread.
        failed: likewise, when its policy failed; it is stepped no more.
        followed: likewise, with the number of a chunk in which it did what was known.
        joints: between its answers.
        pose: of its last frame, (dim,); None before the first.
    """

    name: str
    voice: Voice
    state: Any
    wants_arkit: bool
    begun: Callable[[int], Any]
    answered: Callable[[Answer], None]
    failed: Callable[[Exception], None]
    followed: Callable[[int], None] = lambda _: None
    jobs: deque[tuple[Job, float]] = field(default_factory=deque)
    closed: bool = False
    joints: Joints = field(init=False)
    pose: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.joints = Joints(self.voice.smoother)


@dataclass
class Counts:
    """What an engine did since it began."""

    steps: int = 0
    stepped: int = 0  # chunks, of all sessions
    missed: int = 0  # answers that were not there when they were due
    failed: int = 0
    longest_s: float = 0.0
    last_step: float = 0.0  # on the engine's clock
    idle_until: float = 0.0  # when something came after nothing was waiting


class Engine:
    """Steps the lines that have something to do.

    Args:
        observe: called with the voice's name, the size of a batch and its seconds, after a step.
        clock: seconds.
    """

    def __init__(
        self,
        observe: Callable[[str, int, float], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = Counts()
        self.clock = clock
        self._observe = observe
        self._changed = threading.Condition()
        self._lines: dict[int, Line] = {}
        self._stepping = 0  # of the batch that is stepped now
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="listeners", daemon=True)
        self._thread.start()

    def submit(self, line: Line, job: Job) -> None:
        """Step a line, after what it was given before; a closed one is left alone."""
        with self._changed:
            if line.closed:
                return
            if not self.waiting():
                self.counts.idle_until = self.clock()
            line.jobs.append((job, self.clock()))
            self._lines[id(line)] = line
            self._changed.notify()

    def close(self, line: Line) -> None:
        """Forget a line; what it still had to do is left undone."""
        with self._changed:
            line.closed = True
            self._lines.pop(id(line), None)

    def waiting(self) -> int:
        """Chunks that are not answered yet."""
        with self._changed:
            return self._stepping + sum(len(line.jobs) for line in self._lines.values())

    def stop(self) -> None:
        """End the thread, after the step that it is in."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            self._step(batch)
            self._stepping = 0

    def _next(self) -> list[tuple[Line, Job, float]] | None:
        """The most urgent job, and those that can share its step; None when all is over."""
        with self._changed:
            while not self._stopped and not self._lines:
                self._changed.wait()
            if self._stopped:
                return None
            lines = sorted(self._lines.values(), key=lambda line: line.jobs[0][0].due)
            voice, known = lines[0].voice, lines[0].jobs[0][0].done is not None
            chosen = [
                line
                for line in lines
                if line.voice is voice and (line.jobs[0][0].done is not None) == known
            ][: max(voice.costs)]
            batch = []
            for line in chosen:
                batch.append((line, *line.jobs.popleft()))
                if not line.jobs:
                    del self._lines[id(line)]
            self._stepping = len(batch)
            return batch

    def _step(self, batch: Sequence[tuple[Line, Job, float]]) -> None:
        """One pass for all of a batch; if it fails, each alone, so that only the guilty end."""
        began = self.clock()
        try:
            answers = _stepped(batch)
        except Exception as error:
            if len(batch) > 1:
                for each in batch:
                    self._step([each])
                return
            line, _, _ = batch[0]
            if not isinstance(error, NotDone):
                self._count_failure(line, "failed, and the session is ended", error)
            self.close(line)
            line.failed(error)
            return
        ended = self.clock()
        self.counts.steps += 1
        self.counts.stepped += len(batch)
        self.counts.longest_s = max(self.counts.longest_s, ended - began)
        self.counts.last_step = ended
        self._observe(batch[0][0].voice.name, len(batch), ended - began)
        for (line, job, submitted), answer in zip(batch, answers, strict=True):
            if line.closed:
                continue
            if answer is None:
                line.followed(job.chunk)
                continue
            if answer.anew:
                self._count_failure(line, "gave no number, and the session began anew")
            if ended > job.due:
                self.counts.missed += 1
                telemetry.record(telemetry.MISSED, 1, policy=line.voice.name)
            line.answered(replace(answer, seconds=ended - submitted))

    def _count_failure(self, line: Line, what: str, error: Exception | None = None) -> None:
        self.counts.failed += 1
        telemetry.record(telemetry.FAILED, 1, policy=line.voice.name)
        logger.error(f"session {line.name}: {line.voice.name} {what}", exc_info=error)


def _stepped(batch: Sequence[tuple[Line, Job, float]]) -> list[Answer | None]:
    """The answer to each; None of what was known."""
    listener = batch[0][0].voice.listener
    states = [line.state if job.told is None else job.told(line.state) for line, job, _ in batch]
    heard = [job.heard for _, job, _ in batch]
    done = [job.done for _, job, _ in batch if job.done is not None]
    if done:
        known = [chunk for chunk in heard if chunk is not None]
        try:
            after = listener.follow(states, known, done)
        except ValueError as error:
            raise NotDone(str(error)) from None
        for (line, _, _), state in zip(batch, after, strict=True):
            line.state = state
        return [None] * len(batch)
    motions, after = listener.step(states, heard)
    answers: list[Answer | None] = []
    ends = []  # of lines: state, joints, pose
    for (line, job, _), before, state, motion in zip(batch, states, after, motions, strict=True):
        act = listener.act(state)
        anew = not (np.isfinite(motion.values).all() and np.isfinite(act).all())
        first = listener.settled(before)
        if anew:
            act = np.zeros_like(act)
            state = line.begun(job.chunk + 1)
            motion = _held(line, listener.settled(state) - first)
        joints = replace(line.joints)
        motion = joints.join(motion)
        arkit = line.voice.arkit(motion) if line.wants_arkit else None
        answers.append(Answer(job.chunk, motion, first, act, arkit, job.flags, anew))
        ends.append((state, joints, motion.values[-1] if len(motion) else line.pose))
    # Only now: whoever is stepped again, as another failed, is where they were.
    for (line, _, _), end in zip(batch, ends, strict=True):
        line.state, line.joints, line.pose = end
    return answers


def _held(line: Line, frames: int) -> Motion:
    """The pose that was shown last, so many frames long."""
    layout = line.voice.policy.layout
    pose = np.zeros(layout.dim, np.float32) if line.pose is None else line.pose
    return Motion(np.tile(pose, (frames, 1)), layout)


def measure(
    listener: Listener, start: Callable[..., Any], rig: ArkitRig | None, most: int, sees: bool
) -> dict[int, float]:
    """Seconds of a step by the number of sessions that share it: 1, 2, 4, ... up to `most`.

    It ends where a step takes longer than it may.

    Args:
        listener: that steps.
        start: of a session, by its seed.
        rig: where ARKit's weights are asked for, too.
        most: sessions.
        sees: whether it is sent pictures by all of them.
    """
    costs: dict[int, float] = {}
    count = 1
    while True:
        states = [start(seed) for seed in range(count)]
        seconds = []
        for number in range(MEASURED + 1):
            if states[0].waits:
                _, states = listener.step(states, [None] * count)
            chunk = silence(listener, number)
            heard = [pictured(chunk, listener.chunk) if sees else chunk] * count
            began = time.monotonic()
            motions, states = listener.step(states, heard)
            if rig is not None:
                for motion in motions:
                    channels(rig.weights(motion))
            seconds.append(time.monotonic() - began)
        costs[count] = float(np.median(seconds[1:]))  # the first one warms up
        if count == most or costs[count] > FULL * listener.chunk:
            return costs
        count = min(2 * count, most)


def capacity(costs: Mapping[int, float], budget: float) -> int:
    """How many sessions a step of `budget` seconds has room for, straight between measured sizes.

    At least one: who runs a policy that is slower than real time is told so when it is loaded.
    """
    sizes = sorted(costs)
    seconds = np.maximum.accumulate([costs[size] for size in sizes])
    return max(int(np.interp(budget, seconds, sizes, left=1)), 1)


def pictured(chunk: Chunk, seconds: float) -> Chunk:
    """The same with as many pictures as a page sends, of nothing."""
    taken = np.arange(PICTURE_S / 2, seconds, PICTURE_S)
    frames = np.zeros((len(taken), SIDE, SIDE, 3), np.uint8)
    return replace(chunk, frames=frames, taken=taken)


def delay_of(listener: Listener, state: Any) -> float:
    """Seconds from a sound to the frames that belong to it, at most, before any computing."""
    delay = 0.0
    steps = in_silence(listener, state, round(PROBED_S / listener.chunk))
    for number, (motion, _, first) in enumerate(steps):
        if len(motion):
            delay = max(delay, (number + 1) * listener.chunk - first / motion.layout.fps)
    return delay


def in_silence(listener: Listener, state: Any, chunks: int) -> Iterator[tuple[Motion, Any, int]]:
    """A session in which nobody says anything, chunk by chunk.

    Yields:
        the frames that are settled now, the new state, and the number of the first of the frames.
    """
    if state.waits:
        _, [state] = listener.step([state], [None])
    for number in range(chunks):
        first = listener.settled(state)
        [motion], [state] = listener.step([state], [silence(listener, number)])
        yield motion, state, first


def border(listener: Listener, chunk: int) -> int:
    """Number of the first sample of a chunk."""
    return round(chunk * listener.chunk * AUDIO_RATE)


def silence(listener: Listener, chunk: int) -> Chunk:
    """The chunk of that number in which nobody says anything."""
    samples = border(listener, chunk + 1) - border(listener, chunk)
    return Chunk(audio=np.zeros(samples, np.float32))
