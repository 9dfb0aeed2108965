"""Every method's numbers on held-out clips, and the paper's beside them."""

from __future__ import annotations

from rapport.pipeline.report.charts import Chart, interval_chart
from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.paper import (
    ABLATION,
    AFTER,
    BEFORE,
    FULL,
    L2L_TREVOR,
    METRICS,
    REALTALK,
    TITLE,
    USER_STUDY,
    PaperTable,
)
from rapport.pipeline.report.summary import MetricValues, Summary
from rapport.pipeline.report.tables import Table, interval, number, percent

NAMES = {"l2": "L2", "fd": "FD", "p_fd": "P-FD", "l2_affect": "L2 Affect"}
# What was answered to this speaker -> its column.
LISTENING = {
    "own_minus_another": "own minus another's",
    "matched": "matched",
    "right": "right",
    "right_known": "right, known words",
    "right_held_out": "right, held-out words",
    "independent": "independent judge, nats",
    "independent_own_minus_another": "the same, own minus another's",
}


def results_by_method(facts: Facts) -> dict[str, object] | None:
    """This run's tables, and the paper's where it has the same metrics; None if unjudged."""
    summary = facts.summary
    rows = summary.evaluation
    if not rows:
        return None
    columns = [name for name in (*METRICS, "truth_affect_error") if _measured(summary, name)]
    lacking = [c for c in columns if all(row.get(c) is None for row in rows.values())]
    return {
        "listening": _listening(summary),
        "trust": _trust(summary),
        "raters_are_deaf": summary.raters_understand_speech is False,
        "table": _table(summary, columns),
        "lacking": ", ".join(map(_name, lacking)),
        "ratings": _rating_chart(summary),
        "has_benchmarks": any(_measured(summary, name) for name in METRICS),
        "title": TITLE,
        "benchmarks": [_paper_table(L2L_TREVOR), _paper_table(REALTALK)],
        "directions": _directions(summary),
        "has_criteria": any(_measured(summary, f"simulated_{c}") for c in USER_STUDY.columns),
        "criteria": [_criteria(summary), _paper_table(USER_STUDY, ".1f")],
        "ablation": [_ablation(summary), _paper_table(ABLATION, marked=FULL)]
        if summary.recipe == "dpo"
        else [],
    }


def _measured(summary: Summary, metric: str) -> bool:
    """Whether a run judges by a metric at all; its value may be missing all the same."""
    return any(metric in row for row in summary.evaluation.values())


def _listening(summary: Summary) -> Table | None:
    """What was answered to this speaker; None where a run was not judged by it."""
    columns = [
        name
        for name in LISTENING
        if any(row.get(name) is not None for row in summary.evaluation.values())
    ]
    if not columns:
        return None
    shown = (*columns, "simulated_rating")
    rows = [
        [method, *(interval(row.get(name)) for name in shown)]
        for method, row in summary.evaluation.items()
    ]
    return Table(
        "This run: what was answered to this speaker, held-out clips",
        ("method", *(LISTENING[name] for name in columns), "SIMULATED rating, 1 to 5"),
        rows,
        marked=_aligned(summary),
    )


def _trust(summary: Summary) -> str | None:
    """How far the independent judge can be trusted, in a sentence; None where nobody measured."""
    accuracy = summary.independent_judge.get("accuracy")
    fitting = summary.independent_judge.get("accuracy_of_fitting")
    if accuracy is None:
        return None
    text = f"{interval(accuracy)} of recorded validation listeners"
    return text if fitting is None else f"{text}, {interval(fitting)} of those who fit"


def _table(summary: Summary, columns: list[str]) -> Table:
    rows = [
        [method, *(number(row.get(c)) for c in columns), interval(row.get("simulated_rating"))]
        for method, row in summary.evaluation.items()
    ]
    return Table(
        "This run: held-out clips",
        ("method", *map(_name, columns), "SIMULATED rating, 1 to 5"),
        rows,
        marked=_aligned(summary),
    )


def _rating_chart(summary: Summary) -> Chart | None:
    ratings = [
        (method, rating["mean"], rating["low"], rating["high"])
        for method, row in summary.evaluation.items()
        if (rating := row.get("simulated_rating"))
    ]
    title = "SIMULATED rating by method, with 95 % bootstrap intervals over conversations"
    return interval_chart(title, ratings) if ratings else None


def _directions(summary: Summary) -> Table | None:
    """How far alignment moved each metric, here and in the paper."""
    if summary.compared is None or not set(summary.compared) <= summary.evaluation.keys():
        return None
    before, after = (summary.evaluation[method] for method in summary.compared)
    rows = []
    for column, metric in enumerate(METRICS):
        papers = [
            percent(paper.rows[BEFORE][column], paper.rows[AFTER][column])
            for paper in (L2L_TREVOR, REALTALK)
        ]
        rows.append([_name(metric), percent(before.get(metric), after.get(metric)), *papers])
    return Table(
        f"From {summary.compared[0]} to the aligned policy: compare directions, not sizes",
        ("metric", "this run", "paper, L2L-trevor", "paper, RealTalk"),
        rows,
    )


def _criteria(summary: Summary) -> Table:
    rows = [
        [method, *(number(row.get(f"simulated_{c}"), ".2f") for c in USER_STUDY.columns)]
        for method, row in summary.evaluation.items()
    ]
    columns = ("method", *USER_STUDY.columns)
    return Table("This run: SIMULATED raters, 1 to 5", columns, rows, marked=_aligned(summary))


def _ablation(summary: Summary) -> Table:
    """The two of Table IV's four rows that every run has."""
    before, after = (summary.evaluation.get(m, {}) for m in summary.compared or ("", ""))
    by_row: dict[str, MetricValues] = {
        FULL: after,
        "Random-Prefer": {},
        "SFT-Preferred": {},
        "SFT-Only": before,
    }
    rows = [
        [name, *(number(row.get(column)) for column in ABLATION.columns)]
        for name, row in by_row.items()
    ]
    return Table(
        "This run, as in Table IV (a dash: not run)",
        ("method", *map(_name, ABLATION.columns)),
        rows,
        marked=FULL,
    )


def _paper_table(paper: PaperTable, form: str = ".4f", marked: str = AFTER) -> Table:
    rows = [[name, *(number(v, form) for v in values)] for name, values in paper.rows.items()]
    return Table(paper.caption, ("method", *map(_name, paper.columns)), rows, marked=marked)


def _aligned(summary: Summary) -> str | None:
    return summary.compared[1] if summary.compared else None


def _name(metric: str) -> str:
    return NAMES.get(metric, metric.replace("_", " "))
