"""What a sweep came to: a table, `tune.json`, charts, `best.yaml`, the registered model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from ray import tune
from rich.console import Console
from rich.table import Table

from rapport.files import strict_json, write_atomic
from rapport.log import logger
from rapport.pipeline.config import to_yaml
from rapport.pipeline.report.sweep import (
    FINISHED,
    Outcome,
    parallel_chart,
    pareto_chart,
    response_chart,
)
from rapport.pipeline.rundir import Phase, PhaseResult, Run, RunError, found, phase
from rapport.pipeline.search_space import rounded, trial_name
from rapport.pipeline.settings import Judged
from rapport.pipeline.tracking import TrackedRun
from rapport.pipeline.tune_settings import Sweep


def outcome_of(result: tune.Result, config: Sweep) -> Outcome:
    """What Ray Tune says of a trial, as a line of the table; its number is yet to be given."""
    values = rounded(result.config or {})
    metrics = result.metrics or {}
    name = trial_name(values)
    verdict = metrics.get("verdict", {})
    if result.error is not None:
        error = str(result.error).strip().splitlines()[-1]
        return Outcome(0, name, values, status="failed", metrics=verdict, error=error)
    status: Literal["finished", "stopped"] = "stopped"
    if metrics["judgement"] == config.tune.judgements:
        status = "finished"
    return Outcome(
        0,
        name,
        values,
        status=status,
        metrics=verdict,
        policy=metrics["policy"],
        seconds=metrics["seconds"],
    )


def sorted_outcomes(outcomes: Iterable[Outcome], config: Sweep) -> list[Outcome]:
    """Each trial once, numbered: finished ones first, the best of them at the top."""
    metric = config.tune.metric
    sign = 1 if config.tune.mode == "min" else -1

    def place(outcome: Outcome) -> tuple[bool, float, str]:
        value = sign * outcome.metrics[metric] if metric in outcome.metrics else math.inf
        return outcome.status != FINISHED, value, outcome.name

    once = {outcome.name: outcome for outcome in outcomes}
    ordered = sorted(once.values(), key=place)
    return [replace(outcome, number=number) for number, outcome in enumerate(ordered, 1)]


def report(
    run: Run, config: Sweep, outcomes: Sequence[Outcome], baseline: Mapping[str, float]
) -> None:
    """Say and write what came out.

    Args:
        run: the sweep's.
        config: of the sweep.
        outcomes: in the order of the table.
        baseline: numbers of the policy that all start from.

    Raises:
        RunError: trials failed; raised at the end, the others are reported all the same.
    """
    show(config, outcomes, baseline)
    finished = [outcome for outcome in outcomes if outcome.status == FINISHED]
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    best = finished[0] if finished else None
    files = {"tune": _write_json(run, config, outcomes, baseline=baseline)}
    if best is not None:
        files["best"] = run.directory / "best.yaml"
        write_atomic(files["best"], to_yaml(reported(config.of_trial(dict(best.values)))))
        files |= write_charts(run, config, finished, baseline=baseline)
        run.summary["metrics"] |= {"baseline": dict(baseline), "best": dict(best.metrics)}
        run.leave({"best_policy": found(best.policy, run.directory)})
        run.tracker.log({f"best/{name}": value for name, value in best.metrics.items()})
    run.leave(files)
    run.summary["counts"] |= {"trials": len(outcomes), "failed_trials": len(failed)}
    for file in files.values():
        run.tracker.log_artifact(file)
    for outcome in outcomes:
        if outcome.status == "stopped":  # its process was ended, and could not say so itself
            run.tracker.outbox.call("end", _mlflow_run(run, outcome), status="KILLED")
    if failed:
        raise RunError(
            f"{len(failed)} of {len(outcomes)} trials failed, first {failed[0].name}: "
            f"{failed[0].error}\n"
            f"  The others are in {files['tune']}; --resume repeats the failed ones"
        )
    assert best is not None  # a scheduler lets some trial go on to its end
    logger.info(f"best: {best.name}; {config.subject} --config {files['best']}")
    if config.tune.model is not None:
        register(run, config.tune.model, best)


def reported(config: Judged) -> Judged:
    """The config of a run whose number is reported: on the split that no choice was made on."""
    held_out = config.evaluation.model_copy(update={"split": "test"})
    return config.model_copy(update={"evaluation": held_out})


def _write_json(
    run: Run, config: Sweep, outcomes: Sequence[Outcome], baseline: Mapping[str, float]
) -> Path:
    finished = [outcome.name for outcome in outcomes if outcome.status == FINISHED]
    content = {
        "subject": config.subject,
        "metric": config.tune.metric,
        "mode": config.tune.mode,
        "space": config.tune.space,
        "baseline": baseline,
        "best": finished[0] if finished else None,
        "trials": [asdict(outcome) for outcome in outcomes],
    }
    file = run.directory / "tune.json"
    write_atomic(file, strict_json(content, indent=2))
    return file


def register(run: Run, model: str, best: Outcome) -> None:
    """The best policy becomes the registered model's next version, from its trial's MLflow run."""
    trial = TrackedRun(run.tracker.outbox, run.tracker.experiment_id, _mlflow_run(run, best))
    _registered(run, trial, model, policy=found(best.policy, run.directory))


@phase("register")
def _registered(step: Phase, trial: TrackedRun, model: str, policy: Path) -> PhaseResult:
    trial.register(model, policy)
    step.say(f"{policy} is the next version of the MLflow model {model}")
    return PhaseResult(engines={"model": model})


def _mlflow_run(run: Run, outcome: Outcome) -> str:
    """Id of the trial's own MLflow run."""
    return (run.directory / "trials" / outcome.name / "mlflow_run_id").read_text()


