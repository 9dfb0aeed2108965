"""Baselines that every listener should beat: Random, Nearest Neighbour, Mirror (Ng et al. 2022)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rapport.policies.motion import Layout, LayoutError, Motion

SEGMENTS = 8  # a clip is described by that many stretches in a row, so that order in time counts


@dataclass(frozen=True, eq=False)
class SpeakerInput:
    """What a clip has of its speaker: `motion`, `audio` (samples,), `text`; None where it is
    absent.
    """

    motion: Motion | None = None
    audio: np.ndarray | None = None
    text: str | None = None


def random_listener(train: Sequence[Motion], frames: int, rng: np.random.Generator) -> Motion:
    """The first `frames` of a training listener drawn at random, among those long enough."""
    long_enough = [motion for motion in train if len(motion) >= frames]
    if not long_enough:
        raise ValueError(
            f"no training listener has {frames} frames, the longest of {len(train)} is shorter"
        )
    return long_enough[rng.integers(len(long_enough))].window(0, frames)


def mirror(speaker: Motion | None, layout: Layout) -> Motion | None:
    """The speaker's own motion in the listener's `layout`; None where the speaker's motion is
    absent.

    A speaker without one of the groups, or of another frame rate or topology, raises `LayoutError`.
    """
    return None if speaker is None else speaker.subset(layout)


class NearestNeighbour:
    """Answers with the listener of the training clip whose speaker is nearest.

    Speakers are compared by the first of motion, audio and text that the query and some training
    clip have; the comparison is among those clips. Features are standardised over the training
    clips."""

    def __init__(self, speakers: Sequence[SpeakerInput], listeners: Sequence[Motion]) -> None:
        if not len(speakers) == len(listeners) > 0:
            raise ValueError(
                f"{len(speakers)} speakers for {len(listeners)} listeners; one each, and at "
                "least one"
            )
        self.listeners = list(listeners)
        counts = Counter(word for s in speakers if s.text is not None for word in words(s.text))
        self.vocabulary = {word: column for column, word in enumerate(sorted(counts))}
        layouts = {s.motion.layout for s in speakers if s.motion is not None}
        if len(layouts) > 1:
            raise LayoutError(
                "training speakers of unlike layouts: " + "; ".join(sorted(map(str, layouts)))
            )
        self.layout = next(iter(layouts), None)
        described = [self._features(speaker) for speaker in speakers]
        self.index: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = {}
        for modality in ("motion", "audio", "text"):
            clips = np.array(
                [i for i, features in enumerate(described) if modality in features], dtype=int
            )
            if len(clips):
                x = np.stack([described[i][modality] for i in clips])
                mean, scale = x.mean(axis=0), x.std(axis=0)
                scale[scale < 1e-8] = 1.0
                self.index[modality] = clips, (x - mean) / scale, mean, scale

    def nearest(self, speaker: SpeakerInput) -> int:
        """Index of the nearest training clip; the first of equals."""
        features = self._features(speaker)
        for modality, (clips, x, mean, scale) in self.index.items():
            if modality in features:
                distance = np.sum((x - (features[modality] - mean) / scale) ** 2, axis=1)
                return int(clips[np.argmin(distance)])
        raise ValueError(
            f"the speaker has {sorted(features) or 'nothing'}, the training clips "
            f"{sorted(self.index)}; "
            "nothing to compare them by"
        )

    def __call__(self, speaker: SpeakerInput, frames: int) -> Motion:
        """The first `frames` of the nearest clip's listener."""
        return self.listeners[self.nearest(speaker)].window(0, frames)

    def _features(self, speaker: SpeakerInput) -> dict[str, np.ndarray]:
        features = {}
        if speaker.motion is not None:
            if speaker.motion.layout != self.layout and self.layout is not None:
                raise LayoutError(
                    f"speaker in {speaker.motion.layout}, training speakers in {self.layout}"
                )
            features["motion"] = motion_features(speaker.motion)
        if speaker.audio is not None:
            features["audio"] = audio_features(speaker.audio)
        if speaker.text is not None:
            features["text"] = text_features(speaker.text, self.vocabulary)
        return features


def motion_features(motion: Motion) -> np.ndarray:
    """(2 * SEGMENTS * dim,): mean and standard deviation of each channel in each segment."""
    parts = np.array_split(motion.values.astype(np.float64), SEGMENTS)
    if len(parts[-1]) == 0:
        raise ValueError(f"a motion of {len(motion)} frames is too short for {SEGMENTS} segments")
    return np.concatenate([np.concatenate([part.mean(axis=0), part.std(axis=0)]) for part in parts])


def audio_features(audio: np.ndarray) -> np.ndarray:
    """(4 * SEGMENTS,): log energy in stretches of equal length."""
    parts = np.array_split(np.asarray(audio, np.float64), 4 * SEGMENTS)
    if len(parts[-1]) == 0:
        raise ValueError(f"audio of {len(audio)} samples is too short for {4 * SEGMENTS} stretches")
    return np.log(np.array([np.mean(part**2) for part in parts]) + 1e-8)


def text_features(text: str, vocabulary: dict[str, int]) -> np.ndarray:
    """(vocabulary,): counts of known words, square-rooted so that repetition counts for less."""
    counts = np.zeros(len(vocabulary))
    for word in words(text):
        if word in vocabulary:
            counts[vocabulary[word]] += 1
    return np.sqrt(counts)


def words(text: str) -> list[str]:
    """Lower-case words, apostrophes kept."""
    return re.findall(r"[\w']+", text.lower())
