"""Build the synthetic dyadic corpus: deterministic by seed, whatever the number of workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from rapport.pipeline.data.columns import Truth
from rapport.pipeline.data.store import Corpus, CorpusWriter
from rapport.pipeline.data.synthetic.face import FaceBasis
from rapport.pipeline.data.synthetic.figures import FIGURES, FPS
from rapport.pipeline.data.synthetic.listener import simulate_listener
from rapport.pipeline.data.synthetic.speaker import draw_episodes, simulate_speaker
from rapport.pipeline.data.windows import cut
from rapport.policies.clip import Clip
from rapport.policies.head.asset import BUILTIN_CHECKSUM, load_head
from rapport.policies.head.flame import FlameHead
from rapport.policies.head.raster import Rasterizer
from rapport.policies.motion import Motion

SPLITS = ("train", "test")
Sample = tuple[Clip, np.ndarray, Truth]  # with the listener's expressed affect (time, 2)


@dataclass(frozen=True)
class SpeakerVideo:
    """What is shown of the speaker.

    Args:
        frames: of a clip, evenly spaced; 0 leaves video out.
        size: height and width of a frame, pixels.
    """

    frames: int = 4
    size: int = 56


VIDEO = SpeakerVideo()


@dataclass(frozen=True)
class Conversation:
    """One dyad to simulate: its place in the corpus and what to make of it."""

    seed: int
    split: str
    number: int  # within its split
    clips: int
    seconds: float  # of a clip
    video: SpeakerVideo

    @property
    def dyad_id(self) -> str:
        """Name of the dyad, unique in the corpus."""
        return f"{self.split}-{self.number:04d}"


def generate_corpus(
    path: str | Path,
    n_train: int = 1024,
    n_test: int = 96,
    seconds: float = 4.0,
    seed: int = 0,
    video: SpeakerVideo = VIDEO,
    workers: int = 2,
) -> Corpus:
    """Simulate conversations and write their clips, affect labels and hidden truth to a new folder.

    Args:
        path: folder to create.
        n_train: training clips; those of one dyad share a split and both people.
        n_test: held-out clips.
        seconds: length of a clip.
        seed: the same seed and arguments give the same files.
        video: frames of the speaker.
        workers: processes; 0 works in this one.

    Raises:
        CorpusError: the folder exists.
        ValueError: a clip is not a whole number of frames, or counts are below 1.
    """
    if n_train < 1 or n_test < 1 or video.frames < 0:
        raise ValueError(
            f"n_train={n_train}, n_test={n_test} must be 1 or more, frames={video.frames} 0 or more"
        )
    if round(seconds * FPS) != seconds * FPS or seconds < 1:
        raise ValueError(
            f"seconds={seconds}: clips must be at least 1 s and whole frames at {FPS:g} fps"
        )
    conversations = []
    for split, clips in zip(SPLITS, (n_train, n_test), strict=True):
        for number, first in enumerate(range(0, clips, FIGURES.clips_per_dyad)):
            conversation = Conversation(
                seed=seed,
                split=split,
                number=number,
                clips=min(FIGURES.clips_per_dyad, clips - first),
                seconds=seconds,
                video=video,
            )
            conversations.append(conversation)
    source = {
        "kind": "synthetic",
        "n_train": n_train,
        "n_test": n_test,
        "seconds": seconds,
        "seed": seed,
        "image_size": video.size,
        "frames": video.frames,
        # Coefficients mean nothing on another build of the head.
        "head_sha256": BUILTIN_CHECKSUM.read_text().split()[0],
    }
    with CorpusWriter(path, source) as writer:
        for samples in _run(conversations, workers):
            for clip, expressed, truth in samples:
                writer.add(clip, expressed, truth)
    return Corpus(path)


def simulate(conversation: Conversation) -> list[Sample]:
    """All clips of a conversation with their labels and hidden truth."""
    rng = np.random.default_rng(
        [conversation.seed, SPLITS.index(conversation.split), conversation.number]
    )
    length = round(conversation.seconds * FPS)
    # A dyad is simulated whole even where the corpus takes only its first clips, so that each clip
    # is the same in any corpus.
    total = FIGURES.clips_per_dyad
    basis = _basis()
    episodes = draw_episodes(rng, total, conversation.seconds)
    speaker = simulate_speaker(rng, basis, episodes, frames=total * length)
    listener = simulate_listener(rng, basis, speaker, clips=total)
    recording = Clip(
        clip_id=conversation.dyad_id,
        dyad_id=conversation.dyad_id,
        split=conversation.split,
        listener=listener.motion,
        speaker=speaker.motion,
        speaker_audio=speaker.audio,
        listener_audio=listener.audio,
        words=speaker.speech.words,
        speaker_shape=speaker.person.shape,
    )
    spans = [slice(i * length, (i + 1) * length) for i in range(conversation.clips)]
    clips = [
        cut(recording, span.start, length, clip_id=f"{recording.clip_id}-{i}")
        for i, span in enumerate(spans)
    ]
    if conversation.video.frames:
        clips = _with_frames(clips, speaker.motion, conversation.video)
    samples = []
    for clip, span, manner in zip(clips, spans, listener.manners, strict=False):
        fitting = listener.appropriate[span].astype(np.float32)
        truth = Truth(fitting, manner=manner, style=listener.traits)
        samples.append((clip, listener.expressed[span].astype(np.float32), truth))
    return samples


def _with_frames(clips: list[Clip], speaker: Motion, video: SpeakerVideo) -> list[Clip]:
    """Render evenly spaced frames of each clip's speaker, all clips in one batch.

    Args:
        clips: consecutive clips of a conversation from its start, equally long.
        speaker: the speaker's motion over the whole conversation.
        video: what to render.
    """
    length = len(clips[0].listener)
    in_clip = ((np.arange(video.frames) + 0.5) * length / video.frames).astype(int)
    moments = np.concatenate([i * length + in_clip for i in range(len(clips))])
    head, rasterizer = _camera(video.size)
    poses = Motion(speaker.values[moments], speaker.layout)
    images = rasterizer.render(head.vertices_of(poses, shape=clips[0].speaker_shape))
    by_clip = images.reshape(len(clips), video.frames, *images.shape[1:])
    return [
        replace(clip, speaker_frames=frames) for clip, frames in zip(clips, by_clip, strict=True)
    ]


@cache
def _basis() -> FaceBasis:
    return FaceBasis.from_head(load_head())


@cache
def _camera(size: int) -> tuple[FlameHead, Rasterizer]:
    asset = load_head()
    return FlameHead(asset), Rasterizer(asset, size=size, supersample=2)


def _run(conversations: list[Conversation], workers: int) -> Iterator[list[Sample]]:
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
        ahead = 8 * workers
        for first in range(0, len(conversations), ahead):
            yield from pool.map(simulate, conversations[first : first + ahead])
