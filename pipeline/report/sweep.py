"""Charts of a sweep as SVG files: response curves, parallel coordinates, Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rapport.pipeline.report.svg import Picture, Point, Scale, ticks

FINISHED = "finished"
# Positive values are drawn on a logarithmic axis if the largest is so many times the smallest.
LOG_SPAN = 20
NAMES = {
    "simulated_rating": "SIMULATED rating, 1 to 5",
    "kl": "KL to the policy that trials start from, nats",
    "fd": "FD",
    "likeness": "distance of amplitudes from people's, 1 = as people",
    "FDD": "FDD where a listener listens, lids apart",
    "MSE": "MSE where a listener listens",
}
STYLE = """
svg { background: #fdfdfc; font: 12px system-ui, sans-serif; }
text { fill: #44474c; } .title { font-weight: 600; font-size: 14px; fill: #1b1c1e; }
.grid { stroke: #d9d9d4; } .axis { stroke: #5a5d63; }
.bar { stroke: #0a66c2; stroke-width: 1.5; opacity: .6; }
.curve { fill: none; stroke: #0a66c2; stroke-width: 1.8; }
.front { fill: none; stroke: #2c7a4b; stroke-width: 1.5; }
.reference { stroke: #5a5d63; stroke-dasharray: 5 4; fill: none; }
.trial { fill: none; stroke-width: 1.6; } .dot { fill: #0a66c2; }
.best { fill: #c2500a; stroke: #c2500a; } polyline.best { fill: none; stroke-width: 3; }
"""


@dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    Args:
        number: from 1, in the order of the table.
        values: swept key -> value.
        status: "stopped" = early, by the scheduler.
        metrics: of its last judgement; a metric with an interval has NAME/low and NAME/high beside
            it.
        policy: checkpoint folder; empty where it failed.
        seconds: of learning and of judging, with the wait for the judge.
        error: why it failed.
    """

    number: int
    name: str
    values: Mapping[str, Any]
    status: Literal["finished", "stopped", "failed"]
    metrics: Mapping[str, float]
    policy: str = ""
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Axis:
    """Values on drawing units; `marks` are places with their labels."""

    place: Callable[[Any], float]
    marks: Sequence[tuple[float, str]]


def axis_of(values: Sequence[Any], start: float, stop: float) -> Axis:
    """Logarithmic, linear, or one place for each value where they are no numbers."""
    if any(isinstance(v, (str, bool)) or v is None for v in values):
        names = sorted({str(v) for v in values})
        scale = Scale(-0.5, len(names) - 0.5, start, stop)
        marks = [(scale(i), name) for i, name in enumerate(names)]
        return Axis(lambda v: scale(names.index(str(v))), marks)
    if min(values) > 0 and max(values) / min(values) >= LOG_SPAN:
        low, high = math.log10(min(values)), math.log10(max(values))
        scale = Scale(low, high, start, stop)
        exponents = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        powers = [10.0**exponent for exponent in exponents]
        return Axis(
            lambda v: scale(math.log10(v)), [(scale(math.log10(p)), f"{p:g}") for p in powers]
        )
    return _linear(values, start, stop)


def response_chart(
    key: str,
    trials: Sequence[Outcome],
    metrics: Sequence[str],
    best: Outcome,
    baseline: Mapping[str, float],
) -> str:
    """Each of `metrics` against one swept key, one above the other.

    Bars are intervals, the dashed line is what trials start from. The curve goes through the means
    of trials of one value, where other keys are swept, too.
    """
    width, panel, left, right = 560, 210, 70, 540
    x = axis_of([t.values[key] for t in trials], left + 15, right - 15)
    drawn = [m for m in metrics if any(m in t.metrics for t in trials)]
    height = 44 + panel * len(drawn)
    description = f"{', '.join(drawn)} against {key}: {_in_words(trials, [key], drawn)}"
    picture = Picture(width, height, description, STYLE)
    for number, metric in enumerate(drawn):
        top = 44 + panel * number
        measured = [t for t in trials if metric in t.metrics]
        y = _vertical(picture, metric, measured, baseline, (top + panel - 50, top), (left, right))
        picture.text(NAMES.get(metric, metric), x=left, y=top - 10, class_="title")
        if metric in baseline:
            start = y.place(baseline[metric])
            picture.line("reference", (left, start), (right, start))
            picture.text("start", x=right, y=start - 4, text_anchor="end")
        heights: dict[float, list[float]] = {}
        for trial in measured:
            place = y.place(trial.metrics[metric])
            heights.setdefault(x.place(trial.values[key]), []).append(place)
        means = [(at, round(sum(ys) / len(ys), 2)) for at, ys in sorted(heights.items())]
        picture.polyline("curve", means)
        for trial in measured:
            at = x.place(trial.values[key])
            low, high = _bounds(trial, metric)
            picture.line("bar", (at, y.place(low)), (at, y.place(high)))
            centre = (at, y.place(trial.metrics[metric]))
            _dot(picture, trial, centre, is_best=trial is best)
    for at, label in x.marks:
        picture.text(label, x=at, y=height - 30, text_anchor="middle")
    picture.text(key, x=(left + width) / 2, y=height - 8, text_anchor="middle")
    return picture.markup()


def parallel_chart(
    keys: Sequence[str], trials: Sequence[Outcome], metrics: Sequence[str], best: Outcome
) -> str:
    """A line for each trial across the swept keys and what came out.

    Lines go from blue (the last metric is low) to red (it is high).
    """
    drawn = [m for m in metrics if all(m in t.metrics for t in trials)]
    columns = {key: [t.values[key] for t in trials] for key in keys}
    columns |= {metric: [t.metrics[metric] for t in trials] for metric in drawn}
    height, top, bottom, step = 340, 60, 310, 150
    places = [85 + step * number for number in range(len(columns))]
    axes = [axis_of(values, bottom, top) for values in columns.values()]
    description = "parallel coordinates: " + _in_words(trials, keys, drawn)
    picture = Picture(step * len(columns) + 20, height, description, STYLE)
    for at, name, axis in zip(places, columns, axes, strict=True):
        picture.line("axis", (at, top), (at, bottom))
        picture.text(name, x=at, y=top - 20, text_anchor="middle")
        for y, label in axis.marks:
            picture.text(label, x=at - 6, y=y + 4, text_anchor="end")
    *_, last = columns.values()
    low, high = min(last), max(last)
    for number, trial in enumerate(trials):
        corners = [
            (at, axis.place(values[number]))
            for at, axis, values in zip(places, axes, columns.values(), strict=True)
        ]
        if trial is best:
            picture.polyline("trial best", corners)
        else:
            share = 0.5 if high == low else (last[number] - low) / (high - low)
            colour = f"hsl({round(220 - 220 * share)}, 65%, 45%)"
            picture.polyline("trial", corners, stroke=colour)
    return picture.markup()


def pareto_chart(
    trials: Sequence[Outcome],
    cost: str,
    metric: str,
    mode: str,
    best: Outcome,
    baseline: Mapping[str, float],
) -> str:
    """`metric` against `cost`, which should be low.

    The line joins the trials that no other beats in both.
    """
    width, height, left, right, top, bottom = 560, 380, 70, 540, 44, 330
    measured = [t for t in trials if cost in t.metrics]
    start = baseline if cost in baseline and metric in baseline else {}
    front = sorted(pareto_front(measured, cost, metric, mode=mode), key=lambda t: t.metrics[cost])
    names = ", ".join(t.name for t in front)
    description = f"{metric} against {cost}; no trial beats {names} in both"
    picture = Picture(width, height, description, STYLE)
    y = _vertical(picture, metric, measured, start, (bottom, top), (left, right))
    picture.text(NAMES.get(metric, metric), x=left, y=24, class_="title")
    x = _linear(_reached(measured, cost, start), left, right)
    for at, label in x.marks:
        picture.text(label, x=at, y=bottom + 18, text_anchor="middle")
    label = f"{NAMES.get(cost, cost)} (low is good)"
    picture.text(label, x=(left + width) / 2, y=height - 8, text_anchor="middle")

    def place(values: Mapping[str, float]) -> Point:
        return x.place(values[cost]), y.place(values[metric])

    picture.polyline("front", [place(t.metrics) for t in front])
    for trial in measured:
        centre = place(trial.metrics)
        low, high = _bounds(trial, metric)
        picture.line("bar", (centre[0], y.place(low)), (centre[0], y.place(high)))
        low, high = _bounds(trial, cost)
        picture.line("bar", (x.place(low), centre[1]), (x.place(high), centre[1]))
        _dot(picture, trial, centre, is_best=trial is best)
        picture.text(str(trial.number), x=centre[0] + 7, y=centre[1] - 6)
    if start:
        centre = place(start)
        picture.circle("reference", centre, radius=6)
        picture.text("start", x=centre[0] - 9, y=centre[1] + 4, text_anchor="end")
    return picture.markup()


def pareto_front(trials: Sequence[Outcome], cost: str, metric: str, mode: str) -> list[Outcome]:
    """Those that no other trial equals or beats in both and beats in one."""
    sign = 1 if mode == "min" else -1
    points = [(t.metrics[cost], sign * t.metrics[metric]) for t in trials]
    return [
        t
        for t, p in zip(trials, points, strict=True)
        if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)
    ]


def _bounds(trial: Outcome, metric: str) -> tuple[float, float]:
    """Of the metric's interval; of the value itself where it has none."""
    value = trial.metrics[metric]
    return trial.metrics.get(f"{metric}/low", value), trial.metrics.get(f"{metric}/high", value)


def _reached(trials: Sequence[Outcome], metric: str, baseline: Mapping[str, float]) -> list[float]:
    """Values that an axis must hold."""
    values = [bound for trial in trials for bound in _bounds(trial, metric)]
    return [*values, baseline[metric]] if metric in baseline else values


def _linear(values: Sequence[float], start: float, stop: float) -> Axis:
    marks = ticks(min(values), max(values))
    scale = Scale(marks[0], marks[-1], start, stop)
    return Axis(scale, [(scale(mark), f"{mark:g}") for mark in marks])


def _vertical(
    picture: Picture,
    metric: str,
    trials: Sequence[Outcome],
    baseline: Mapping[str, float],
    rows: tuple[float, float],
    columns: tuple[float, float],
) -> Axis:
    """Draw a metric's axis with its grid; `rows` are bottom and top of the plot."""
    axis = _linear(_reached(trials, metric, baseline), *rows)
    left, right = columns
    for at, label in axis.marks:
        picture.line("grid", (left, at), (right, at))
        picture.text(label, x=left - 8, y=at + 4, text_anchor="end")
    return axis


def _dot(picture: Picture, trial: Outcome, centre: Point, is_best: bool) -> None:
    kind, radius = ("best", 6) if is_best else ("dot", 4)
    picture.circle(kind, centre, radius, title=trial.name)


def _in_words(trials: Sequence[Outcome], keys: Sequence[str], metrics: Sequence[str]) -> str:
    """The trials, for those who do not see the chart."""
    words = []
    for trial in trials:
        parts = [f"{key} {trial.values[key]}" for key in keys]
        parts += [f"{m} {trial.metrics[m]:.4g}" for m in metrics if m in trial.metrics]
        words.append(", ".join(parts))
    return "; ".join(words)