def show(config: Sweep, outcomes: Iterable[Outcome], baseline: Mapping[str, float]) -> None:
    """The trials as a table on the terminal."""
    outcomes = list(outcomes)
    keys = list(config.tune.space)
    columns = list(dict.fromkeys([config.tune.metric, "kl", config.GUARD_METRIC]))
    table = Table(
        title=f"tune {config.subject}: {config.tune.metric}, {config.tune.mode}; kl = to where "
        "trials start"
    )
    for column in ("", *keys, "status", "seconds", *columns):
        table.add_column(column, justify="right")
    start = [cell(baseline, column) for column in columns]
    table.add_row("start", *("" for _ in keys), "", "", *start)
    for outcome in outcomes:
        values = [str(outcome.values[key]) for key in keys]
        numbers = [cell(outcome.metrics, column) for column in columns]
        table.add_row(
            str(outcome.number), *values, outcome.status, f"{outcome.seconds:.0f}", *numbers
        )
    Console(width=140).print(table)
    for outcome in outcomes:
        if outcome.error:
            logger.info(f"[tune] {outcome.name} failed: {outcome.error}")


def cell(metrics: Mapping[str, float], name: str) -> str:
    """A metric with its interval, where it has one."""
    if name not in metrics:
        return "-"
    ends = (f"{name}/low", f"{name}/high")
    bounds = [metrics[end] for end in ends if end in metrics]
    return f"{metrics[name]:.4g}" + (f" [{bounds[0]:.4g}, {bounds[1]:.4g}]" if bounds else "")


def write_charts(
    run: Run, config: Sweep, finished: Sequence[Outcome], baseline: Mapping[str, float]
) -> dict[str, Path]:
    """Response curve of each key, parallel coordinates, Pareto front, as SVG in `charts`.

    Args:
        run: the sweep's.
        config: of the sweep.
        finished: trials, the best one first.
        baseline: numbers of the policy that all start from.

    Returns:
        the file of each by name.
    """
    best = finished[0]
    metric = config.tune.metric
    guard = config.GUARD_METRIC
    keys = list(config.tune.space)
    charts: dict[str, Any] = {
        f"response_{key}": response_chart(
            key, trials=finished, metrics=[metric, "kl"], best=best, baseline=baseline
        )
        for key in keys
    }
    axes = list(dict.fromkeys(["kl", guard, metric]))
    charts["parallel"] = parallel_chart(keys, finished, metrics=axes, best=best)
    if guard != metric and guard in best.metrics:
        charts["pareto"] = pareto_chart(
            finished,
            cost=guard,
            metric=metric,
            mode=config.tune.mode,
            best=best,
            baseline=baseline,
        )
    folder = run.directory / "charts"
    folder.mkdir(exist_ok=True)
    files = {name: folder / f"{name}.svg" for name in charts}
    for name, file in files.items():
        write_atomic(file, charts[name])
    return files
