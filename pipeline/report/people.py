"""What people think of results (Table III)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rapport.pipeline.report.agreement import COLUMNS
from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.paper import AFTER, USER_STUDY
from rapport.pipeline.report.tables import Table, number


def as_people_rate(facts: Facts) -> dict[str, object] | None:
    """Means, preferences, agreement, and the paper's Table III; None where nobody was asked."""
    study = facts.summary.study
    if not study:
        return None
    survey = study["survey"]
    names = list(next(iter(study["means"].values())))
    means = [
        [method, *(_cell(row[name]) for name in names)] for method, row in study["means"].items()
    ]
    preferred = [
        [pair["method"], pair["to"], _cell(pair), str(pair["ratings"])]
        for pair in study["preferred"]
        if pair["mean"] >= 0.5
    ]
    agreement = [
        [name, number(alpha, ".2f"), number(survey["reliability"][name], ".2f")]
        for name, alpha in survey["alpha"].items()
    ]
    paper = [
        [name, *(number(value, ".1f") for value in values)]
        for name, values in USER_STUDY.rows.items()
    ]
    return {
        "raters": len(survey["raters"]),
        "rated": survey["rated"],
        "candidates": survey["candidates"],
        "means": Table("People's ratings, 1 to 5", ("method", *names), means),
        "preferred": Table(
            "How often one is rated above another (ties count half)",
            ("method", "above", "share of comparisons", "comparisons"),
            preferred,
        ),
        "agreement": Table("How far they agree", COLUMNS, agreement),
        "warnings": survey["warnings"],
        "paper": Table(USER_STUDY.caption, ("method", *USER_STUDY.columns), paper, marked=AFTER),
    }


def _cell(value: Mapping[str, Any] | None) -> str | None:
    if value is None:
        return None
    if value["low"] is None:
        return f"{value['mean']:.2f}"
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
