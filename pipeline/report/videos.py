"""Which videos a report shows, and what is known of each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from rapport.files import strict_json, write_atomic

HELD_OUT, WORSE, PAIR = "held-out", "worse", "pair"
LIST = "shown.json"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shown:
    """A video of the report.

    Args:
        kind: `HELD_OUT`, `WORSE` (rated lower after alignment) or `PAIR` (chosen against rejected).
        file: relative to the folder of videos.
        words: what the speaker says; None where the corpus has no transcript.
        panels: captions from left to right.
        scores: panel -> preference score (Eq. 10, 0 to 1); of a pair only.
    """

    kind: str
    file: str
    clip_id: str
    words: str | None
    panels: list[str]
    scores: dict[str, float] = field(default_factory=dict)


def write_shown(folder: Path, videos: Iterable[Shown]) -> None:
    write_atomic(folder / LIST, strict_json([asdict(video) for video in videos], indent=2))


def read_shown(folder: Path) -> list[Shown]:
    """What `write_shown` wrote; nothing where it never did."""
    file = folder / LIST
    return [Shown(**row) for row in json.loads(file.read_text())] if file.is_file() else []


def fallen(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Prompts whose value fell, the largest fall first; those that lack one value are left out."""
    change = {prompt: after[prompt] - before[prompt] for prompt in before.keys() & after.keys()}
    return sorted(
        (prompt for prompt, by in change.items() if by < 0),
        key=lambda prompt: (change[prompt], prompt),
    )


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items at even distances, the first and the last among them (or all there are)."""
    if count >= len(items):
        return list(items)
    return [items[round(k * (len(items) - 1) / max(1, count - 1))] for k in range(count)]
