"""Rules that listen by one or two cues, on the clips of a corpus: rows of every table.

See `rapport.rewards.metrics.rules`. What a corpus or a head cannot give is left out: mirrors need
the speaker's motion, rules of words a transcript, rules that show a valence a head with ARKit
shapes, the oracle a hidden truth.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np

from rapport.actors.rater import Viewer
from rapport.pipeline.data.columns import Truth
from rapport.pipeline.data.store import Corpus, Listeners
from rapport.pipeline.data.synthetic.words import LEXICON
from rapport.policies.clip import Clip
from rapport.policies.motion import Layout, Motion
from rapport.rewards.metrics.baselines import draw_listener
from rapport.rewards.metrics.rules import (
    LESS_SMILE,
    bad_if_either,
    late,
    motionless,
    two_constants,
    with_expression,
    words_and_mirror,
    words_timed,
)
from rapport.rewards.ratings.acting import Actor
from rapport.rewards.ratings.visible import displayed_valence

MEAN_FACE = "mean face"
AT_REST = "face at rest"
MIRROR_LATE = "mirror, late"
MIRROR_LESS_MEAN = "mirror less own mean"
WORDS = "words"
WORDS_AND_MIRROR = "words + mirror"
BAD_IF_EITHER = "bad if either is"
ORACLE = "oracle"
CONSTANTS = "two constants"  # follows the name of a policy
SHUFFLED = "shuffled"  # so does this
MEAN_OF = 2000  # training listeners that the mean face is of, at most


@dataclass(frozen=True, eq=False)
class Rules:
    """What rules answer to some clips.

    Args:
        clips: that are answered, with their speakers, words and past.
        layout: of the answers.
        heads: by clip id, a training listener drawn at random.
        mean: (dim,) the mean face of the training listeners.
        viewer: sees the speakers' faces.
        actor: shows a valence; None = the head has no ARKit shapes.
        truth: by clip id, what would have fitted; None = nobody knows.
    """

    clips: Mapping[str, Clip]
    layout: Layout
    heads: Mapping[str, Motion]
    mean: np.ndarray
    viewer: Viewer
    actor: Actor | None
    truth: Mapping[str, Truth] | None
    _valences: dict[str, np.ndarray | None] = field(default_factory=dict)

    @classmethod
    def of_corpus(
        cls,
        listeners: Listeners,
        clips: Mapping[str, Clip],
        viewer: Viewer,
        truth: Mapping[str, Truth] | None,
        *,
        seed: int,
    ) -> Self:
        """Rules for some clips of a corpus.

        Args:
            listeners: of its training clips, who lend their heads and their mean face, in the
                layout of the answers.
            clips: that are answered, with speakers, words and past.
            viewer: sees the speakers' faces.
            truth: what would have fitted, where somebody knows.
            seed: of the heads that are drawn.
        """
        layout = listeners.layout
        rng = np.random.default_rng([seed, 1])
        heads = {}
        for clip_id, clip in clips.items():
            frames = len(clip.listener)
            drawn = draw_listener(listeners.lengths, frames, rng)
            heads[clip_id] = listeners[drawn].window(0, frames)
        actor = None
        if viewer.asset.arkit and viewer.asset.topology == layout.topology:
            actor = Actor.of_head(viewer.asset, viewer.landmarks, layout)
        return cls(
            clips,
            layout,
            heads=heads,
            mean=mean_face(listeners.corpus, layout),
            viewer=viewer,
            actor=actor,
            truth=truth,
        )

    def answers(self) -> dict[str, dict[str, Motion]]:
        """Rule -> clip id -> its reaction; rules that no clip has the cues for are left out."""
        clips = self.clips.items()
        rules = {MEAN_FACE: {i: motionless(self.mean, like=self.heads[i]) for i, _ in clips}}
        if all(clip.rest is not None for clip in self.clips.values()):
            rules[AT_REST] = {i: self._at_rest(clip) for i, clip in clips}
        has_motion = all(clip.speaker is not None for clip in self.clips.values())
        if has_motion and "expr" in self.layout.names:
            rules[MIRROR_LATE] = {i: self._mirrored(clip, less_mean=False) for i, clip in clips}
            rules[MIRROR_LESS_MEAN] = {i: self._mirrored(clip, less_mean=True) for i, clip in clips}
        if self.actor is None:
            return rules
        has_words = all(clip.words is not None for clip in self.clips.values())
        sees_faces = has_motion and all(
            self._seen(clip) is not None for clip in self.clips.values()
        )
        if has_words:
            rules[WORDS] = self._shown(self._said)
        if has_words and sees_faces:
            rules[WORDS_AND_MIRROR] = self._shown(
                lambda clip: words_and_mirror(self._said(clip), self._face(clip))
            )
            rules[BAD_IF_EITHER] = self._shown(
                lambda clip: bad_if_either(self._said(clip), self._face(clip))
            )
        if self.truth is not None:
            truth = self.truth
            rules[ORACLE] = self._shown(lambda clip: truth[clip.clip_id].appropriate_affect[:, 0])
        return rules

    def two_constants(self, motion: Motion) -> Motion:
        """A policy's answer with less smile and less yaw, where the head has ARKit shapes."""
        assert self.actor is not None, "asked for only where there is one"
        return two_constants(motion.subset(self.layout), -self.actor(np.array([LESS_SMILE]))[0])

    def _shown(self, wanted: Callable[[Clip], np.ndarray]) -> dict[str, Motion]:
        assert self.actor is not None, "asked for only where there is one"
        return {
            clip_id: with_expression(self.heads[clip_id], self.mean, self.actor(wanted(clip)))
            for clip_id, clip in self.clips.items()
        }

    def _at_rest(self, clip: Clip) -> Motion:
        """The listener's own face, motionless, as a policy is told it."""
        assert clip.rest is not None, "asked for only where it is known"
        rest = clip.rest.subset(self.layout).values[0]
        return motionless(rest, like=self.heads[clip.clip_id])

    def _mirrored(self, clip: Clip, *, less_mean: bool) -> Motion:
        """The speaker's expression, late and smoothed, on the mean face."""
        expr = self._expr(clip)
        mean = self.mean.copy()
        if less_mean:
            expr = expr - self._own_mean[clip.moment[0]]
        else:
            mean[self.layout.columns("expr")] = 0
        mirrored = late(expr, self.layout.fps)[-len(clip.listener) :]
        return with_expression(self.heads[clip.clip_id], mean, mirrored)

    @cached_property
    def _own_mean(self) -> dict[str, np.ndarray]:
        """Mean expression of each speaker over all clips, (expr,)."""
        return _means_by_speaker((clip.moment[0], self._expr(clip)) for clip in self.clips.values())

    @cached_property
    def _own_valence(self) -> dict[str, np.ndarray]:
        """Mean valence of each speaker's face over all clips."""
        seen = ((clip.moment[0], self._seen(clip)) for clip in self.clips.values())
        return _means_by_speaker((who, valence) for who, valence in seen if valence is not None)

    def _said(self, clip: Clip) -> np.ndarray:
        words = clip.words or ()
        if clip.past is not None:
            words = (*(clip.past.words or ()), *words)
        spoken = [(word.text, word.start, word.end) for word in words]
        return words_timed(spoken, LEXICON, frames=len(clip.listener), fps=self.layout.fps)

    def _face(self, clip: Clip) -> np.ndarray:
        """Valence of the speaker's face less its own mean, late and smoothed."""
        seen = self._seen(clip)
        assert seen is not None, "asked for only where faces are seen"
        valence = seen - self._own_valence[clip.moment[0]]
        return late(valence, self.layout.fps)[-len(clip.listener) :]

    def _expr(self, clip: Clip) -> np.ndarray:
        """The speaker's expression through past and clip, (time, expr)."""
        motion = clip.speaker_with_past
        assert motion is not None, "asked for only where there is motion"
        return motion.subset(self.layout).group("expr")

    def _seen(self, clip: Clip) -> np.ndarray | None:
        """Valence of the speaker's face through past and clip; None where it is not seen."""
        if clip.clip_id not in self._valences:
            motion = clip.speaker_with_past
            assert motion is not None, "asked for only where there is motion"
            expression = self.viewer(motion, clip.speaker_shape).expression
            valence = None if expression is None else displayed_valence(expression)
            self._valences[clip.clip_id] = valence
        return self._valences[clip.clip_id]


def mean_face(corpus: Corpus, layout: Layout) -> np.ndarray:
    """Mean of the training listeners over all frames, (dim,); of a larger corpus every n-th."""
    step = -(-corpus.count("train") // MEAN_OF)
    some = itertools.islice(corpus.listeners("train"), 0, None, step)
    means = [motion.subset(layout).values.mean(axis=0) for _, motion in some]
    mean: np.ndarray = np.mean(means, axis=0)
    return mean


def _means_by_speaker(curves: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    by_speaker: dict[str, list[np.ndarray]] = {}
    for who, curve in curves:
        by_speaker.setdefault(who, []).append(curve)
    return {who: np.concatenate(parts).mean(axis=0) for who, parts in by_speaker.items()}
