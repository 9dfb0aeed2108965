"""The report's section on dynamics: does a held-out listener move as people do, before and after
(GDPO-Listener).
"""

from __future__ import annotations

from collections.abc import Mapping

from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.html import Html, element, folded, join, paragraph, table

DEVIATIONS = [
    f"listen/{protocol}/{name}"
    for protocol in ("unils", "gdpo_paper")
    for name in ("FDD", "PDD", "JDD")
]
BY_GROUP = {"variance ratio": "variance_ratio", "jerk ratio": "jerk_ratio", "MSE": "MSE"}

Row = Mapping[str, float]


def moves(facts: Facts) -> Html | None:
    """Where a recipe judges dynamics: deviations of dynamics, and every FLAME group, where somebody
    listens.
    """
    metrics = facts.summary["metrics"]
    if "judgement" not in metrics:
        return None
    rows: Mapping[str, Row] = metrics["judgement"]
    first, last = metrics["compared"]
    groups = [
        name.rpartition("/")[2] for name in rows[first] if name.startswith("listen/variance_ratio/")
    ]
    columns = [f"{name}, {method}" for name in BY_GROUP for method in (first, last)]
    cells = [
        [
            group,
            *(
                _number(rows[method].get(f"listen/{key}/{group}"))
                for key in BY_GROUP.values()
                for method in (first, last)
            ),
        ]
        for group in groups
    ]
    every = [
        [metric, *(_number(row.get(metric)) for row in rows.values())] for metric in rows[first]
    ]
    return join(
        paragraph(
            "Frames in which the person speaks to whom the face listens. A variance ratio of 1 "
            "moves as much as "
            "the recorded listeners do, one well below 1 has collapsed to a mean face; a jerk "
            "ratio above 1 "
            "trembles."
        ),
        table("By FLAME group, against the recorded listeners", ("group", *columns), cells),
        _deviations(rows, first, last, metrics["change_percent"]),
        paragraph(
            element("strong", "others"),
            " is the recorded motion of somebody else in the same role: how far "
            "apart real people are. ",
            element("strong", "VAE"),
            " is the recorded motion, coded and decoded.",
        )
        if "others" in rows
        else None,
        folded("Every metric", table("Every metric, every way", ("metric", *rows), every)),
    )


def _deviations(rows: Mapping[str, Row], first: str, last: str, changes: Row) -> Html | None:
    """Where there was a head to measure them on."""
    cells = [
        [
            key.removeprefix("listen/"),
            *(_number(row.get(key)) for row in rows.values()),
            f"{changes[key]:+.0f} %",
        ]
        for key in DEVIATIONS
        if key in changes
    ]
    columns = ("metric", *rows, f"{first} to {last}")
    return table("Deviation of dynamics, lower is better", columns, cells) if cells else None


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
