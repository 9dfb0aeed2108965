"""Points: what a speaker means, and when it has been said."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """Something a speaker says that asks for an answer.

    Args:
        time: seconds from the start of the clip at which it has been made; negative = before it.
        meaning: how glad (1) or sorry (-1) a listener should be about it, in [-1, 1].
        kind: how it is told, see `docs/corpus.md`.
        known: whether its words occur in training.
    """

    time: float
    meaning: float
    kind: str
    known: bool = True
