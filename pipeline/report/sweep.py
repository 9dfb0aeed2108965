"""Charts of a sweep as SVG files that stand alone: response curves, parallel coordinates, Pareto
front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rapport.pipeline.report.charts import Scale, ticks
from rapport.pipeline.report.html import Html, element

FINISHED = "finished"
LOG_SPAN = 20  # positive values whose largest is so many times the smallest are drawn on a logarithmic axis
NAMES = {
    "simulated_rating": "SIMULATED rating, 1 to 5",
    "kl": "KL to the policy that trials start from, nats",
    "fd": "FD",
    "FDD": "FDD where the actor listens",
    "MSE": "MSE where the actor listens",
}
STYLE = """
svg { background: #fdfdfc; font: 12px system-ui, sans-serif; }
text { fill: #44474c; } .title { font-weight: 600; font-size: 14px; fill: #1b1c1e; }
.grid { stroke: #d9d9d4; } .axis { stroke: #5a5d63; } .bar { stroke: #0a66c2; stroke-width: 1.5; opacity: .6; }
.curve { fill: none; stroke: #0a66c2; stroke-width: 1.8; } .front { fill: none; stroke: #2c7a4b; stroke-width: 1.5; }
.reference { stroke: #5a5d63; stroke-dasharray: 5 4; fill: none; } .trial { fill: none; stroke-width: 1.6; }
.dot { fill: #0a66c2; } .best { fill: #c2500a; stroke: #c2500a; } polyline.best { fill: none; stroke-width: 3; }
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
        return Axis(
            lambda v: scale(names.index(str(v))), [(scale(i), name) for i, name in enumerate(names)]
        )
    if min(values) > 0 and max(values) / min(values) >= LOG_SPAN:
        low, high = (math.log10(f(values)) for f in (min, max))
        scale = Scale(low, high, start, stop)
        powers = [10.0**k for k in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
        return Axis(
            lambda v: scale(math.log10(v)), [(scale(math.log10(p)), f"{p:g}") for p in powers]
        )
    found = ticks(min(values), max(values), 5)
    scale = Scale(found[0], found[-1], start, stop)
    return Axis(scale, [(scale(t), f"{t:g}") for t in found])


def response_chart(
    key: str,
    trials: Sequence[Outcome],
    metrics: Sequence[str],
    best: Outcome,
    baseline: Mapping[str, float],
) -> Html:
    """Each of `metrics` against one swept key, one above the other; bars are intervals, the dashed
    line is what trials start from. The curve goes through the means of trials of one value, where
    other keys are swept, too."""
    width, panel, left, right = 560, 210, 70, 20
    x = axis_of([t.values[key] for t in trials], left + 15, width - right - 15)
    shown = [m for m in metrics if any(m in t.metrics for t in trials)]
    parts: list[Html] = []
    for row, metric in enumerate(shown):
        given = [t for t in trials if metric in t.metrics]
        top, bottom = 44 + row * panel, 44 + row * panel + panel - 50
        started = [baseline[metric]] if metric in baseline else []
        reached = [v for t in given for v in _bounds(t, metric)] + started
        y = _linear(reached, bottom, top)
        parts += [
            *_horizontal(y, left, width - right),
            _title(NAMES.get(metric, metric), left, top - 10),
        ]
        for v in started:
            parts += [
                _line("reference", left, y.place(v), width - right, y.place(v)),
                element("text", "start", x=width - right, y=y.place(v) - 4, text_anchor="end"),
            ]
        places = sorted({x.place(t.values[key]) for t in given})
        means = [
            (p, _mean([y.place(t.metrics[metric]) for t in given if x.place(t.values[key]) == p]))
            for p in places
        ]
        parts.append(_polyline("curve", means))
        for t in given:
            at, (low, high) = x.place(t.values[key]), _bounds(t, metric)
            parts += [
                _line("bar", at, y.place(low), at, y.place(high)),
                _dot(t, best, at, y.place(t.metrics[metric])),
            ]
    height = 44 + panel * len(shown)
    parts += [
        element("text", label, x=at, y=height - 30, text_anchor="middle") for at, label in x.marks
    ]
    parts.append(element("text", key, x=(left + width) / 2, y=height - 8, text_anchor="middle"))
    return _document(
        width, height, f"{', '.join(shown)} against {key}: " + _said(trials, [key], shown), parts
    )


def parallel_chart(
    keys: Sequence[str], trials: Sequence[Outcome], metrics: Sequence[str], best: Outcome
) -> Html:
    """A line for each trial across the swept keys and what came out; from blue (low last metric) to
    red (high).
    """
    shown = [m for m in metrics if all(m in t.metrics for t in trials)]
    columns = [(k, [t.values[k] for t in trials]) for k in keys] + [
        (m, [t.metrics[m] for t in trials]) for m in shown
    ]
    height, top, step = 340, 60, 150
    width, bottom = step * len(columns) + 20, height - 30
    axes = [axis_of(values, bottom, top) for _, values in columns]
    parts: list[Html] = []
    for i, ((name, _), axis) in enumerate(zip(columns, axes, strict=True)):
        at = 85 + i * step
        parts += [
            _line("axis", at, top, at, bottom),
            element("text", name, x=at, y=top - 20, text_anchor="middle"),
        ]
        parts += [
            element("text", label, x=at - 6, y=y + 4, text_anchor="end") for y, label in axis.marks
        ]
    last = columns[-1][1]
    for number, trial in enumerate(trials):
        line = [
            (85 + i * step, axis.place(values[number]))
            for i, ((_, values), axis) in enumerate(zip(columns, axes, strict=True))
        ]
        share = (
            0.5 if max(last) == min(last) else (last[number] - min(last)) / (max(last) - min(last))
        )
        colour = f"hsl({round(220 - 220 * share)}, 65%, 45%)"
        parts.append(
            _polyline(
                "trial best" if trial is best else "trial",
                line,
                stroke=None if trial is best else colour,
            )
        )
    return _document(width, height, "parallel coordinates: " + _said(trials, keys, shown), parts)


def pareto_chart(
    trials: Sequence[Outcome],
    cost: str,
    metric: str,
    mode: str,
    best: Outcome,
    baseline: Mapping[str, float],
) -> Html:
    """`metric` against `cost`, which should be low; the line joins the trials that no other beats
    in both.
    """
    width, height, left, right, top, bottom = 560, 380, 70, 20, 44, 330
    given = [t for t in trials if cost in t.metrics]
    started = (
        [(baseline[cost], baseline[metric])] if cost in baseline and metric in baseline else []
    )
    x = _linear(
        [v for t in given for v in _bounds(t, cost)] + [c for c, _ in started], left, width - right
    )
    y = _linear(
        [v for t in given for v in _bounds(t, metric)] + [m for _, m in started], bottom, top
    )
    parts = [*_horizontal(y, left, width - right), _title(NAMES.get(metric, metric), left, 24)]
    parts += [
        element("text", label, x=at, y=bottom + 18, text_anchor="middle") for at, label in x.marks
    ]
    parts.append(
        element(
            "text",
            f"{NAMES.get(cost, cost)} (low is good)",
            x=(left + width) / 2,
            y=height - 8,
            text_anchor="middle",
        )
    )
    front = sorted(pareto_front(given, cost, metric, mode), key=lambda t: t.metrics[cost])
    parts.append(
        _polyline("front", [(x.place(t.metrics[cost]), y.place(t.metrics[metric])) for t in front])
    )
    for t in given:
        px, py = x.place(t.metrics[cost]), y.place(t.metrics[metric])
        (left_end, right_end), (low, high) = _bounds(t, cost), _bounds(t, metric)
        parts += [
            _line("bar", px, y.place(low), px, y.place(high)),
            _line("bar", x.place(left_end), py, x.place(right_end), py),
            _dot(t, best, px, py),
            element("text", str(t.number), x=px + 7, y=py - 6),
        ]
    for c, m in started:
        parts += [
            element("circle", class_="reference", cx=x.place(c), cy=y.place(m), r=6),
            element("text", "start", x=x.place(c) - 9, y=y.place(m) + 4, text_anchor="end"),
        ]
    said = f"{metric} against {cost}; no trial beats {', '.join(t.name for t in front)} in both"
    return _document(width, height, said, parts)


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
    value = trial.metrics[metric]
    return trial.metrics.get(f"{metric}/low", value), trial.metrics.get(f"{metric}/high", value)


def _linear(values: Sequence[float], start: float, stop: float) -> Axis:
    found = ticks(min(values), max(values))
    scale = Scale(found[0], found[-1], start, stop)
    return Axis(scale, [(scale(t), f"{t:g}") for t in found])


def _horizontal(y: Axis, left: float, right: float) -> list[Html]:
    return [
        part
        for at, label in y.marks
        for part in (
            _line("grid", left, at, right, at),
            element("text", label, x=left - 8, y=at + 4, text_anchor="end"),
        )
    ]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 2)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Html:
    return element("line", class_=kind, x1=x1, y1=y1, x2=x2, y2=y2)


def _polyline(kind: str, points: Sequence[tuple[float, float]], stroke: str | None = None) -> Html:
    return element(
        "polyline", class_=kind, points=" ".join(f"{x},{y}" for x, y in points), stroke=stroke
    )


def _dot(trial: Outcome, best: Outcome, x: float, y: float) -> Html:
    return element(
        "circle",
        element("title", trial.name),
        class_="best" if trial is best else "dot",
        cx=x,
        cy=y,
        r=6 if trial is best else 4,
    )


def _title(text: str, x: float, y: float) -> Html:
    return element("text", text, class_="title", x=x, y=y)


def _said(trials: Sequence[Outcome], keys: Sequence[str], metrics: Sequence[str]) -> str:
    """The trials in words, for those who do not see the chart."""
    return "; ".join(
        ", ".join(
            [
                *(f"{k} {t.values[k]}" for k in keys),
                *(f"{m} {t.metrics[m]:.4g}" for m in metrics if m in t.metrics),
            ]
        )
        for t in trials
    )


def _document(width: float, height: float, said: str, parts: Sequence[Html]) -> Html:
    return element(
        "svg",
        element("style", Html(STYLE)),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        width=width,
        height=height,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=said,
    )
