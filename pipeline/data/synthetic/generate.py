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


@dataclass(frozen=True)
class Conversation:
    """One dyad to simulate: its place in the corpus and what to make of it."""

    seed: int
    split: str
    number: int  # within its split
    clips: int
    seconds: float  # of a clip
    image_size: int
    frames: int  # rendered per clip; 0 for a corpus without video

    @property
    def dyad_id(self) -> str:
        return f"{self.split}-{self.number:04d}"


def generate(
    path: str | Path,
    n_train: int = 512,
    n_test: int = 96,
    seconds: float = 4.0,
    seed: int = 0,
    image_size: int = 56,
    frames: int = 4,
    workers: int = 2,
) -> Corpus:
    """Simulate conversations and write their clips, affect labels and hidden truth to a new folder.

    Args:
        path: folder to create.
        n_train, n_test: clips; those of one dyad share a split and both people.
        seconds: length of a clip.
        seed: the same seed and arguments give the same files.
        image_size: pixels of the square video frames.
        frames: video frames of a clip, evenly spaced; 0 leaves video out.
        workers: processes; 0 works in this one.

    Raises:
        CorpusError: the folder exists.
        ValueError: a clip is not a whole number of frames, or counts are below 1.
    """
    if n_train < 1 or n_test < 1 or frames < 0:
        raise ValueError(
            f"n_train={n_train}, n_test={n_test} must be 1 or more, frames={frames} 0 or more"
        )
    if round(seconds * FPS) != seconds * FPS or seconds < 1:
        raise ValueError(
            f"seconds={seconds}: clips must be at least 1 s and whole frames at {FPS:g} fps"
        )
    per_dyad = FIGURES.clips_per_dyad
    conversations = [
        Conversation(
            seed, split, first // per_dyad, min(per_dyad, n - first), seconds, image_size, frames
        )
        for split, n in zip(SPLITS, (n_train, n_test), strict=True)
        for first in range(0, n, per_dyad)
    ]
    arguments = {"n_train": n_train, "n_test": n_test, "seconds": seconds, "seed": seed}
    # Coefficients mean nothing on another build of the head: the manifest says which one they
    # belong to.
    head = BUILTIN_CHECKSUM.read_text().split()[0]
    source = {
        "kind": "synthetic",
        **arguments,
        "image_size": image_size,
        "frames": frames,
        "head_sha256": head,
    }
    with CorpusWriter(path, source) as writer:
        for simulated in _run(conversations, workers):
            for clip, expressed, truth in simulated:
                writer.add(clip, expressed, truth)
    return Corpus(path)


def simulate(conversation: Conversation) -> list[tuple[Clip, np.ndarray, Truth]]:
    """All clips of a conversation with the listener's expressed affect (time, 2) and the hidden
    truth.
    """
    rng = np.random.default_rng(
        [conversation.seed, SPLITS.index(conversation.split), conversation.number]
    )
    length = round(conversation.seconds * FPS)
    # A dyad is simulated whole even where the corpus takes only its first clips: each clip is the
    # same in any corpus.
    total = FIGURES.clips_per_dyad
    basis = _basis()
    episodes = draw_episodes(rng, total, conversation.seconds)
    speaker = simulate_speaker(rng, basis, episodes, total * length)
    listener = simulate_listener(rng, basis, speaker, total)
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
    clips = [
        cut(recording, i * length, length, f"{recording.clip_id}-{i}")
        for i in range(conversation.clips)
    ]
    if conversation.frames:
        clips = _with_frames(clips, conversation.frames, conversation.image_size)
    return [
        (
            clip,
            listener.expressed[i * length : (i + 1) * length].astype(np.float32),
            Truth(
                listener.appropriate[i * length : (i + 1) * length].astype(np.float32),
                listener.manners[i],
                listener.traits,
            ),
        )
        for i, clip in enumerate(clips)
    ]


def _with_frames(clips: list[Clip], frames: int, size: int) -> list[Clip]:
    """Render `frames` evenly spaced frames of each clip's speaker, all clips in one batch."""
    length = len(clips[0].speaker)
    moments = ((np.arange(frames) + 0.5) * length / frames).astype(int)
    shown = Motion(
        np.concatenate([clip.speaker.values[moments] for clip in clips]), clips[0].speaker.layout
    )
    head, rasterizer = _camera(size)
    images = rasterizer.render(head.vertices_of(shown, shape=clips[0].speaker_shape))
    return [
        replace(c, speaker_frames=images[i * frames : (i + 1) * frames])
        for i, c in enumerate(clips)
    ]


@cache
def _basis() -> FaceBasis:
    return FaceBasis.of(load_head())


@cache
def _camera(size: int) -> tuple[FlameHead, Rasterizer]:
    asset = load_head()
    return FlameHead(asset), Rasterizer(asset, size=size, supersample=2)


def _run(
    conversations: list[Conversation], workers: int
) -> Iterator[list[tuple[Clip, np.ndarray, Truth]]]:
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
        ahead = (
            8 * workers
        )  # no further, so that finished clips do not pile up when writing is the slower side
        for first in range(0, len(conversations), ahead):
            yield from pool.map(simulate, conversations[first : first + ahead])
