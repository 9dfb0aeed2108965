"""Baselines that every listener should beat: Random, Nearest Neighbour, Mirror (Ng et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rapport.policies.motion import Layout, LayoutError, Motion

# A clip is described by that many stretches in a row, so that order in time counts.
SEGMENTS = 8
MODALITIES = ("motion", "audio", "text")  # by the first of which speakers are compared


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
    lengths = [len(motion) for motion in train]
    return train[draw_listener(lengths, frames, rng)].window(0, frames)


def draw_listener(lengths: Sequence[int], frames: int, rng: np.random.Generator) -> int:
    """Which one `random_listener` takes, by the frames that each has.

    Raises:
        ValueError: none is long enough.
    """
    long_enough = np.flatnonzero(np.asarray(lengths) >= frames)
    if not len(long_enough):
        raise ValueError(
            f"no training listener has {frames} frames, the longest of {len(lengths)} is shorter"
        )
    return int(long_enough[rng.integers(len(long_enough))])


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
        speakers: of the training clips; of each only features are kept.
        listeners: of the same clips; one is asked for when it is the nearest.

    Raises:
        ValueError: unlike numbers, or no clip.
        LayoutError: speakers of unlike layouts.
    """

    def __init__(self, speakers: Iterable[SpeakerInput], listeners: Sequence[Motion]) -> None:
        self.listeners = listeners
        self.layout: Layout | None = None
        features: dict[str, dict[int, np.ndarray]] = {"motion": {}, "audio": {}}
        self._texts: dict[int, str] = {}
        count = 0
        for count, speaker in enumerate(speakers, 1):
            if speaker.motion is not None:
                self._require_layout(speaker.motion.layout)
                features["motion"][count - 1] = motion_features(speaker.motion)
            if speaker.audio is not None:
                features["audio"][count - 1] = audio_features(speaker.audio)
            if speaker.text is not None:
                self._texts[count - 1] = speaker.text
        if not count == len(listeners) > 0:
            raise ValueError(
                f"{count} speakers for {len(listeners)} listeners; one each, and at least one"
            )
        known_words = sorted({word for text in self._texts.values() for word in words(text)})
        self.vocabulary = {word: column for column, word in enumerate(known_words)}
        self._indices = {name: _index(of_clips) for name, of_clips in features.items() if of_clips}

    def _require_layout(self, layout: Layout) -> None:
        if self.layout is not None and layout != self.layout:
            raise LayoutError(f"training speakers of unlike layouts: {self.layout}; {layout}")
        self.layout = layout

    @cached_property
    def _index_of_texts(self) -> _Index:
        """Made when a speaker has nothing else: a column for every word takes room."""
        return _index(
            {clip: text_features(text, self.vocabulary) for clip, text in self._texts.items()}
        )

    def _index(self, modality: str) -> _Index | None:
        if modality == "text":
            return self._index_of_texts if self._texts else None
        return self._indices.get(modality)

    def nearest(self, speaker: SpeakerInput) -> int:
        """Index of the nearest training clip; the first of equals.

        Raises:
            ValueError: no training clip has a modality of this speaker.
            LayoutError: motion of another layout than that of the training speakers.
        """
        features = self._features(speaker)
        for modality in MODALITIES:
            if modality in features and (index := self._index(modality)) is not None:
                x = (features[modality] - index.mean) / index.scale
                distances = np.sum((index.features - x) ** 2, axis=1)
                return int(index.clips[np.argmin(distances)])
        known = sorted(name for name in MODALITIES if self._index(name) is not None)
        raise ValueError(
            f"the speaker has {sorted(features) or 'nothing'}, the training clips {known}; "
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


def _index(features: Mapping[int, np.ndarray]) -> _Index:
    """Of the features by number of the clip."""
    x = np.stack(list(features.values()))
    mean = x.mean(axis=0)
    scale = x.std(axis=0)
    scale[scale < 1e-8] = 1.0
    clips = np.array(list(features))
    return _Index(clips, features=(x - mean) / scale, mean=mean, scale=scale)


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
