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
        seconds: that the answer took from when its chunk was complete.
        flags: of its job.
    """

    chunk: int
    motion: Motion
    first: int
    act: np.ndarray
    arkit: np.ndarray | None
    seconds: float
    flags: int = 0


@dataclass(eq=False)
class Line:
    """A session as the engine knows it.

    Args:
        voice: who listens.
        state: of the session.
        wants_arkit: whether its answers hold ARKit's weights.
        answered: called in the engine's thread.
        failed: likewise, when its policy failed; it is stepped no more.
        joints: between its answers.
    """

    voice: Voice
    state: Any
    wants_arkit: bool
    answered: Callable[[Answer], None]
    failed: Callable[[Exception], None]
    jobs: deque[tuple[Job, float]] = field(default_factory=deque)
    closed: bool = False
    joints: Joints = field(init=False)

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
            self.counts.failed += 1
            logger.exception(f"{line.voice.name}: a session failed and is ended")
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
            if answer is None or line.closed:
                continue
            motion, first, act, arkit = answer
            if ended > job.due:
                self.counts.missed += 1
                telemetry.record(telemetry.MISSED, 1, policy=line.voice.name)
            seconds = ended - submitted
            line.answered(Answer(job.chunk, motion, first, act, arkit, seconds, job.flags))


def _stepped(
    batch: Sequence[tuple[Line, Job, float]],
) -> list[tuple[Motion, int, np.ndarray, np.ndarray | None] | None]:
    """Frames, number of the first, act and ARKit's columns of each; None of what was known."""
    voice = batch[0][0].voice
    listener = voice.listener
    states = [line.state if job.told is None else job.told(line.state) for line, job, _ in batch]
    heard = [job.heard for _, job, _ in batch]
    done = [job.done for _, job, _ in batch if job.done is not None]
    if done:
        known = [chunk for chunk in heard if chunk is not None]
        after = listener.follow(states, known, done)
        for (line, _, _), state in zip(batch, after, strict=True):
            line.state = state
        return [None] * len(batch)
    motions, after = listener.step(states, heard)
    answers: list[tuple[Motion, int, np.ndarray, np.ndarray | None] | None] = []
    joints = [replace(line.joints) for line, _, _ in batch]
    for (line, _, _), before, state, motion, joint in zip(
        batch, states, after, motions, joints, strict=True
    ):
        first = listener.settled(before)
        motion = joint.join(motion)
        arkit = voice.arkit(motion) if line.wants_arkit else None
        answers.append((motion, first, listener.act(state), arkit))
    # Only now: whoever is stepped again, as another failed, is where they were.
    for (line, _, _), state, joint in zip(batch, after, joints, strict=True):
        line.state, line.joints = state, joint
    return answers


def measure(
    listener: Listener, start: Callable[..., Any], rig: ArkitRig | None, most: int
) -> dict[int, float]:
    """Seconds of a step by the number of sessions that share it: 1, 2, 4, ... up to `most`.

    It ends where a step takes longer than it may.
    """
    costs: dict[int, float] = {}
    count = 1
    while True:
        states = [start(seed) for seed in range(count)]
        seconds = []
        for number in range(MEASURED + 1):
            if states[0].waits:
                _, states = listener.step(states, [None] * count)
            heard = [silence(listener, number)] * count
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
