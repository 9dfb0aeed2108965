"""SVG by hand: pictures that say in words what they show, scales, round ticks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

NAMESPACE = "http://www.w3.org/2000/svg"
Point = tuple[float, float]


class Picture:
    """An SVG picture. What is added later lies above what was added before.

    Attributes are given as keywords: `class_` is written class and `text_anchor` text-anchor. Those
    that are None are left out.

    Args:
        description: what a screen reader says in place of the picture.
        style: a style sheet, for a picture that is a file of its own.
    """

    def __init__(self, width: float, height: float, description: str, style: str = ""):
        attributes = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria_label": description}
        if style:
            attributes |= {"xmlns": NAMESPACE, "width": str(width), "height": str(height)}
        self._svg = ElementTree.Element("svg", _written(attributes))
        if style:
            self.add("style", style)

    def add(self, name: str, text: str | None = None, **attributes: object) -> ElementTree.Element:
        """An element with this text inside."""
        element = ElementTree.SubElement(self._svg, name, _written(attributes))
        element.text = text
        return element

    def line(self, kind: str, start: Point, stop: Point) -> None:
        """A straight line; `kind` is its class in the style sheet."""
        (x1, y1), (x2, y2) = start, stop
        self.add("line", class_=kind, x1=x1, x2=x2, y1=y1, y2=y2)

    def polyline(self, kind: str, points: Sequence[Point], stroke: str | None = None) -> None:
        """A line with corners."""
        corners = " ".join(f"{x},{y}" for x, y in points)
        self.add("polyline", points=corners, class_=kind, stroke=stroke)

    def circle(self, kind: str, centre: Point, radius: float, title: str | None = None) -> None:
        """A dot; `title` is shown when the mouse rests on it."""
        circle = self.add("circle", class_=kind, cx=centre[0], cy=centre[1], r=radius)
        if title is not None:
            ElementTree.SubElement(circle, "title").text = title

    def text(self, text: str, x: float, y: float, **attributes: object) -> None:
        """Text to the right of `x`, unless `text_anchor` is middle or end; `y` is its base line."""
        self.add("text", text, x=x, y=y, **attributes)

    def markup(self) -> Markup:
        """The picture as SVG, escaped."""
        return Markup(ElementTree.tostring(self._svg, encoding="unicode"))


@dataclass(frozen=True)
class Scale:
    """Data values `low` to `high` on drawing units `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Where a value lies, to a hundredth of a unit."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.stop - self.start), 2)


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Round numbers of which the first is <= low and the last >= high.

    Args:
        low: smallest value that the ticks must hold.
        high: largest value.
        most: at most so many steps of 1, 2 or 5 times a power of ten.
        whole: steps are whole numbers.
    """
    if high <= low:
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    steps = (power * factor for factor in (1, 2, 5, 10, 20))
    step = next(s for s in steps if math.ceil(high / s) - math.floor(low / s) <= most)
    step = max(step, 1.0) if whole else step
    return [round(k * step, 12) for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _written(attributes: Mapping[str, object]) -> dict[str, str]:
    return {
        name.rstrip("_").replace("_", "-"): str(value)
        for name, value in attributes.items()
        if value is not None
    }
