"""Build the synthetic corpus: deterministic by seed, whatever the number of workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from rapport.pipeline.data.columns import Truth
from rapport.pipeline.data.readers.pictures import Drawing, Painter, with_frames
from rapport.pipeline.data.store import SPLITS, Corpus, CorpusError, CorpusWriter
from rapport.pipeline.data.synthetic.face import FaceBasis
from rapport.pipeline.data.synthetic.figures import FIGURES, FPS
from rapport.pipeline.data.synthetic.listener import (
    Listener,
    backchannel_audio,
    fitting_affect,
    simulate_listener,
)
from rapport.pipeline.data.synthetic.script import Script
from rapport.pipeline.data.synthetic.speaker import Speaker, draw_speaker, motion_of, sound_of
from rapport.pipeline.data.windows import HEARD_S, cut
from rapport.policies.clip import Clip
from rapport.policies.head.asset import BUILTIN_CHECKSUM, load_head
from rapport.rewards.ratings.answers import answers, fits
from rapport.rewards.ratings.points import Point

EARLIER_S = 5.0  # points of the past are kept for as long


@dataclass(frozen=True)
class Design:
    """What a conversation is made of.

    Args:
        seconds: length of a clip.
        past: seconds before each clip that are kept with it, up to `HEARD_S`; 0 = none.
        listeners: to each speaker, each for themselves.
        riddles: how often cues disagree, from 0 (never: all points are plain) to 1.
        frames: of the speaker a second, frame k at (k + .5) / frames seconds; 0 = no video.
        image_size: height and width of a frame, pixels.
    """

    seconds: float = 4.0
    past: float = 4.0
    listeners: int = 4
    riddles: float = 0.5
    frames: int = 2
    image_size: int = 56

    @property
    def clip_frames(self) -> int:
        """Frames of motion in a clip."""
        return round(self.seconds * FPS)

    @property
    def past_frames(self) -> int:
        """Frames of motion in its past."""
        return round(self.past * FPS)


DESIGN = Design()


@dataclass(frozen=True)
class Conversation:
    """One speaker to simulate, with all who listen.

    Args:
        split: of the corpus.
        number: within its split.
        clips: how many are kept, from its start.
        design: what it is made of.
        seed: of the corpus.
    """

    split: str
    number: int
    clips: int
    design: Design = DESIGN
    seed: int = 0

    @property
    def speaker_id(self) -> str:
        """Name of the speaker, unique in the corpus."""
        return f"{self.split}-{self.number:04d}"

    @property
    def starts(self) -> list[int]:
        """First frame of each clip, counted from the start of what is simulated."""
        first = round(HEARD_S * FPS)
        return [first + i * self.design.clip_frames for i in range(self.clips)]

    def dyad_id(self, listener: int) -> str:
        """Name of the speaker and one who listens."""
        return f"{self.speaker_id}-{listener}"

    def rng(self, stream: int) -> np.random.Generator:
        """Independent streams: of what is said, the speaker's motion, the voice, each listener."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), self.number, stream])


class Sample(NamedTuple):
    """A clip and what the corpus knows of it."""

    clip: Clip
    expressed: np.ndarray  # (time, 2) affect that the listener shows
    truth: Truth
    points: tuple[Point, ...]
    appropriate: list[str]


def generate_corpus(
    path: str | Path,
    n_train: int = 1536,
    n_validation: int = 128,
    n_test: int = 128,
    *,
    design: Design = DESIGN,
    seed: int = 0,
    workers: int = 2,
) -> Corpus:
    """Simulate conversations and write their clips, labels, points and hidden truth.

    A moment is one clip of a speaker, and as many clips of the corpus as there are listeners. The
    moments of one conversation share a split and its people.

    Args:
        path: folder to create.
        n_train: moments to train on.
        n_validation: moments on which choices are made.
        n_test: moments that results are reported on.
        design: what conversations are made of.
        seed: the same seed and arguments give the same files.
        workers: processes; 0 works in this one.

    Raises:
        CorpusError: the folder exists, a clip or its past is not a whole number of frames, counts
            are below 1, or a part of the design is out of its range.
    """
    moments = dict(zip(SPLITS, (n_train, n_validation, n_test), strict=True))
    require_sizes(moments, design)
    conversations = []
    for split, count in moments.items():
        each = clips_of_conversation(split)
        for number, first in enumerate(range(0, count, each)):
            clips = min(each, count - first)
            conversations.append(Conversation(split, number, clips, design=design, seed=seed))
    source = {
        "kind": "synthetic",
        **{f"n_{split}": count for split, count in moments.items()},
        **asdict(design),
        "seed": seed,
        # Coefficients mean nothing on another build of the head.
        "head_sha256": BUILTIN_CHECKSUM.read_text().split()[0],
    }
    with CorpusWriter(path, source) as writer:
        for samples in _run(conversations, workers):
            for sample in samples:
                writer.add(
                    sample.clip,
                    sample.expressed,
                    truth=sample.truth,
                    points=sample.points,
                    appropriate=sample.appropriate,
                )
    return Corpus(path)


