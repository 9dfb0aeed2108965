"""The ranking of `rank`: on the terminal, as rank.md and rank.json, in MLflow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from rapport.files import strict_json, write_atomic
from rapport.pipeline.report.templates import render
from rapport.pipeline.rundir import Run
from rapport.pipeline.tracking import metric_key
from rapport.rewards.metrics.ranking import UNRANKED, Best, best_of, ranks, swaps

GROUND_TRUTH = "ground truth"
SIGN: dict[Best, str] = {"lowest": "↓", "highest": "↑", "nearest": "≈"}
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
        appropriate: whose reactions FRCorr and FRDist take for appropriate, in words.
        precisions: who calls listeners appropriate -> the share of them who are, by the hidden
            truth; empty where there is none.
        shares: method -> group -> the part of the spread that the speaker explains.
    """

    corpus: str
    layout: str
    clips: int
    frames: int
    samples: int
    values: Mapping[str, Mapping[str, Values]]
    left_out: Mapping[str, str]
    absent: Sequence[str]
    appropriate: str
    precisions: Mapping[str, float]
    shares: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class MetricRanking:
    """Methods as one metric ranks them.

    Args:
        values: variant -> method -> value, with the ground truth; None where there is none.
        ranks: variant -> method -> rank, without it.
        swaps: (a, b): a is ranked before b by the reference and behind b by the corrected metric.
        steady: those of `swaps` that either half of the clips shows by itself; the others may be
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


def metric_rankings(protocol: str, parts: Mapping[str, Values]) -> Iterator[MetricRanking]:
    """The ranking by each metric of a protocol.

    Args:
        protocol: its name.
        parts: part of the clips -> values; "all" is the one whose ranks count.
    """
    every = parts["all"]
    metrics = dict.fromkeys(metric for scores in every.values() for metric in scores[GROUND_TRUTH])
    for metric in metrics:
        if metric in UNRANKED:
            continue
        best = best_of(metric)
        ranks_by_part = {part: _ranks(metric, best, values) for part, values in parts.items()}
        swaps_by_part = {
            part: swaps(by_variant["reference"], by_variant["corrected"])
            for part, by_variant in ranks_by_part.items()
        }
        yield MetricRanking(
            protocol=protocol,
            metric=metric,
            best=best,
            values={variant: _values(metric, scores) for variant, scores in every.items()},
            ranks=ranks_by_part["all"],
            swaps=swaps_by_part["all"],
            steady=[
                pair
                for pair in swaps_by_part["all"]
                if all(pair in pairs for pairs in swaps_by_part.values())
            ],
        )


def write_ranking(ranking: Ranking, run: Run) -> None:
    """Ranks on the terminal; everything in the run folder; values in MLflow."""
    rankings = [
        by_metric
        for protocol, parts in ranking.values.items()
        for by_metric in metric_rankings(protocol, parts)
    ]
    methods = [method for method in rankings[0].values["reference"] if method != GROUND_TRUTH]
    _print(ranking, rankings, methods)
    write_atomic(run.directory / "rank.md", markdown(ranking, rankings, methods))
    about = {name: value for name, value in vars(ranking).items() if name != "values"}
    values = about | {"metrics": [asdict(by_metric) for by_metric in rankings]}
    write_atomic(run.directory / "rank.json", strict_json(values, indent=2) + "\n")
    for kind in ("md", "json"):
        file = run.directory / f"rank.{kind}"
        run.leave({f"rank_{kind}": file})
        run.tracker.log_artifact(file)
    run.summary["metrics"] = {
        "ranked_by": len(rankings),
        "ranking_changes": sum(by_metric.changed for by_metric in rankings),
        "order_changes": sum(bool(by_metric.swaps) for by_metric in rankings),
        "steady_order_changes": sum(bool(by_metric.steady) for by_metric in rankings),
    }
    run.summary["counts"] |= {"methods": len(methods), "clips": ranking.clips}
    run.tracker.log(run.summary["metrics"])
    for by_metric in rankings:
        run.tracker.log(
            {
                f"{by_metric.protocol}/{by_metric.metric}/{variant}/{metric_key(method)}": value
                for variant, by_method in by_metric.values.items()
                for method, value in by_method.items()
                if value is not None
            }
        )


def headline(rankings: Sequence[MetricRanking]) -> str:
    """How much the corrections change, in one sentence."""
    changed = sum(by_metric.changed for by_metric in rankings)
    swapped = sum(bool(by_metric.swaps) for by_metric in rankings)
    steady = sum(bool(by_metric.steady) for by_metric in rankings)
    return (
        f"{len(rankings)} metrics: the corrections change ranks in {changed}, swap methods in "
        f"{swapped}, in {steady} so that either half of the clips shows a swap by itself"
    )


def markdown(ranking: Ranking, rankings: Sequence[MetricRanking], methods: Sequence[str]) -> str:
    """Ranks, changes, values, and what is left out."""
    values: dict[str, list[list[str]]] = {protocol: [] for protocol in ranking.values}
    for by_metric in rankings:
        values[by_metric.protocol] += value_rows(by_metric, methods)
    return render(
        "rank.md.j2",
        ranking=ranking,
        headline=headline(rankings),
        methods=list(methods),
        ranks=[rank_row(by_metric, methods, mark="**") for by_metric in rankings],
        changes=[change(by_metric) for by_metric in rankings if by_metric.changed],
        values=values,
        ground_truth=GROUND_TRUTH,
        precisions=[[by, f"{value:.2f}"] for by, value in ranking.precisions.items()],
        groups=list(next(iter(ranking.shares.values()), {})),
        shares=[
            [method, *(_cell(value) for value in by_group.values())]
            for method, by_group in ranking.shares.items()
        ],
        left_out=[*ranking.absent, *(f"{name}: {why}" for name, why in ranking.left_out.items())],
    )


def rank_row(by_metric: MetricRanking, methods: Sequence[str], mark: str = "") -> list[str]:
    """A row of the table of ranks; ranks that change stand between two `mark`."""
    row = [f"{by_metric.protocol} {by_metric.metric}", SIGN[by_metric.best]]
    for method in methods:
        before = by_metric.ranks["reference"].get(method, "-")
        after = by_metric.ranks["corrected"].get(method, "-")
        row.append(str(before) if before == after else f"{mark}{before} → {after}{mark}")
    return row


def change(by_metric: MetricRanking) -> str:
    """One metric: who moves, and who passes whom whatever half of the clips one looks at."""
    before = by_metric.ranks["reference"]
    after = by_metric.ranks["corrected"]
    moves = ", ".join(
        f"{method} {before.get(method, '-')} → {after.get(method, '-')}"
        for method in sorted(before | after, key=lambda method: after.get(method, math.inf))
        if before.get(method) != after.get(method)
    )
    text = f"- {by_metric.protocol} {by_metric.metric}: {moves}."
    if not by_metric.swaps:
        return f"{text} No swap: ties are made or broken, or a variant has no value."
    passed_by: dict[str, list[str]] = {}
    for passed, method in by_metric.steady:
        passed_by.setdefault(method, []).append(passed)
    text += f" Swaps: {len(by_metric.swaps)}, in either half of the clips {len(by_metric.steady)}"
    passing = [f"{method} passes {', '.join(passed)}" for method, passed in passed_by.items()]
    return f"{text}: {'; '.join(passing)}." if passing else f"{text}."


def value_rows(by_metric: MetricRanking, methods: Sequence[str]) -> list[list[str]]:
    """A row for each variant, or one for both where the corrections change nothing."""
    name = f"{by_metric.metric} {SIGN[by_metric.best]}"
    cells = {
        variant: [_cell(by_method[method]) for method in (*methods, GROUND_TRUTH)]
        for variant, by_method in by_metric.values.items()
    }
    if cells["reference"] == cells["corrected"]:
        return [[name, "both", *cells["reference"]]]
    return [[name, variant, *row] for variant, row in cells.items()]


def _print(ranking: Ranking, rankings: Sequence[MetricRanking], methods: Sequence[str]) -> None:
    """Ranks, who is absent, and the headline, on the terminal."""
    table = Table(title=f"ranks on {ranking.clips} held-out clips: as published → corrected")
    for column in ("metric", ""):
        table.add_column(column)
    for column in methods:
        table.add_column(column, justify="right")
    for by_metric in rankings:
        table.add_row(*rank_row(by_metric, methods))
    console = Console(width=150)
    console.print(table)
    for text in (*ranking.absent, headline(rankings)):
        console.print(f"[rank] {text}", markup=False, highlight=False, soft_wrap=True)


def _ranks(metric: str, best: Best, values: Values) -> dict[str, dict[str, int]]:
    """Variant -> method -> rank."""
    by_variant = {}
    for variant, scores_by_method in values.items():
        by_method = {method: scores.get(metric) for method, scores in scores_by_method.items()}
        truth = by_method.pop(GROUND_TRUTH)
        by_variant[variant] = ranks(by_method, best, truth)
    return by_variant


def _values(
    metric: str, scores_by_method: Mapping[str, Mapping[str, float]]
) -> dict[str, float | None]:
    """Method -> value; None where there is none, also where it is not a number."""
    values = {method: scores.get(metric) for method, scores in scores_by_method.items()}
    return {m: None if v is None or math.isnan(v) else v for m, v in values.items()}


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
