"""Does a held-out listener move as people do, before and after (GDPO-Listener)?"""

from __future__ import annotations

from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.summary import Summary
from rapport.pipeline.report.tables import Table, number

PROTOCOLS = ("unils", "gdpo_paper")
DEVIATIONS = [
    f"listen/{protocol}/{name}" for protocol in PROTOCOLS for name in ("FDD", "PDD", "JDD")
]
# Column -> metric that every FLAME group has.
BY_GROUP = {"variance ratio": "variance_ratio", "jerk ratio": "jerk_ratio", "MSE": "MSE"}


def how_listeners_move(facts: Facts) -> dict[str, object] | None:
    """Deviations of dynamics, and every FLAME group, while somebody listens; None if unjudged."""
    summary = facts.summary
    if summary.compared is None or not summary.judgement:
        return None
    rows = summary.judgement
    every = [
        [metric, *(number(row.get(metric), ".4g") for row in rows.values())]
        for metric in rows[summary.compared[0]]
    ]
    return {
        "by_group": _by_group(summary, summary.compared),
        "deviations": _deviations(summary, summary.compared),
        "has_others": "others" in rows,
        "every_metric": Table("Every metric, every way", ("metric", *rows), every),
    }


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


def _deviations(summary: Summary, compared: tuple[str, str]) -> Table | None:
    """Deviations of dynamics of every method; None where there was no head to measure them on."""
    rows = []
    for key in DEVIATIONS:
        if key in summary.change_percent:
            values = [row.get(key) for row in summary.judgement.values()]
            cells = [number(value, ".4g") for value in values]
            rows.append(
                [key.removeprefix("listen/"), *cells, f"{summary.change_percent[key]:+.0f} %"]
            )
    columns = ("metric", *summary.judgement, f"{compared[0]} to {compared[1]}")
    return Table("Deviation of dynamics, lower is better", columns, rows) if rows else None