def clips_of_conversation(split: str) -> int:
    """Clips that a conversation of a split has at most."""
    return FIGURES.training_clips if split == "train" else FIGURES.held_out_clips


def require_sizes(moments: Mapping[str, int], design: Design) -> None:
    """Raise `CorpusError` unless a corpus can have these sizes; `moments` are counted by split."""
    if min(*moments.values(), design.listeners) < 1 or design.frames < 0:
        asked = ", ".join(f"n_{split}={count}" for split, count in moments.items())
        raise CorpusError(
            f"{asked}, listeners={design.listeners} must be 1 or more, frames={design.frames} 0 or "
            "more"
        )
    if not 0 <= design.riddles <= 1:
        raise CorpusError(f"riddles={design.riddles} is a share, from 0 to 1")
    if not 0 <= design.past <= HEARD_S:
        raise CorpusError(
            f"past={design.past}: from 0 to {HEARD_S:g} s before a clip are simulated"
        )
    lengths = f"seconds={design.seconds}, past={design.past}"
    if design.seconds < 1 or not _whole(design.seconds * FPS, design.past * FPS):
        raise CorpusError(
            f"{lengths}: clips must be at least 1 s, and both whole frames at {FPS:g} fps"
        )
    if not _whole(design.seconds * design.frames, design.past * design.frames):
        raise CorpusError(
            f"{lengths} at {design.frames} frames of video a second: both must be whole frames"
        )


def _whole(*numbers: float) -> bool:
    """Whether all are whole numbers, but for rounding."""
    return all(abs(number - round(number)) < 1e-6 for number in numbers)


def simulate(conversation: Conversation) -> list[Sample]:
    """All clips of a conversation in order of time, each moment with one listener after another."""
    design = conversation.design
    length = design.clip_frames
    speaker = speaker_of(conversation)
    scenes = _scenes(conversation, speaker)
    listeners = [listener_of(conversation, speaker, number) for number in range(design.listeners)]
    spans = [slice(start, start + length) for start in conversation.starts]
    points = [points_between(speaker, scene.start, design.seconds) for scene in scenes]
    fitting = fitting_affect(speaker.points, speaker.clock)
    appropriate = []
    for i, span in enumerate(spans):
        judged = [answers(listener.expressed[span, 0], points[i], FPS) for listener in listeners]
        good = [number for number, answer in enumerate(judged) if fits(answer)]
        appropriate.append([clip_id(conversation, number, i) for number in good])

    recordings = [
        _recording(conversation, listener, number) for number, listener in enumerate(listeners)
    ]
    samples = []
    # Listeners to the same moment lie together, where what they share is stored once.
    for i, (scene, span) in enumerate(zip(scenes, spans, strict=True)):
        for number, (listener, recording) in enumerate(zip(listeners, recordings, strict=True)):
            name = clip_id(conversation, number, i)
            listening = cut(recording, span.start, length, name, past=design.past_frames)
            # The lead-in has a manner of its own.
            truth = Truth(
                fitting[span].astype(np.float32),
                manner=listener.manners[i + 1],
                style=listener.traits,
            )
            samples.append(
                Sample(
                    clip=_heard(scene, listening),
                    expressed=listener.expressed[span].astype(np.float32),
                    truth=truth,
                    points=points[i],
                    appropriate=appropriate[i],
                )
            )
    return samples


