"""Baselines that every listener should beat: Random, Nearest Neighbour, Mirror (Ng et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rapport.policies.motion import Layout, LayoutError, Motion

# A clip is described by that many stretches in a row, so that order in time counts.
SEGMENTS = 8


@dataclass(frozen=True, eq=False)
class SpeakerInput:
    """What a clip has of its speaker; None where it is absent.

    Args:
        motion: the speaker's own.
        audio: (samples,).
        text: what the speaker says.
    """

    motion: Motion | None = None
    audio: np.ndarray | None = None
    text: str | None = None


def random_listener(train: Sequence[Motion], frames: int, rng: np.random.Generator) -> Motion:
    """The first `frames` of a training listener drawn at random, among those long enough.

    Raises:
        ValueError: none is long enough.
    """
    long_enough = [motion for motion in train if len(motion) >= frames]
    if not long_enough:
        raise ValueError(
            f"no training listener has {frames} frames, the longest of {len(train)} is shorter"
        )
    return long_enough[rng.integers(len(long_enough))].window(0, frames)


def mirror(speaker: Motion | None, layout: Layout) -> Motion | None:
    """The speaker's own motion in the listener's `layout`; None where it is absent.

    Raises:
        LayoutError: the speaker lacks a group, or has another frame rate or topology.
    """
    return None if speaker is None else speaker.subset(layout)


@dataclass(frozen=True, eq=False)
class _Index:
    """The training clips that have a modality.

    Args:
        clips: their numbers.
        features: (clips, dim) standardised.
        mean: (dim,) of the features.
        scale: (dim,) standard deviations, 1 where a feature is constant.
    """

    clips: np.ndarray
    features: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


class NearestNeighbour:
    """Answers with the listener of the training clip whose speaker is nearest.

    Speakers are compared by the first of motion, audio and text that the query and some training
    clip have; the comparison is among those clips. Features are standardised over the training
    clips.

    Args:
        speakers: of the training clips.
        listeners: of the same clips.

    Raises:
        ValueError: unlike numbers, or no clip.
        LayoutError: speakers of unlike layouts.
    """

    def __init__(self, speakers: Sequence[SpeakerInput], listeners: Sequence[Motion]) -> None:
        if not len(speakers) == len(listeners) > 0:
            raise ValueError(
                f"{len(speakers)} speakers for {len(listeners)} listeners; one each, and at "
                "least one"
            )
        self.listeners = list(listeners)
        texts = [speaker.text for speaker in speakers if speaker.text is not None]
        known_words = sorted({word for text in texts for word in words(text)})
        self.vocabulary = {word: column for column, word in enumerate(known_words)}
        layouts = {s.motion.layout for s in speakers if s.motion is not None}
        if len(layouts) > 1:
            raise LayoutError(
                "training speakers of unlike layouts: " + "; ".join(sorted(map(str, layouts)))
            )
        self.layout = next(iter(layouts), None)
        features_by_clip = [self._features(speaker) for speaker in speakers]
        self.indices: dict[str, _Index] = {}
        for modality in ("motion", "audio", "text"):
            clips = [i for i, features in enumerate(features_by_clip) if modality in features]
            if clips:
                x = np.stack([features_by_clip[i][modality] for i in clips])
                mean = x.mean(axis=0)
                scale = x.std(axis=0)
                scale[scale < 1e-8] = 1.0
                self.indices[modality] = _Index(
                    clips=np.array(clips), features=(x - mean) / scale, mean=mean, scale=scale
                )

    def nearest(self, speaker: SpeakerInput) -> int:
        """Index of the nearest training clip; the first of equals.

        Raises:
            ValueError: no training clip has a modality of this speaker.
            LayoutError: motion of another layout than that of the training speakers.
        """
        features = self._features(speaker)
        for modality, index in self.indices.items():
            if modality in features:
                x = (features[modality] - index.mean) / index.scale
                distances = np.sum((index.features - x) ** 2, axis=1)
                return int(index.clips[np.argmin(distances)])
        raise ValueError(
            f"the speaker has {sorted(features) or 'nothing'}, the training clips "
            f"{sorted(self.indices)}; nothing to compare them by"
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
    """Mean and standard deviation of each channel in each segment, (2 * SEGMENTS * dim,).

    Raises:
        ValueError: fewer frames than segments.
    """
    parts = np.array_split(motion.values.astype(np.float64), SEGMENTS)
    if len(parts[-1]) == 0:
        raise ValueError(f"a motion of {len(motion)} frames is too short for {SEGMENTS} segments")
    return np.concatenate([moment for part in parts for moment in (part.mean(0), part.std(0))])


def audio_features(audio: np.ndarray) -> np.ndarray:
    """Log energy in stretches of equal length, (4 * SEGMENTS,).

    Raises:
        ValueError: fewer samples than stretches.
    """
    parts = np.array_split(np.asarray(audio, np.float64), 4 * SEGMENTS)
    if len(parts[-1]) == 0:
        raise ValueError(f"audio of {len(audio)} samples is too short for {4 * SEGMENTS} stretches")
    return np.log(np.array([np.mean(part**2) for part in parts]) + 1e-8)


def text_features(text: str, vocabulary: dict[str, int]) -> np.ndarray:
    """Counts of known words, (vocabulary,), square-rooted so that repetition counts for less."""
    counts = np.zeros(len(vocabulary))
    for word in words(text):
        if word in vocabulary:
            counts[vocabulary[word]] += 1
    return np.sqrt(counts)


def words(text: str) -> list[str]:
    """Lower-case words, apostrophes kept."""
    return re.findall(r"[\w']+", text.lower())
