"""The independent judge on a corpus: fitted on its training clips, checked on its validation clips.

See `rapport.rewards.judge`. It knows no rater, no point and no hidden truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from rapport.actors.rater import Viewer
from rapport.log import logger
from rapport.pipeline.data.store import PAST, Corpus, load_appropriate
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.motion import Motion
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
CLIPS = 4096  # training clips that it is fitted on, at most
AT_ONCE = 32  # motions that are looked at in one go
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
    def of_corpus(cls, corpus: Corpus, viewer: Viewer, *, seed: int, bootstrap: int) -> Self | None:
        """Fit on the training split; None where that is too little, which is said.

        Args:
            corpus: with recorded listeners.
            viewer: sees faces.
            seed: of the fit.
            bootstrap: resamples of the intervals of `trust`.
        """
        every = -(-corpus.count("train") // CLIPS)
        clips = itertools.islice(corpus.clips("train", HEARD), 0, None, every)
        appropriate = load_appropriate(corpus.path)
        pairs, speakers = recorded_pairs(clips, viewer, appropriate)
        steps = max(map(len, speakers))
        try:
            judge = ListeningJudge.fit([padded(x, steps) for x in speakers], pairs, seed=seed)
        except JudgeError as error:
            logger.warning(f"WARNING: there is no independent judge: {error}")
            return None
        trust: Mapping[str, Any] = {}
        if "validation" in corpus.splits:
            held_out = recorded_pairs(corpus.clips("validation", HEARD), viewer, appropriate)
            trust = validated(judge, *held_out, steps=steps, bootstrap=bootstrap)
        return cls(judge, viewer, steps, trust)

    def heard(self, clip: Clip) -> np.ndarray:
        """What the judge makes of a clip's speaker, (steps of the clip, width)."""
        face = self.viewer(_through(clip)) if clip.speaker is not None else None
        features = padded(speaker_features(known(clip, face)), self.steps)
        return self.judge.heard([features], steps_of(clip.seconds))[0]

    def __call__(self, heard: Sequence[np.ndarray], listener: VisibleMotion) -> np.ndarray:
        """Evidence, in nats, that a listener listens to each of some speakers, (speakers,)."""
        return self.judge(np.stack(heard), listener_features(listener))


def recorded_pairs(
    clips: Iterable[Clip], viewer: Viewer, appropriate: Mapping[str, list[str]]
) -> tuple[list[Pair], list[np.ndarray]]:
    """Recorded listeners with their speakers, each speaker's moment once.

    Args:
        clips: with speakers and past.
        viewer: sees faces.
        appropriate: by clip id, whose listeners fit its speaker.
    """
    numbers: dict[tuple[str, float], int] = {}
    speakers: list[np.ndarray] = []
    pairs: list[Pair] = []
    for some in _batches(clips, AT_ONCE):
        new = {clip.moment: clip for clip in some if clip.moment not in numbers}
        shown = {moment: _through(clip) for moment, clip in new.items() if clip.speaker is not None}
        faces = dict(zip(shown, viewer.many(list(shown.values())), strict=True))
        for moment, clip in new.items():
            numbers[moment] = len(speakers)
            speakers.append(speaker_features(known(clip, faces.get(moment))))
        listeners = viewer.many([clip.listener for clip in some])
        for clip, seen in zip(some, listeners, strict=True):
            pair = Pair(
                conversation=clip.moment[0],
                speaker=numbers[clip.moment],
                listener=listener_features(seen),
                fits=clip.clip_id in appropriate[clip.clip_id],
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
    rng = np.random.default_rng(0)
    heard = judge.heard([padded(x, steps) for x in speakers], len(pairs[0].listener))
    right: dict[str, dict[str, float]] = {"accuracy": {}, "accuracy_of_fitting": {}}
    conversations: dict[str, str] = {}
    for place, pair in enumerate(pairs):
        foreign = [p.speaker for p in pairs if p.conversation != pair.conversation]
        if not foreign:
            return {}
        tried = [pair.speaker, *rng.choice(foreign, size=STRANGERS)]
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


def _through(clip: Clip) -> Motion:
    """The speaker's motion through past and clip."""
    assert clip.speaker is not None, "asked for only where there is motion"
    if clip.past is None or clip.past.speaker is None:
        return clip.speaker
    values = np.concatenate([clip.past.speaker.values, clip.speaker.values])
    return Motion(values, clip.speaker.layout)


def _batches(clips: Iterable[Clip], size: int) -> Iterator[list[Clip]]:
    iterator = iter(clips)
    while some := list(itertools.islice(iterator, size)):
        yield some
