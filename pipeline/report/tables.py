"""Tables of the page, and how their cells are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rapport.pipeline.report.summary import IntervalValues

PERCENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows; None is a dash that is read out as missing.

    Args:
        marked: the row of this name stands out.
        words: cells hold text that may break, not numbers.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    marked: str | None = None
    words: bool = False


def number(value: float | None, form: str = ".4f") -> str | None:
    """A number, to four decimals unless `form` says otherwise."""
    return None if value is None else format(value, form)


def interval(value: IntervalValues | None, digits: int = 2) -> str | None:
    """A mean and the bounds of its interval, with as many digits after the point."""
    if value is None:
        return None
    mean, low, high = (f"{value[name]:.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def percent(before: float | None, after: float | None) -> str | None:
    """The change from one value to another; None where one of them is missing or the first is 0."""
    if not before or after is None:
        return None
    return f"{100 * (after / before - 1):+.1f}{PERCENT}"
