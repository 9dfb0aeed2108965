"""Charts of the page: curves over steps, means with intervals. Colours are the style sheet's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rapport.pipeline.report.svg import Picture, Point, Scale, ticks

WIDTH, HEIGHT = 320, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 36  # margins of the plot, in units of the view box
WIDE, NAMES, ROW = 460, 140, 26  # interval charts: width, width of the names, height of a row
MOST_POINTS = 120  # of a line


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Args:
        keys: names of the lines, where there are several.
        note: stands below the title.
        wide: the chart has a row of the page to itself.
    """

    title: str
    picture: Markup
    keys: Sequence[str] = ()
    note: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Line:
    """A named curve; points from left to right, finite."""

    name: str
    points: Sequence[Point]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[list[Point], int]:
    """At most `most` points, each the mean of a run of neighbours, and how long the runs are."""
    size = max(1, math.ceil(len(points) / most))
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]
    return means, size


def line_chart(title: str, x_label: str, lines: Sequence[Line]) -> Chart | None:
    """Up to three curves over whole numbers (steps, rounds); None when no line has two points."""
    lines = [line for line in lines if len(line.points) > 1]
    if not lines:
        return None
    thinned = [thin(line.points) for line in lines]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for points, _ in thinned for _, y in points]
    y_ticks = ticks(min(ys), max(ys))
    x_axis = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_axis = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)

    picture = Picture(WIDTH, HEIGHT, f"{title}: {'; '.join(map(_in_words, lines))}")
    for tick in y_ticks:
        y = y_axis(tick)
        picture.line("grid", (LEFT, y), (WIDTH - RIGHT, y))
        picture.text(f"{tick:.6g}", x=LEFT - 6, y=y + 4, text_anchor="end")
    for tick in ticks(min(xs), max(xs), 4, whole=True):
        if min(xs) <= tick <= max(xs):
            below = HEIGHT - BOTTOM + 16
            picture.text(f"{tick:.6g}", x=x_axis(tick), y=below, text_anchor="middle")
    picture.text(x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle")
    for number, (points, _) in enumerate(thinned):
        picture.polyline(f"line{number}", [(x_axis(x), y_axis(y)) for x, y in points])

    run = max(size for _, size in thinned)
    return Chart(
        title,
        picture.markup(),
        keys=[line.name for line in lines] if len(lines) > 1 else [],
        note=f"each point is the mean of {run} {x_label}s" if run > 1 else "",
    )


def interval_chart(title: str, rows: Sequence[tuple[str, float, float, float]]) -> Chart:
    """One dot and bar per `(name, mean, low, high)`."""
    marks = ticks(min(low for *_, low, _ in rows), max(high for *_, high in rows))
    axis = Scale(marks[0], marks[-1], NAMES, WIDE - 20)
    bottom = TOP + ROW * len(rows)
    in_words = [
        f"{name} {mean:.2f}, from {low:.2f} to {high:.2f}" for name, mean, low, high in rows
    ]

    picture = Picture(WIDE, bottom + 24, f"{title}: {'; '.join(in_words)}")
    for mark in marks:
        picture.line("grid", (axis(mark), TOP), (axis(mark), bottom))
        picture.text(f"{mark:.6g}", x=axis(mark), y=bottom + 16, text_anchor="middle")
    for number, (name, mean, low, high) in enumerate(rows):
        y = TOP + ROW * (number + 0.5)
        picture.text(name, x=NAMES - 10, y=y + 4, text_anchor="end")
        picture.line("interval", (axis(low), y), (axis(high), y))
        picture.add("circle", cx=axis(mean), cy=y, r=5)
    return Chart(title, picture.markup(), wide=True)


def _in_words(line: Line) -> str:
    """What the curve does, for those who do not see it."""
    (x0, first), (x1, last) = line.points[0], line.points[-1]
    values = [y for _, y in line.points]
    return (
        f"{line.name} from {first:.4g} at {x0:g} to {last:.4g} at {x1:g}, "
        f"lowest {min(values):.4g}, highest {max(values):.4g}"
    )
