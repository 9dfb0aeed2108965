"""Charts as inline SVG: curves over steps, means with intervals. Colours come from the page's style
sheet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rapport.pipeline.report.html import Html, element

Point = tuple[float, float]
WIDTH, HEIGHT = 320, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 36  # margins of the plot, in units of the view box
NAMES, ROW = 140, 26  # interval charts: width of the names, height of a row
MOST_POINTS = 120  # of a line


@dataclass(frozen=True)
class Line:
    """A named curve; points from left to right, finite."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Scale:
    """Data values `low` to `high` on drawing units `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.stop - self.start), 2)


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Round numbers, at most `most` steps of 1, 2 or 5 times a power of ten, the first <= low and
    the last >= high.
    """
    if high <= low:
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    steps = (power * factor for factor in (1, 2, 5, 10, 20))
    step = next(s for s in steps if math.ceil(high / s) - math.floor(low / s) <= most)
    step = max(step, 1.0) if whole else step
    return [round(k * step, 12) for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[list[Point], int]:
    """Means of runs of neighbours, so that at most `most` points are left; and how long the runs
    are.
    """
    size = max(1, math.ceil(len(points) / most))
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        (sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs
    ], size


def line_chart(title: str, x_label: str, lines: Sequence[Line]) -> Html | None:
    """A figure with up to three curves over whole numbers (steps, rounds); None when no line has
    two points.
    """
    lines = [line for line in lines if len(line.points) > 1]
    if not lines:
        return None
    drawn = [thin(line.points) for line in lines]
    xs = [x for line in lines for x, _ in line.points]
    x_axis = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    x_ticks = [t for t in ticks(min(xs), max(xs), 4, whole=True) if min(xs) <= t <= max(xs)]
    ys = [y for points, _ in drawn for _, y in points]
    y_ticks = ticks(min(ys), max(ys))
    y_axis = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    marks = [_polyline(points, x_axis, y_axis, number) for number, (points, _) in enumerate(drawn)]
    picture = _svg(
        WIDTH,
        HEIGHT,
        f"{title}: {'; '.join(map(_in_words, lines))}",
        *(
            part
            for t in y_ticks
            for part in (
                element(
                    "line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y_axis(t), y2=y_axis(t)
                ),
                element("text", f"{t:.6g}", x=LEFT - 6, y=y_axis(t) + 4, text_anchor="end"),
            )
        ),
        *(
            element("text", f"{t:.6g}", x=x_axis(t), y=HEIGHT - BOTTOM + 16, text_anchor="middle")
            for t in x_ticks
        ),
        element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle"),
        *marks,
    )
    keys = (
        [element("span", line.name, class_=f"key line{n}") for n, line in enumerate(lines)]
        if len(lines) > 1
        else []
    )
    size = max(size for _, size in drawn)
    note = element("small", f"each point is the mean of {size} {x_label}s") if size > 1 else None
    return element(
        "figure", element("figcaption", element("b", title), *keys, note), picture, class_="chart"
    )


def interval_chart(title: str, rows: Sequence[tuple[str, float, float, float]]) -> Html:
    """A figure with one dot and bar per `(name, mean, low, high)`."""
    width, bottom = 460, TOP + ROW * len(rows)
    marks = ticks(min(low for *_, low, _ in rows), max(high for *_, high in rows))
    axis = Scale(marks[0], marks[-1], NAMES, width - 20)
    said = "; ".join(
        f"{name} {mean:.2f}, from {low:.2f} to {high:.2f}" for name, mean, low, high in rows
    )
    picture = _svg(
        width,
        bottom + 24,
        f"{title}: {said}",
        *(
            part
            for t in marks
            for part in (
                element("line", class_="grid", x1=axis(t), x2=axis(t), y1=TOP, y2=bottom),
                element("text", f"{t:.6g}", x=axis(t), y=bottom + 16, text_anchor="middle"),
            )
        ),
        *(
            part
            for number, (name, mean, low, high) in enumerate(rows)
            for part in _interval(
                name, axis(mean), axis(low), axis(high), TOP + ROW * (number + 0.5)
            )
        ),
    )
    return element(
        "figure", element("figcaption", element("b", title)), picture, class_="chart wide"
    )


def _svg(width: float, height: float, said: str, *children: str) -> Html:
    return element("svg", *children, viewBox=f"0 0 {width} {height}", role="img", aria_label=said)


def _polyline(points: Sequence[Point], x_axis: Scale, y_axis: Scale, number: int) -> Html:
    corners = " ".join(f"{x_axis(x)},{y_axis(y)}" for x, y in points)
    return element("polyline", points=corners, class_=f"line{number}")


def _interval(name: str, mean: float, low: float, high: float, y: float) -> tuple[Html, ...]:
    return (
        element("text", name, x=NAMES - 10, y=y + 4, text_anchor="end"),
        element("line", class_="interval", x1=low, x2=high, y1=y, y2=y),
        element("circle", cx=mean, cy=y, r=5),
    )


def _in_words(line: Line) -> str:
    """What the curve does, for those who do not see it."""
    (x0, first), (x1, last), values = line.points[0], line.points[-1], [y for _, y in line.points]
    return (
        f"{line.name} from {first:.4g} at {x0:g} to {last:.4g} at {x1:g}, "
        f"lowest {min(values):.4g}, highest {max(values):.4g}"
    )
