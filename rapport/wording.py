"""Short forms of what messages name."""

from __future__ import annotations

from collections.abc import Sequence


def first_line(error: BaseException) -> str:
    """What an error says first; libraries go on for pages."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


def first_few(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and a sign where there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
