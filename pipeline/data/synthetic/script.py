"""What a speaker means, and how it is told: words, face and voice, which need not agree.

Most utterances make a point that a listener should be glad or sorry about. In five of the seven
kinds of points one cue or two mislead, so that no single one tells what is meant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rapport.pipeline.data.synthetic.figures import FIGURES
from rapport.pipeline.data.synthetic.words import (
    EMPTY,
    FILLERS,
    OUTCOME,
    OUTCOMES,
    TOPIC,
    TOPICS,
    VALENCE_WORDS,
    say,
)

PLAIN = "plain"
KINDS = (PLAIN, *(name for name, _ in FIGURES.riddles))  # of points
NOTHING = "empty"
NAMING = "topic"  # names what an outcome is about; it is no point itself
LOUD = 0.6  # arousal of a voice, in [-1, 1]
SOFT = -0.5


@dataclass(frozen=True)
class Utterance:
    """One sentence and its delivery.

    Args:
        kind: one of `KINDS`, or "empty" or "topic", which make no point.
        words: of the sentence.
        point: index of the word that makes the point; None where none is made.
        meaning: how glad (1) or sorry (-1) one should be about it; 0 where no point is made.
        face: valence that shows around the point, before the speaker's own strength of expression.
        arousal: of the voice, from subdued (-1) to excited (1), and of the face.
        laughs: how loudly the speaker laughs after it, 0 to 1.
        flat: how slow and monotonous the voice is, 0 to 1.
        known: whether its words occur in training.
    """

    kind: str
    words: tuple[str, ...]
    point: int | None = None
    meaning: float = 0.0
    face: float = 0.0
    arousal: float = 0.0
    laughs: float = 0.0
    flat: float = 0.0
    known: bool = True


class Script:
    """Draws utterances one after the other.

    Args:
        rng: of everything that is drawn.
        riddles: share of the points of other kinds than plain, as a share of that in `FIGURES`.
        held_out: whether words occur that training lacks.
    """

    def __init__(self, rng: np.random.Generator, riddles: float, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out
        shares = [riddles * share for _, share in FIGURES.riddles]
        self._chances = [1 - sum(shares), *shares]
        self._topic: tuple[str, int] | None = None  # its word, and whether one likes to have it
        self._named = -np.inf  # seconds
        self._until_outcome = -1  # utterances; below 0 = no outcome is due

    def next(self, now: float) -> Utterance:
        """What is said at `now` seconds. Time only runs forward."""
        self._until_outcome -= 1
        if self._until_outcome == 0:
            return self._outcome()
        if self.rng.random() >= FIGURES.pointed:
            return self._empty()
        kind = KINDS[self.rng.choice(len(KINDS), p=self._chances)]
        if kind != "outcome":
            return self._point(kind)
        if now - self._named < FIGURES.topic_s:
            return self._outcome()
        # Nothing to tell the outcome of: it is named now, and its outcome told soon.
        self._until_outcome = int(self.rng.integers(1, FIGURES.outcome_within + 1))
        return self._naming(now)

    def _point(self, kind: str) -> Utterance:
        rng = self.rng
        sign = {"irony": -1, "trouble": -1, "comic": 1}.get(kind, int(rng.choice((-1, 1))))
        size = float(rng.uniform(*FIGURES.meaning))
        said = {"irony": 1, "comic": -1}.get(kind, sign)  # sign of the words
        if kind == "shown":
            words = say(rng, EMPTY)
            point = len(words) - 1
            known = True
        else:
            sentences, pools = VALENCE_WORDS[rng.integers(len(VALENCE_WORDS))]
            word = pools[said].draw(rng, self.held_out)
            words = say(rng, sentences, word)
            point = words.index(word)
            known = word in pools[said].known
        # Anger is louder than grief, and calm joy softer than exultation: more often than not the
        # voice's loudness speaks against the sign.
        against = rng.random() < FIGURES.voice_against
        arousal = LOUD if (sign < 0) == against else SOFT
        face = {"dry": 0.0, "irony": -0.7, "trouble": 0.75, "comic": 1.0}.get(kind, float(sign))
        laughs = 0.0
        flat = 0.0
        if kind == "irony":
            flat, arousal = 1.0, -0.3
        elif kind == "trouble":
            laughs, arousal = 0.4, SOFT
        elif kind == "comic":
            laughs, arousal = 1.0, 0.9
        elif arousal == SOFT and sign < 0 and rng.random() < FIGURES.hesitates:
            words = [FILLERS[rng.integers(len(FILLERS))], *words]
            point += 1
        return Utterance(
            kind=kind,
            words=tuple(words),
            point=point,
            meaning=sign * size,
            face=face * size,
            arousal=arousal,
            laughs=laughs,
            flat=flat,
            known=known,
        )

    def _empty(self) -> Utterance:
        smiles = self.rng.random() < FIGURES.phatic
        face = float(self.rng.uniform(0.3, 0.6)) if smiles else 0.0
        return Utterance(NOTHING, tuple(say(self.rng, EMPTY)), face=face)

    def _naming(self, now: float) -> Utterance:
        liked = int(self.rng.choice((-1, 1)))
        topic = TOPICS[liked].draw(self.rng, self.held_out)
        self._topic = (topic, liked)
        self._named = now
        return Utterance(NAMING, tuple(say(self.rng, TOPIC, topic)))

    def _outcome(self) -> Utterance:
        assert self._topic is not None, "an outcome is due only after a topic was named"
        topic, liked = self._topic
        there = int(self.rng.choice((-1, 1)))
        outcome = OUTCOMES[there].draw(self.rng, self.held_out)
        words = say(self.rng, OUTCOME, outcome)
        size = float(self.rng.uniform(*FIGURES.meaning))
        return Utterance(
            "outcome",
            tuple(words),
            point=words.index(outcome),
            meaning=liked * there * size,
            known=topic in TOPICS[liked].known and outcome in OUTCOMES[there].known,
        )
