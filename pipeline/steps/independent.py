"""The independent judge on a corpus: fitted on its training clips, checked on its validation clips.

See `rapport.rewards.judge`. It knows no rater, no point and no hidden truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rapport.actors.rater import Viewer
from rapport.log import logger
from rapport.pipeline.data.store import PAST, Corpus, load_appropriate
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.head.settings import HeadConfig
from rapport.rewards.judge import (
    JudgeError,
    ListeningJudge,
    Pair,
    Speaker,
    listener_features,
    speaker_features,
    steps_of,
)
from rapport.rewards.metrics.statistics import mean_interval
from rapport.rewards.ratings.visible import VisibleMotion

HEARD = ("speaker", "speaker_audio", "words", PAST)  # what it knows of a clip
MOMENTS = 512  # of a split that it is fitted or tried on, at most
AT_ONCE = 32  # motions that are looked at in one go
Item = TypeVar("Item")
STRANGERS = 4  # speakers of other conversations that each validation listener is tried with


@dataclass(frozen=True, eq=False)
class IndependentJudge:
    """A fitted judge, and how far it can be trusted.

    Args:
        judge: fitted.
        viewer: sees the speakers' faces.
        steps: of a speaker's features.
        trust: what `validated` says.
    """

    judge: ListeningJudge
    viewer: Viewer
    steps: int
    trust: Mapping[str, Any]

    @classmethod
    def of_corpus(
        cls, corpus: Corpus, head: HeadConfig, *, seed: int, bootstrap: int
    ) -> IndependentJudge | None:
        """Fit on the training split; None where that is too little, which is said.

        A process fits it once: rounds and curves of a run are judged by the same.

        Args:
            corpus: with recorded listeners.
            head: on which they are looked at.
            seed: of the fit.
            bootstrap: resamples of the intervals of `trust`.
        """
        return _fitted(corpus.path, corpus.digest, head, seed=seed, bootstrap=bootstrap)

    def heard(self, clip: Clip) -> np.ndarray:
        """What the judge makes of a clip's speaker, (steps of the clip, width)."""
        motion = clip.speaker_with_past
        face = None if motion is None else self.viewer(motion)
        features = padded(speaker_features(known(clip, face)), self.steps)
        return self.judge.heard([features], steps_of(clip.seconds))[0]

    def __call__(self, heard: Sequence[np.ndarray], listener: VisibleMotion) -> np.ndarray:
        """Evidence, in nats, that a listener listens to each of some speakers, (speakers,)."""
        return self.judge(np.stack(heard), listener_features(listener))


@lru_cache(maxsize=2)
def _fitted(
    path: Path, digest: str, head: HeadConfig, *, seed: int, bootstrap: int
) -> IndependentJudge | None:
    corpus = Corpus(path)
    viewer = Viewer(head)
    pairs, speakers = recorded_pairs(corpus, "train", viewer, only_fitting=True)
    steps = max(map(len, speakers))
    try:
        judge = ListeningJudge.fit([padded(x, steps) for x in speakers], pairs, seed=seed)
    except JudgeError as error:
        logger.warning(f"WARNING: there is no independent judge: {error}")
        return None
    trust: Mapping[str, Any] = {}
    if "validation" in corpus.splits:
        held_out = recorded_pairs(corpus, "validation", viewer, only_fitting=False)
        trust = validated(judge, *held_out, steps=steps, bootstrap=bootstrap)
    return IndependentJudge(judge, viewer, steps, trust)


