"""Do the raters agree whose ratings became pairs?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.tables import Table, interval, number

COLUMNS = ("criterion", "Krippendorff's alpha (ordinal)", "reliability of the raters' mean")
LEARNT_COLUMNS = (
    "who rates",
    "couples of a group in people's order, chance .50",
    "Spearman within groups",
    "Spearman over all",
)


def rater_agreement(facts: Facts) -> dict[str, object] | None:
    """How far raters agree, round by round; None where nobody rates."""
    source = facts.summary.engines.get("raters")
    if source is None:
        return None
    simulated = "SIMULATED" in source
    raters = "SIMULATED raters" if simulated else "people"
    tables = {label: _table(label, raters, survey) for label, survey in facts.surveys.items()}
    return {
        "source": source,
        "simulated": simulated,
        "raters": raters,
        "surveys": [
            (survey, tables[label], _beside(label, survey))
            for label, survey in facts.surveys.items()
        ],
        "learnt": facts.summary.counts.get("learnt_groups", 0),
        "model": _model(facts.summary.reward_model),
    }


def _model(agreement: Mapping[str, Any]) -> Table | None:
    """How far a model of people's ratings agrees with them, beside others; None without one."""
    if not agreement:
        return None
    rows = [
        [
            name,
            interval(row["accuracy"]),
            number(row["within"], ".2f"),
            number(row["over_all"], ".2f"),
        ]
        for name, row in agreement.items()
    ]
    return Table("How far a model agrees with people (learnt ratings)", LEARNT_COLUMNS, rows)


def _beside(label: str, survey: Mapping[str, Any]) -> list[Table]:
    """What only people on a page are asked: who listens better, and the control."""
    tables = []
    if survey.get("strengths"):
        rows = [[_plain(name), number(value, ".2f")] for name, value in survey["strengths"].items()]
        tables.append(
            Table(f"Who listens better, Bradley-Terry ({label})", ("who listens", "strength"), rows)
        )
    if survey.get("matched"):
        columns = ("who listens", "judgements", "own speaker's preferred", "rated higher by")
        rows = [
            [
                _plain(source),
                str(row["judgements"]),
                number(row["matched"], ".2f"),
                number(row["difference"], ".2f"),
            ]
            for source, row in survey["matched"].items()
        ]
        title = f"Listeners of this speaker against listeners of another, chance .50 ({label})"
        tables.append(Table(title, columns, rows))
    return tables


def _plain(source: str) -> str:
    return source.replace("_", " ")


def _table(label: str, raters: str, survey: Mapping[str, Any]) -> Table:
    rows = [
        [criterion, number(alpha, ".2f"), number(survey["reliability"][criterion], ".2f")]
        for criterion, alpha in survey["alpha"].items()
    ]
    return Table(f"How far the {raters} agree ({label})", COLUMNS, rows)
