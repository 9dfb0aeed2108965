"""How methods move, as tables on the terminal and as files of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rapport.files import strict_json, write_atomic
from rapport.pipeline.rundir import Workspace
from rapport.pipeline.steps.spread import BEST_ERROR, MEAN_ERROR

Rows = Mapping[str, Mapping[str, float]]  # method -> metric -> value
# Columns on the terminal -> metric; the files have all.
ERRORS = {
    "FDD, lids apart": "listen/unils/FDD_lids_apart",
    "PDD": "listen/unils/PDD",
    "JDD": "listen/unils/JDD",
    "MSE": "listen/MSE",
    "LVE speaking": "speak/gdpo_paper/LVE",
    "MHD speaking": "speak/gdpo_paper/MHD",
}
SEVERAL = {
    "share/affect": "affect",
    "share/expr": "expr",
    "share/rot": "rot",
    MEAN_ERROR: "truth error, all",
    BEST_ERROR: "of the best",
}
# Rows that say how much is much.
STANDARDS = {
    "VAE": "VAE = the recorded motion, coded and decoded",
    "others": "others = somebody else's recorded motion",
    "Regression": "Regression = the least wrong answer on average",
}
# Parts of the summary in their own right, METHOD -> GROUP -> NAME.
CROWD = ("likeness", "bands")


def tabulate_movement(
    rows: Rows,
    run: Workspace,
    *,
    before: str,
    after: str,
    changes: Mapping[str, Mapping[str, float]],
) -> None:
    """What matters most on the terminal, all of it as a table and as JSON, numbers in MLflow.

    Args:
        rows: method -> metric -> value; the terminal shows those up to `after`.
        run: takes the summary.
        before: method to compare with.
        after: method that is compared.
        changes: metric -> by how much `after` is above `before`, `{mean, low, high, n}`.
    """
    first = rows[before]
    last = rows[after]
    sizes = {
        name: value for name, value in first.items() if value > 0 and not name.startswith("text")
    }
    percent = {
        name: 100 * (last[name] / value - 1) for name, value in sizes.items() if name in last
    }
    methods = list(rows)
    show_movement({name: rows[name] for name in methods[: methods.index(after) + 1]}, changes)
    write_atomic(run.directory / "judgement.md", _markdown(rows, percent, changes, after) + "\n")
    content = dict(rows) | {"change_percent": percent, "change": dict(changes)}
    write_atomic(run.directory / "judgement.json", strict_json(content, indent=2))
    for kind in ("md", "json"):
        run.leave({f"judgement_{kind}": run.directory / f"judgement.{kind}"})
    summary = run.summary["metrics"]
    summary |= {"judgement": rows, "compared": [before, after], "change_percent": percent}
    summary |= {part: crowd(rows, part) for part in CROWD}
    summary["judgement_change"] = dict(changes)
    summary["before"] = summary.get("before", {}) | dict(first)
    summary["after"] = summary.get("after", {}) | dict(last)
    for name, row in rows.items():
        run.tracker.log(
            {f"{name.replace(' + ', '_')}/{metric}": value for metric, value in row.items()}
        )


def crowd(rows: Rows, part: str) -> dict[str, dict[str, dict[str, float]]]:
    """Method -> group -> name -> value of the metrics `PART/GROUP/NAME`; {} of none."""
    nested: dict[str, dict[str, dict[str, float]]] = {}
    for method, row in rows.items():
        for metric, value in row.items():
            first, *names = metric.split("/")
            if first == part:
                group, name = names
                nested.setdefault(method, {}).setdefault(group, {})[name] = value
    return nested


def show_movement(rows: Rows, changes: Mapping[str, Mapping[str, float]]) -> None:
    """Likeness to people and what is between them by group, then deviations and errors.

    Args:
        rows: method -> metric -> value.
        changes: metric -> `{mean, low, high}`.
    """
    console = Console(width=120)
    likeness = crowd(rows, "likeness")
    groups = list(dict.fromkeys(group for by_group in likeness.values() for group in by_group))
    if groups:
        of_people = [
            [method, *(_pair(by_group.get(group, {})) for group in groups)]
            for method, by_group in likeness.items()
        ]
        title = "how alike people listeners move, position / velocity: 1 = as people, more = less"
        console.print(_table(title, groups, of_people))
        between = [
            [method, *(_number(by_group.get(group, {}).get("between")) for group in groups)]
            for method, by_group in crowd(rows, "bands").items()
        ]
        title = "between windows: variance of their means, over people's"
        console.print(_table(title, groups, between))
    _show_several(console, rows)
    present = {
        column: metric
        for column, metric in ERRORS.items()
        if any(metric in row for row in rows.values())
    }
    errors = [
        [method, *(_number(row.get(metric)) for metric in present.values())]
        for method, row in rows.items()
    ]
    if changes:
        errors.append(["change", *(_interval(changes.get(name)) for name in present.values())])
    meanings = [meaning for name, meaning in STANDARDS.items() if name in rows]
    title = "; ".join(["deviation from the recorded person", *meanings])
    console.print(_table(title, list(present), errors))


def _show_several(console: Console, rows: Rows) -> None:
    """What part of the spread of several reactions the speaker explains, and the best of them."""
    known = {method: row for method, row in rows.items() if any(name in row for name in SEVERAL)}
    if known:
        lines = [
            [method, *(_number(row.get(name)) for name in SEVERAL)] for method, row in known.items()
        ]
        title = "several reactions to a speaker: share of their spread that the speaker explains"
        console.print(_table(title, list(SEVERAL.values()), lines))


def _table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(*line)
    return table


def _markdown(
    rows: Rows,
    percent: Mapping[str, float],
    changes: Mapping[str, Mapping[str, float]],
    after: str,
) -> str:
    """Every metric of every method; what changed stands behind the method that is compared."""
    main = 2 + list(rows).index(after)
    metrics = list(dict.fromkeys(name for row in rows.values() for name in row))
    heading = ["", *rows]
    heading[main:main] = ["change", "95 % interval"]
    lines = [heading, ["---"] * len(heading)]
    for metric in metrics:
        line = [metric, *(_number(row.get(metric)) for row in rows.values())]
        relative = f"{percent[metric]:+.0f} %" if metric in percent else "-"
        line[main:main] = [relative, _interval(changes.get(metric))]
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _pair(value: Mapping[str, float]) -> str:
    """`position / velocity`."""
    both = (value.get(name) for name in ("position", "velocity"))
    return " / ".join("-" if each is None else f"{each:.2f}" for each in both)


def _interval(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    return "{mean:+.3g} [{low:+.3g}, {high:+.3g}]".format(**value)
