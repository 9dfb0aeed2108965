"""HTML from plain data: whatever is not markup already is escaped, so a report cannot forget to."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

VOID = {"br", "link", "meta"}  # elements without a closing tag


class Html(str):
    """Text that is markup already."""


def element(name: str, *children: str | None, **attributes: object) -> Html:
    """`<name attributes>children</name>`; strings are escaped, `Html` is not, None is left out.

    `class_` is written class, `aria_label` aria-label; True is an attribute without value.
    """
    named = (
        (key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    written = (
        f" {key}" if value is True else f' {key}="{escape(str(value))}"' for key, value in named
    )
    opening = "".join([name, *written])
    return Html(f"<{opening}>") if name in VOID else Html(f"<{opening}>{join(*children)}</{name}>")


def join(*children: str | None) -> Html:
    return Html("".join(c if isinstance(c, Html) else escape(c) for c in children if c is not None))


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str | None]],
    marked: str = "",
    words: bool = False,
) -> Html:
    """A table whose first column names its rows; None is a dash that is read out as missing.

    Args:
        marked: the row of this name stands out.
        words: cells hold text that may break, not numbers.
    """
    head = element("tr", *(element("th", column, scope="col") for column in columns))
    body = [
        element(
            "tr",
            element("th", name or "", scope="row"),
            *map(_cell, cells),
            class_="marked" if name == marked else None,
        )
        for name, *cells in rows
    ]
    inner = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *body),
        class_="words" if words else None,
    )
    # Wide tables scroll on their own; a region that scrolls must be reachable by keyboard and have
    # a name.
    return element("div", inner, class_="scroll", role="region", tabindex=0, aria_label=caption)


def _cell(text: str | None) -> Html:
    return element(
        "td", element("span", "–", role="img", aria_label="missing") if text is None else text
    )


def paragraph(*children: str) -> Html:
    return element("p", *children)


def missing(text: str) -> Html:
    """What the report would show, had the run had it."""
    return element("p", element("strong", "Left out: "), text, class_="missing")


def folded(summary: str, *children: str) -> Html:
    return element("details", element("summary", summary), *children)
