"""When engines, renderers, raters and learners work, and for how long none of them does.

Workers note their own time, by the clock of their node. Spans are kept in this process, which runs
one recipe."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

START = "start"  # of clusters, engines and learners: paid once, however long the run


class Span(NamedTuple):
    kind: str
    began: float  # seconds since the epoch
    ended: float


_spans: list[Span] = []


def reset() -> None:
    _spans.clear()


def note(kind: str, began: float, ended: float) -> None:
    _spans.append(Span(kind, began, ended))


@contextmanager
def noted(kind: str) -> Iterator[None]:
    began = time.time()
    yield
    note(kind, began, time.time())


def covered(spans: Iterable[Span], began: float, ended: float) -> float:
    """Seconds of [began, ended] in which at least one span runs."""
    total, until = 0.0, began
    for span in sorted(spans, key=lambda s: s.began):
        total += max(0.0, min(span.ended, ended) - max(span.began, until))
        until = max(until, min(span.ended, ended))
    return total


def shares(began: float, ended: float, spans: Iterable[Span] | None = None) -> dict[str, Any]:
    """Seconds in which each kind works, and the share of wall time in which none does, start-up
    left out.

    `idle_share` is what orchestration costs: moving data, bookkeeping, waiting for one worker to
    end and another to begin. Time in which something starts and nothing works belongs to neither.
    """
    spans = list(_spans if spans is None else spans)
    working = [s for s in spans if s.kind != START]
    worked = covered(working, began, ended)
    starting = covered(spans, began, ended) - worked
    wall = ended - began - starting
    kinds = {
        f"{kind}_s": covered([s for s in working if s.kind == kind], began, ended)
        for kind in sorted({s.kind for s in working})
    }
    return kinds | {
        "start_s": starting,
        "idle_s": wall - worked,
        "idle_share": (wall - worked) / wall if wall else 0.0,
    }


class Worker:
    """Base of the actors in a pool: an answer comes with the time it took."""

    def timed(self, method: str, *arguments: Any) -> tuple[Any, float, float]:
        began = time.time()
        answer = getattr(self, method)(*arguments)
        return answer, began, time.time()
