"""Does a held-out listener move as people do, before and after (GDPO-Listener)?"""

from __future__ import annotations

from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.summary import IntervalValues, Summary
from rapport.pipeline.report.tables import PERCENT, Table, number

PROTOCOLS = ("unils", "gdpo_paper")
# Listening, in windows of a listener; then speaking.
ERRORS = [
    f"{part}/{protocol}/{name}"
    for part, names in (
        ("listen", ("FDD_lids_apart", "FDD", "PDD", "JDD")),
        ("speak", ("LVE", "MHD")),
    )
    for protocol in PROTOCOLS
    for name in names
]
BANDS = ("between", "slow", "middle", "fast", "spread")
# Column -> metric that every FLAME group has.
BY_GROUP = {"variance ratio": "variance_ratio", "jerk ratio": "jerk_ratio", "MSE": "MSE"}


def how_listeners_move(facts: Facts) -> dict[str, object] | None:
    """Likeness to people, power by band, deviations, every FLAME group; None if unjudged."""
    summary = facts.summary
    if summary.compared is None or not summary.judgement:
        return None
    rows = summary.judgement
    metrics = dict.fromkeys(metric for row in rows.values() for metric in row)
    every = [
        [metric, *(number(row.get(metric), ".4g") for row in rows.values())] for metric in metrics
    ]
    return {
        "likeness": _likeness(summary),
        "bands": _bands(summary, summary.compared),
        "by_group": _by_group(summary, summary.compared),
        "errors": _errors(summary, summary.compared),
        "has_others": "others" in rows,
        "has_regression": "Regression" in rows,
        "every_metric": Table("Every metric, every way", ("metric", *rows), every),
    }


def _likeness(summary: Summary) -> Table | None:
    """Of every method, by group; None of a run that was not judged by it."""
    groups = _groups(summary, "likeness")
    rows = []
    for method, row in summary.judgement.items():
        cells = [
            [
                number(row.get(f"likeness/{group}/{kind}"), ".2f")
                for kind in ("position", "velocity")
            ]
            for group in groups
        ]
        if any(value is not None for pair in cells for value in pair):
            rows.append([method, *(" / ".join(each or "-" for each in pair) for pair in cells)])
    caption = "How alike people listeners move, position / velocity: 1 = as people, more = less"
    return Table(caption, ("method", *groups), rows) if rows else None


def _bands(summary: Summary, compared: tuple[str, str]) -> Table | None:
    """Of both policies, by group; None of a run that was not judged by it."""
    columns = [(band, method) for band in BANDS for method in compared]
    rows = []
    for group in _groups(summary, "bands"):
        values = [summary.judgement[m].get(f"bands/{group}/{band}") for band, m in columns]
        rows.append([group, *(number(value, ".2f") for value in values)])
    caption = "Power by band, over that of people"
    heading = ("group", *(f"{band}, {method}" for band, method in columns))
    return Table(caption, heading, rows) if rows else None


def _by_group(summary: Summary, compared: tuple[str, str]) -> Table:
    prefix = "listen/variance_ratio/"
    measured = summary.judgement[compared[0]]
    groups = [name.removeprefix(prefix) for name in measured if name.startswith(prefix)]
    columns = [(name, key, method) for name, key in BY_GROUP.items() for method in compared]
    rows = []
    for group in groups:
        values = [summary.judgement[m].get(f"listen/{key}/{group}") for _, key, m in columns]
        rows.append([group, *(number(value, ".4g") for value in values)])
    return Table(
        "By FLAME group, against the recorded listeners",
        ("group", *(f"{name}, {method}" for name, _, method in columns)),
        rows,
    )


def _errors(summary: Summary, compared: tuple[str, str]) -> Table | None:
    """Distances from the recorded person; None where there was no head to measure them on."""
    rows = []
    for key in ERRORS:
        if key in summary.judgement[compared[0]]:
            values = [row.get(key) for row in summary.judgement.values()]
            cells = [number(value, ".4g") for value in values]
            percent = summary.change_percent.get(key)
            relative = None if percent is None else f"{percent:+.0f}{PERCENT}"
            rows.append([key, *cells, relative, _interval(summary.judgement_change.get(key))])
    if not rows:
        return None
    change = f"{compared[0]} to {compared[1]}"
    columns = ("metric", *summary.judgement, change, f"95{PERCENT} interval")
    return Table("Deviation from the recorded person, lower is better", columns, rows)


def _interval(value: IntervalValues | None) -> str | None:
    """Of a change, to three digits: deviations of the head and of the jaw are small."""
    return None if value is None else "{mean:+.3g} [{low:+.3g}, {high:+.3g}]".format(**value)


def _groups(summary: Summary, part: str) -> list[str]:
    """Groups that any method has in a part of the metrics, `PART/GROUP/NAME`."""
    named = (metric.split("/") for row in summary.judgement.values() for metric in row)
    return list(dict.fromkeys(names[1] for names in named if names[0] == part))