def recorded_pairs(
    corpus: Corpus, split: str, viewer: Viewer, *, only_fitting: bool
) -> tuple[list[Pair], list[np.ndarray]]:
    """Recorded listeners with their speakers, and features of each speaker's moment.

    Args:
        corpus: with speakers, who are absent where it lacks them.
        split: of it; of a larger one every n-th moment is taken.
        viewer: sees faces.
        only_fitting: leave out listeners who are not known to fit.
    """
    appropriate = load_appropriate(corpus.path)
    moments = corpus.moments(split)
    conversations = corpus.conversations(split)
    first = corpus.first_listeners(split)
    every = -(-len(first) // MOMENTS)
    taken = dict(itertools.islice(first.items(), 0, None, every))
    numbers = {moment: number for number, moment in enumerate(taken.values())}
    speakers: list[np.ndarray] = []
    for some in _batches((corpus.clip(clip_id, HEARD) for clip_id in taken), AT_ONCE):
        motions = [clip.speaker_with_past for clip in some]
        faces = iter(viewer.many([motion for motion in motions if motion is not None]))
        for clip, motion in zip(some, motions, strict=True):
            face = None if motion is None else next(faces)
            speakers.append(speaker_features(known(clip, face)))
    pairs: list[Pair] = []
    wanted = (
        (clip_id, motion)
        for clip_id, motion in corpus.listeners(split)
        if moments[clip_id] in numbers and (clip_id in appropriate[clip_id] or not only_fitting)
    )
    for listeners in _batches(wanted, AT_ONCE):
        seen = viewer.many([motion for _, motion in listeners])
        for (clip_id, _), face in zip(listeners, seen, strict=True):
            pair = Pair(
                conversation=conversations[clip_id],
                speaker=numbers[moments[clip_id]],
                listener=listener_features(face),
                fits=clip_id in appropriate[clip_id],
            )
            pairs.append(pair)
    return pairs, speakers


def validated(
    judge: ListeningJudge,
    pairs: list[Pair],
    speakers: list[np.ndarray],
    *,
    steps: int,
    bootstrap: int,
) -> dict[str, Any]:
    """How often it tells a recorded listener's own speaker from a stranger, with intervals.

    Of all listeners, and of those known to fit; over conversations, where there are two or more.
    """
    heard = judge.heard([padded(x, steps) for x in speakers], len(pairs[0].listener))
    rng = np.random.default_rng(0)
    of = np.array([pair.conversation for pair in pairs])
    speaker = np.array([pair.speaker for pair in pairs])
    foreign = {conversation: speaker[of != conversation] for conversation in np.unique(of)}
    if len(foreign) < 2:
        return {}
    right: dict[str, dict[str, float]] = {"accuracy": {}, "accuracy_of_fitting": {}}
    conversations: dict[str, str] = {}
    for place, pair in enumerate(pairs):
        tried = [pair.speaker, *rng.choice(foreign[pair.conversation], size=STRANGERS)]
        own, *others = judge(heard[tried], pair.listener)
        key = str(place)
        conversations[key] = pair.conversation
        value = float(np.mean([own > other for other in others]))
        right["accuracy"][key] = value
        if pair.fits:
            right["accuracy_of_fitting"][key] = value
    return {
        name: vars(mean_interval(values, resamples=bootstrap, groups=conversations))
        for name, values in right.items()
        if len({conversations[key] for key in values}) > 1
    }


def known(clip: Clip, face: VisibleMotion | None) -> Speaker:
    """What the judge has of a clip's speaker, from the start of its past on.

    Args:
        clip: with its past.
        face: the speaker's, through past and clip.
    """
    before = 0.0 if clip.past is None else len(clip.past.listener) / clip.listener.layout.fps
    words = None
    if clip.words is not None:
        earlier = () if clip.past is None else clip.past.words or ()
        words = tuple((word.text, word.end + before) for word in (*earlier, *clip.words))
    audio = clip.speaker_audio
    if audio is not None and clip.past is not None:
        earlier_audio = clip.past.speaker_audio
        if earlier_audio is None:
            earlier_audio = np.zeros(round(before * AUDIO_RATE), np.float32)
        audio = np.concatenate([earlier_audio, audio])
    return Speaker(before + clip.seconds, face, words=words, audio=audio)


def padded(features: np.ndarray, steps: int) -> np.ndarray:
    """Features with steps of nothing before them, where a clip's past is shorter than others'."""
    missing = np.zeros((max(steps - len(features), 0), features.shape[1]))
    return np.concatenate([missing, features])[-steps:]


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some
