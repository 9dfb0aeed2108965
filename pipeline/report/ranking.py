"""What `rank` found, on the terminal, as rank.json and rank.md, in MLflow: ranks, where they
change, values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from rapport.pipeline.rundir import Run, write_atomic
from rapport.pipeline.tracking import metric_key
from rapport.rewards.metrics.ranking import Best, best_of, ranks, swaps

GROUND_TRUTH = "ground truth"
SIGN: dict[Best, str] = {"lowest": "↓", "highest": "↑", "nearest": "≈"}
LEGEND = (
    "Cells are ranks by the metric as published, and by its corrected variant where that "
    "differs. Best is the "
    "lowest value (↓), the highest (↑), or the one nearest to the ground truth's (≈); equal "
    "values share a rank. "
    "The ground truth has none."
)
Values = Mapping[str, Mapping[str, Mapping[str, float]]]  # variant -> method -> metric -> value


@dataclass(frozen=True)
class Ranking:
    """All values, and what they are of.

    Args:
        corpus: digest.
        layout: groups that are compared.
        clips, frames, samples: held-out clips, frames of each, reactions of each method to each.
        values: protocol -> part of the clips ("all", "first half", "second half") -> `Values`.
        left_out: protocol -> why.
        absent: methods that are left out, and why.
    """

    corpus: str
    layout: str
    clips: int
    frames: int
    samples: int
    values: Mapping[str, Mapping[str, Values]]
    left_out: Mapping[str, str]
    absent: Sequence[str]


@dataclass(frozen=True)
class Line:
    """Methods by one metric.

    Args:
        values: variant -> method -> value, with the ground truth; None where there is none.
        ranks: variant -> method -> rank, without it.
        swaps: (a, b): a is ranked before b by the reference and behind b by the corrected metric.
        steady: those of them that either half of the clips shows by itself; the others may be
            chance.
    """

    protocol: str
    metric: str
    best: Best
    values: dict[str, dict[str, float | None]]
    ranks: dict[str, dict[str, int]]
    swaps: list[tuple[str, str]]
    steady: list[tuple[str, str]]

    @property
    def changed(self) -> bool:
        """Whether somebody has another rank; a tie made or broken does that without a swap."""
        return self.ranks["reference"] != self.ranks["corrected"]


def lines(protocol: str, parts: Mapping[str, Values]) -> Iterator[Line]:
    """A line for each metric of a protocol."""
    methods = list(parts["all"]["reference"])
    metrics = dict.fromkeys(
        metric for by_method in parts["all"].values() for metric in by_method[GROUND_TRUTH]
    )
    for metric in metrics:
        best = best_of(metric)
        by_part = {part: _ranks(metric, best, values) for part, values in parts.items()}
        found = {part: swaps(r["reference"], r["corrected"]) for part, r in by_part.items()}
        steady = [pair for pair in found["all"] if all(pair in pairs for pairs in found.values())]
        values = {
            variant: {method: _number(by_method[method].get(metric)) for method in methods}
            for variant, by_method in parts["all"].items()
        }
        yield Line(protocol, metric, best, values, by_part["all"], found["all"], steady)


def report(ranking: Ranking, run: Run) -> None:
    """Ranks on the terminal; everything in the run folder; values in MLflow."""
    found = [line for protocol, parts in ranking.values.items() for line in lines(protocol, parts)]
    methods = [method for method in found[0].values["reference"] if method != GROUND_TRUTH]
    table = Table(title=f"ranks on {ranking.clips} held-out clips: as published → corrected")
    for column in ("metric", "", *methods):
        table.add_column(column, justify="left" if column in ("metric", "") else "right")
    for line in found:
        table.add_row(
            f"{line.protocol} {line.metric}",
            SIGN[line.best],
            *(rank_cell(line, m) for m in methods),
        )
    Console(width=150).print(table)
    for text in (*ranking.absent, headline(found)):
        print(f"[rank] {text}", flush=True)
    write_atomic(run.directory / "rank.md", markdown(ranking, found, methods))
    about = {name: value for name, value in vars(ranking).items() if name != "values"}
    facts = about | {"metrics": [asdict(line) for line in found]}
    write_atomic(run.directory / "rank.json", json.dumps(facts, indent=2) + "\n")
    for kind in ("md", "json"):
        run.summary["artifacts"][f"rank_{kind}"] = str(run.directory / f"rank.{kind}")
        run.tracker.log_artifact(run.directory / f"rank.{kind}")
    run.summary["metrics"] = {
        "ranked_by": len(found),
        "ranking_changes": sum(line.changed for line in found),
        "order_changes": sum(bool(line.swaps) for line in found),
        "steady_order_changes": sum(bool(line.steady) for line in found),
    }
    run.summary["counts"] |= {"methods": len(methods), "clips": ranking.clips}
    run.tracker.log(run.summary["metrics"])
    for line in found:
        run.tracker.log(
            {
                f"{line.protocol}/{line.metric}/{variant}/{metric_key(method)}": value
                for variant, by_method in line.values.items()
                for method, value in by_method.items()
            }
        )


def headline(found: Sequence[Line]) -> str:
    changed, swapped, steady = (
        sum(bool(getattr(line, name)) for line in found) for name in ("changed", "swaps", "steady")
    )
    return (
        f"{len(found)} metrics: the corrections change ranks in {changed}, swap methods in "
        f"{swapped}, in {steady} "
        "so that either half of the clips shows a swap by itself"
    )


def markdown(ranking: Ranking, found: Sequence[Line], methods: Sequence[str]) -> str:
    """Ranks, changes, values, and what is left out."""
    facts = (
        f"Corpus `{ranking.corpus[:12]}`: {ranking.clips} held-out clips, {ranking.frames} "
        "frames of each, "
        f"{ranking.layout}; {ranking.samples} reactions of each method to each. {headline(found)}."
    )
    blocks = [
        facts,
        "## Ranks",
        LEGEND,
        _table(
            ["metric", "", *methods],
            (
                [
                    f"{line.protocol} {line.metric}",
                    SIGN[line.best],
                    *(rank_cell(line, m, "**") for m in methods),
                ]
                for line in found
            ),
        ),
    ]
    blocks += [
        "## Where the ranking changes",
        "\n".join(change(line) for line in found if line.changed) or "Nowhere.",
    ]
    blocks.append("## Values")
    for protocol in ranking.values:
        rows = (
            row for line in found if line.protocol == protocol for row in value_rows(line, methods)
        )
        blocks += [f"### {protocol}", _table(["metric", "variant", *methods, GROUND_TRUTH], rows)]
    left_out = [*ranking.absent, *(f"{name}: {why}" for name, why in ranking.left_out.items())]
    blocks += ["## Left out", "\n".join(f"- {text}" for text in left_out)]
    return "\n\n".join(blocks) + "\n"


def rank_cell(line: Line, method: str, mark: str = "") -> str:
    before, after = (
        str(line.ranks[variant].get(method, "-")) for variant in ("reference", "corrected")
    )
    return before if before == after else f"{mark}{before} → {after}{mark}"


def change(line: Line) -> str:
    """One metric: who moves, and who passes whom whatever half of the clips one looks at."""
    before, after = line.ranks["reference"], line.ranks["corrected"]
    moves = ", ".join(
        f"{method} {before.get(method, '-')} → {after.get(method, '-')}"
        for method in sorted(before | after, key=lambda m: after.get(m, math.inf))
        if before.get(method) != after.get(method)
    )
    text = f"- {line.protocol} {line.metric}: {moves}."
    if not line.swaps:
        return f"{text} No swap: ties are made or broken, or a variant has no value."
    passing: dict[str, list[str]] = {}
    for passed, by in line.steady:
        passing.setdefault(by, []).append(passed)
    who = "; ".join(f"{by} passes {', '.join(passed)}" for by, passed in passing.items())
    return f"{text} Swaps: {len(line.swaps)}, in either half of the clips {len(line.steady)}{who and ': '}{who}."


def value_rows(line: Line, methods: Sequence[str]) -> Iterator[list[str]]:
    """A row for each variant, or one for both where the corrections change nothing."""
    name = f"{line.metric} {SIGN[line.best]}"
    cells = {
        variant: [_cell(by_method[m]) for m in (*methods, GROUND_TRUTH)]
        for variant, by_method in line.values.items()
    }
    if cells["reference"] == cells["corrected"]:
        yield [name, "both", *cells["reference"]]
    else:
        for variant, row in cells.items():
            yield [name, variant, *row]


def _ranks(metric: str, best: Best, values: Values) -> dict[str, dict[str, int]]:
    return {
        variant: ranks(
            {
                method: scores.get(metric)
                for method, scores in by_method.items()
                if method != GROUND_TRUTH
            },
            best,
            by_method[GROUND_TRUTH].get(metric),
        )
        for variant, by_method in values.items()
    }


def _table(heading: Sequence[str], rows: Iterator[list[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in [heading, ["---"] * len(heading), *rows]
    )


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