def _recording(conversation: Conversation, listener: Listener, number: int) -> Clip:
    """A listener over the whole conversation."""
    return Clip(
        clip_id=conversation.speaker_id,
        dyad_id=conversation.dyad_id(number),
        split=conversation.split,
        listener=listener.motion,
        listener_audio=backchannel_audio(
            conversation.rng(4 + 2 * number),
            listener,
            start=-HEARD_S,
            seconds=listener.motion.seconds,
        ),
    )


def _heard(scene: Clip, listening: Clip) -> Clip:
    """A scene with somebody who listens to it."""
    past = scene.past
    if past is not None:
        assert listening.past is not None
        past = replace(past, listener=listening.past.listener)
    return replace(
        scene,
        clip_id=listening.clip_id,
        dyad_id=listening.dyad_id,
        listener=listening.listener,
        listener_audio=listening.listener_audio,
        past=past,
    )


def clip_id(conversation: Conversation, listener: int, place: int) -> str:
    """Name of the clip at a place of a conversation, unique in the corpus."""
    return f"{conversation.dyad_id(listener)}-{place}"


def speaker_of(conversation: Conversation) -> Speaker:
    """Who speaks, from `HEARD_S` before the first clip to the end of the last one.

    A conversation is simulated whole even where the corpus takes only its first clips, so that each
    clip is the same in any corpus.
    """
    script = Script(
        conversation.rng(0),
        riddles=conversation.design.riddles,
        held_out=conversation.split == "test",
    )
    end = clips_of_conversation(conversation.split) * conversation.design.seconds
    return draw_speaker(script.rng, script, start=-HEARD_S, end=end)


def listener_of(conversation: Conversation, speaker: Speaker, number: int) -> Listener:
    """One of those who listen to a speaker."""
    count = clips_of_conversation(conversation.split)
    starts = np.arange(count + 1) * conversation.design.seconds
    edges = np.concatenate([[-HEARD_S], starts])
    return simulate_listener(conversation.rng(3 + 2 * number), _basis(), speaker, edges=edges)


def points_between(speaker: Speaker, start: float, seconds: float) -> tuple[Point, ...]:
    """The points of a clip and of the `EARLIER_S` before it, in seconds from its start."""
    return tuple(
        replace(point, time=point.time - start)
        for point in speaker.points
        if start - EARLIER_S <= point.time < start + seconds
    )


def _scenes(conversation: Conversation, speaker: Speaker) -> list[Clip]:
    """What there is to see and hear in each clip; the motion is the speaker's, nobody listens yet.

    The arrays of a scene are shared by the clips of all who listen.
    """
    motion = motion_of(conversation.rng(1), _basis(), speaker)
    sound = sound_of(conversation.rng(2), speaker, start=-conversation.design.past)
    recording = Clip(
        clip_id=conversation.speaker_id,
        dyad_id=conversation.speaker_id,
        split=conversation.split,
        listener=motion,
        speaker=motion,
        speaker_audio=sound,
        words=tuple(
            replace(word, start=word.start + HEARD_S, end=word.end + HEARD_S)
            for word in speaker.speech.words
        ),
        speaker_shape=speaker.person.shape,
        speaker_id=conversation.speaker_id,
        start=-HEARD_S,
    )
    design = conversation.design
    scenes = [
        cut(recording, start, design.clip_frames, clip_id="", past=design.past_frames)
        for start in conversation.starts
    ]
    if not design.frames:
        return scenes
    look = _painter(design.frames, design.image_size).of(motion, speaker.person.shape)
    return with_frames(scenes, recording, design.frames, look)


@cache
def _basis() -> FaceBasis:
    return FaceBasis.from_head(load_head())


@cache
def _painter(rate: int, size: int) -> Painter:
    return Painter(Drawing(rate, size))


def _run(conversations: Sequence[Conversation], workers: int) -> Iterator[list[Sample]]:
    """Simulated conversations in order."""
    if workers < 1 or len(conversations) == 1:
        yield from map(simulate, conversations)
        return
    with ExitStack() as stack:
        # Spawned, not forked: the caller may hold the threads of torch, Ray or Arrow.
        context = multiprocessing.get_context("spawn")
        pool = stack.enter_context(
            ProcessPoolExecutor(
                workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
            )
        )
        # A few at a time, so that finished clips do not pile up when writing is the slower side.
        ahead = 4 * workers
        for first in range(0, len(conversations), ahead):
            yield from pool.map(simulate, conversations[first : first + ahead])
