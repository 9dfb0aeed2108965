"""When engines, renderers, raters and learners work, and for how long none of them does.

Workers note their own time, by the clock of their node. Spans are kept in this process, which runs
one recipe.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

START = "start"  # of clusters, engines and learners: paid once, however long the run


class Span(NamedTuple):
    """Work of one kind, in seconds since the epoch."""

    kind: str
    began: float
    ended: float


_spans: list[Span] = []


def reset() -> None:
    """Forget all spans; a recipe starts with this."""
    _spans.clear()


def note(kind: str, began: float, ended: float) -> None:
    """Keep a span that some worker or this process measured."""
    _spans.append(Span(kind, began, ended))


@contextmanager
def noted(kind: str) -> Iterator[None]:
    """Keep the time that the block takes as a span."""
    began = time.time()
    yield
    note(kind, began, time.time())


def covered(spans: Iterable[Span], began: float, ended: float) -> float:
    """Seconds of [began, ended] in which at least one span runs."""
    total = 0.0
    until = began
    for span in sorted(spans, key=lambda span: span.began):
        total += max(0.0, min(span.ended, ended) - max(span.began, until))
        until = max(until, min(span.ended, ended))
    return total


def shares(began: float, ended: float, spans: Iterable[Span] | None = None) -> dict[str, Any]:
    """Seconds of [began, ended] in which each kind works, and the share in which none does.

    `idle_share` is what orchestration costs: moving data, bookkeeping, waiting for one worker to
    end and another to begin. Time in which something starts and nothing works counts neither as
    work nor as idle.

    Args:
        began: seconds since the epoch; `ended` alike.
        ended: of the recipe.
        spans: None = those that were noted in this process.
    """
    spans = list(_spans if spans is None else spans)
    working = [span for span in spans if span.kind != START]
    worked = covered(working, began, ended)
    starting = covered(spans, began, ended) - worked
    wall = ended - began - starting
    seconds = {}
    for kind in sorted({span.kind for span in working}):
        of_kind = [span for span in working if span.kind == kind]
        seconds[f"{kind}_s"] = covered(of_kind, began, ended)
    return seconds | {
        "start_s": starting,
        "idle_s": wall - worked,
        "idle_share": (wall - worked) / wall if wall else 0.0,
    }


class Worker:
    """Base of the actors in a pool."""

    def timed(self, method: str, *arguments: Any) -> tuple[Any, float, float]:
        """The method's answer, and when it began and ended."""
        began = time.time()
        answer = getattr(self, method)(*arguments)
        return answer, began, time.time()
