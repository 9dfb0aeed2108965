"""Build the synthetic corpus: deterministic by seed, whatever the number of workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from rapport.pipeline.data.columns import Truth
from rapport.pipeline.data.store import SPLITS, Corpus, CorpusWriter
from rapport.pipeline.data.synthetic.answers import fits
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
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.motion import Motion
from rapport.rewards.ratings.points import Point

EARLIER_S = 5.0  # points of the past are kept for as long


@dataclass(frozen=True)
class SpeakerVideo:
    """What is shown of the speaker.

    Args:
        frames: a second, frame k at (k + .5) / frames seconds; 0 leaves video out.
        size: height and width of a frame, pixels.
    """

    frames: int = 2
    size: int = 56


VIDEO = SpeakerVideo()


@dataclass(frozen=True)
class Conversation:
    """One speaker to simulate, with all who listen: its place in the corpus and what to make of it.

    Args:
        seed: of the corpus.
        split: of it.
        number: within its split.
        clips: how many are kept, from its start.
        seconds: length of a clip.
        past: seconds before each clip that are kept with it.
        listeners: who listen, each for themselves.
        riddles: see `script.Script`.
        video: what is shown of the speaker.
    """

    seed: int
    split: str
    number: int
    clips: int
    seconds: float = 4.0
    past: float = 4.0
    listeners: int = 4
    riddles: float = 1.0
    video: SpeakerVideo = VIDEO

    @property
    def speaker_id(self) -> str:
        """Name of the speaker, unique in the corpus."""
        return f"{self.split}-{self.number:04d}"

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
    *,
    n_train: int = 512,
    n_validation: int = 128,
    n_test: int = 128,
    seconds: float = 4.0,
    past: float = 4.0,
    listeners: int = 4,
    riddles: float = 1.0,
    seed: int = 0,
    video: SpeakerVideo = VIDEO,
    workers: int = 2,
) -> Corpus:
    """Simulate conversations and write their clips, labels, points and hidden truth.

    Args:
        path: folder to create.
        n_train: moments to train on, each one clip of a speaker and as many clips of the corpus as
            there are listeners; those of one conversation share a split and its people.
        n_validation: moments to choose on.
        n_test: moments to report on.
        seconds: length of a clip.
        past: seconds before each clip that are kept with it, up to `HEARD_S`; 0 = none.
        listeners: to each speaker.
        riddles: how often cues disagree, from 0 (never: all points are plain) to 1.
        seed: the same seed and arguments give the same files.
        video: frames of the speaker.
        workers: processes; 0 works in this one.

    Raises:
        CorpusError: the folder exists.
        ValueError: a clip is not a whole number of frames, counts are below 1, or `riddles` or
            `past` are out of their range.
    """
    counts = dict(zip(SPLITS, (n_train, n_validation, n_test), strict=True))
    _require_sizes(counts, seconds, past, listeners, riddles, video)
    conversations = []
    for split, clips in counts.items():
        each = clips_of_conversation(split)
        for number, first in enumerate(range(0, clips, each)):
            conversation = Conversation(
                seed=seed,
                split=split,
                number=number,
                clips=min(each, clips - first),
                seconds=seconds,
                past=past,
                listeners=listeners,
                riddles=riddles,
                video=video,
            )
            conversations.append(conversation)
    source = {
        "kind": "synthetic",
        "n_train": n_train,
        "n_validation": n_validation,
        "n_test": n_test,
        "seconds": seconds,
        "past": past,
        "listeners": listeners,
        "riddles": riddles,
        "seed": seed,
        "image_size": video.size,
        "frames": video.frames,
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


def _require_sizes(
    counts: dict[str, int],
    seconds: float,
    past: float,
    listeners: int,
    riddles: float,
    video: SpeakerVideo,
) -> None:
    """Raise `ValueError` unless a corpus can have these sizes."""
    if min(*counts.values(), listeners) < 1 or video.frames < 0:
        asked = ", ".join(f"n_{split}={count}" for split, count in counts.items())
        raise ValueError(
            f"{asked}, listeners={listeners} must be 1 or more, frames={video.frames} 0 or more"
        )
    if not 0 <= riddles <= 1:
        raise ValueError(f"riddles={riddles} is a share, from 0 to 1")
    if not 0 <= past <= HEARD_S:
        raise ValueError(f"past={past}: from 0 to {HEARD_S:g} s are simulated before a clip")
    if not (whole(seconds * FPS) and whole(past * FPS)) or seconds < 1:
        raise ValueError(
            f"seconds={seconds}, past={past}: clips must be at least 1 s, and both whole frames at "
            f"{FPS:g} fps"
        )
    if not (whole(seconds * video.frames) and whole(past * video.frames)):
        raise ValueError(
            f"seconds={seconds}, past={past} at {video.frames} frames a second: both must be whole "
            "frames"
        )


def whole(number: float) -> bool:
    """Whether it is a whole number, but for rounding."""
    return abs(number - round(number)) < 1e-6


def simulate(conversation: Conversation) -> list[Sample]:
    """All clips of a conversation: of one listener after the other, each in order of time."""
    speaker = speaker_of(conversation)
    scenes = _scenes(conversation, speaker)
    listeners = [
        listener_of(conversation, speaker, number) for number in range(conversation.listeners)
    ]
    # Frames of the clips, counted from the start of what is simulated.
    length = round(conversation.seconds * FPS)
    spans = [
        slice(first := round(HEARD_S * FPS) + i * length, first + length)
        for i in range(conversation.clips)
    ]
    points = [points_between(speaker, scene.start, conversation.seconds) for scene in scenes]
    fitting = fitting_affect(speaker.points, speaker.clock)
    appropriate = []
    for i, span in enumerate(spans):
        shown = [listener.expressed[span, 0] for listener in listeners]
        good = [number for number, valence in enumerate(shown) if fits(valence, points[i], FPS)]
        appropriate.append([clip_id(conversation, number, i) for number in good])

    samples = []
    for number, listener in enumerate(listeners):
        audio = backchannel_audio(
            conversation.rng(4 + 2 * number),
            listener,
            start=float(speaker.clock[0]),
            seconds=len(speaker.clock) / FPS,
        )
        recording = Clip(
            clip_id=conversation.speaker_id,
            dyad_id=conversation.dyad_id(number),
            split=conversation.split,
            listener=listener.motion,
            listener_audio=audio,
        )
        for i, (scene, span) in enumerate(zip(scenes, spans, strict=True)):
            heard = cut(recording, span.start, length, clip_id(conversation, number, i), past=0)
            before = scene.past
            if before is not None:
                frames = len(before.listener)
                earlier = listener.motion.window(span.start - frames, frames)
                before = replace(before, listener=earlier)
            clip = replace(
                scene,
                clip_id=heard.clip_id,
                dyad_id=heard.dyad_id,
                listener=heard.listener,
                listener_audio=heard.listener_audio,
                past=before,
            )
            # The lead-in has the first manner.
            truth = Truth(
                fitting[span].astype(np.float32),
                manner=listener.manners[i + 1],
                style=listener.traits,
            )
            expressed = listener.expressed[span].astype(np.float32)
            samples.append(Sample(clip, expressed, truth, points[i], appropriate[i]))
    return samples


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
        riddles=conversation.riddles,
        held_out=conversation.split == "test",
    )
    end = clips_of_conversation(conversation.split) * conversation.seconds
    return draw_speaker(script.rng, script, start=-HEARD_S, end=end)


def listener_of(conversation: Conversation, speaker: Speaker, number: int) -> Listener:
    """One of those who listen to a speaker."""
    count = clips_of_conversation(conversation.split)
    starts = np.arange(count + 1) * conversation.seconds
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
    recording = Clip(
        clip_id=conversation.speaker_id,
        dyad_id=conversation.speaker_id,
        split=conversation.split,
        listener=motion,
        speaker=motion,
        speaker_audio=sound_of(conversation.rng(2), speaker),
        words=tuple(
            replace(word, start=word.start + HEARD_S, end=word.end + HEARD_S)
            for word in speaker.speech.words
        ),
        speaker_shape=speaker.person.shape,
        speaker_id=conversation.speaker_id,
        start=-HEARD_S,
    )
    length = round(conversation.seconds * FPS)
    before = round(conversation.past * FPS)
    starts = [round(HEARD_S * FPS) + i * length for i in range(conversation.clips)]
    scenes = [cut(recording, start, length, clip_id="", past=before) for start in starts]
    if not conversation.video.frames:
        return scenes
    return _with_frames(scenes, starts, recording, conversation)


def _with_frames(
    scenes: list[Clip], starts: list[int], recording: Clip, conversation: Conversation
) -> list[Clip]:
    """Render evenly spaced frames of the speaker, each moment once, all in one batch."""
    video = conversation.video
    inside = _moments(conversation.seconds, video.frames)
    before = _moments(conversation.past, video.frames) - round(conversation.past * FPS)
    wanted = [start + np.concatenate([before, inside]) for start in starts]
    moments, places = np.unique(np.concatenate(wanted), return_inverse=True)
    assert recording.speaker is not None
    poses = Motion(recording.speaker.values[moments], recording.speaker.layout)
    head, rasterizer = _camera(video.size)
    images = rasterizer.render(head.vertices_of(poses, shape=recording.speaker_shape))
    shown = images[places].reshape(len(starts), -1, *images.shape[1:])
    framed = []
    for scene, frames in zip(scenes, shown, strict=True):
        earlier = scene.past
        if earlier is not None:
            earlier = replace(earlier, speaker_frames=frames[: len(before)])
        framed.append(replace(scene, speaker_frames=frames[len(before) :], past=earlier))
    return framed


def _moments(seconds: float, rate: int) -> np.ndarray:
    """Frames of motion at which `rate` video frames a second are taken: (k + .5) / rate seconds."""
    return ((np.arange(round(seconds * rate)) + 0.5) / rate * FPS).astype(int)


@cache
def _basis() -> FaceBasis:
    return FaceBasis.from_head(load_head())


@cache
def _camera(size: int) -> tuple[FlameHead, Rasterizer]:
    asset = load_head()
    return FlameHead(asset), Rasterizer(asset, size=size, supersample=2)


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
