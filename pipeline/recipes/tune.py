"""`tune SUBJECT`: Ray Tune over keys of a recipe. Trials share all that does not depend on what is
swept.

A trial is a process of its own that runs the recipe's alignment with its own learners; the driver
judges the policies of all trials, one after the other, with the one fleet it keeps. So an alignment
and a judgement are all that a trial costs, and one that fails takes nothing else with it."""

from __future__ import annotations

import fcntl
import importlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from rich.console import Console
from rich.table import Table

from rapport.actors.cluster import ClusterError, cluster
from rapport.actors.learner import Milestones
from rapport.actors.mailbox import Mailbox
from rapport.pipeline.config import to_yaml
from rapport.pipeline.report.sweep import (
    FINISHED,
    Outcome,
    parallel_chart,
    pareto_chart,
    response_chart,
)
from rapport.pipeline.rundir import Phase, Run, RunError, Workspace, write_atomic
from rapport.pipeline.search_space import grid_points, rounded, trial_name
from rapport.pipeline.tracking import TrackedRun
from rapport.pipeline.tune_config import Sweep, TuneConfig

TRIAL_CPUS = 0.01  # of the process that waits for its learners


def run(config: Sweep, run: Run) -> None:
    subject = importlib.import_module(f"rapport.pipeline.recipes.tune_{config.subject}")
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        print(f"  {where}", flush=True)
        with subject.shared(config, run) as (trials, verdict):
            baseline = run.once("baseline", lambda phase: {"verdict": verdict(trials.start)})[
                "verdict"
            ]
            require_metric(config, baseline)
            require_room(config, trials.demand(config))
            mailbox, root = Mailbox.remote(), trials_workspace(run)
            t = config.tune
            print(
                f"[tune] {trial_count(t)} trials by {t.search} search, {t.concurrent} at a time: "
                f"{', '.join(f'{key}={form}' for key, form in t.space.items())}",
                flush=True,
            )

            def trial(values: dict[str, Any]) -> None:
                run_trial(rounded(values), config, trials, root, mailbox)

            results = served(tuner(config, trial, run.directory).fit, mailbox, verdict)
    outcomes = sorted_outcomes([outcome_of(result, config) for result in results], config)
    report(outcomes, baseline, subject.COST, config, run)


def trials_workspace(run: Run) -> Workspace:
    """Where trials run, in whichever process: their folders, within the sweep's MLflow run."""
    root = Workspace(run.config, run.directory / "trials")
    root.directory.mkdir(exist_ok=True)
    root.mirror = run.mirror
    root.tracker = TrackedRun(run.tracker.outbox, run.tracker.experiment_id, run.tracker.run_id)
    return root


def run_trial(
    values: dict[str, Any], config: Sweep, trials: Any, root: Workspace, mailbox: Any
) -> None:
    """Align and be judged, in the trial's own process; what an earlier run of the sweep did is not
    done again.
    """
    name, settings = trial_name(values), config.of_trial(values)
    numbers = itertools.count(1)
    with alone(root.directory / name), root.part(name, settings) as part:
        part.tracker.log_params(values)

        def judge(policy: Path, number: int) -> None:
            judged = part.once(
                "judge", lambda _: {"verdict": ask(mailbox, policy, config.tune.timeout_s)}, number
            )
            part.tracker.log(judged["verdict"], number)
            tune.report(
                {
                    config.tune.metric: judged["verdict"][config.tune.metric],
                    "judgement": number,
                    "verdict": judged["verdict"],
                    "policy": str(policy),
                    "seconds": sum(part.summary["timings_s"].values()),
                }
            )

        milestones = Milestones(config.tune.judgements, lambda policy: judge(policy, next(numbers)))
        policy = trials.learn(settings, part, milestones)
        judge(policy, config.tune.judgements)
        write_atomic(part.directory / "summary.json", json.dumps(part.summary, indent=2))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A trial of the same values waits here, then finds everything done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ask(mailbox: Any, policy: Path, timeout_s: float) -> dict[str, float]:
    try:
        return ray.get(mailbox.ask.remote(str(policy)), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        raise ClusterError(
            f"{policy} was not judged within tune.timeout_s={timeout_s:g} s, its wait for other "
            "trials "
            "included; raise it or lower tune.concurrent"
        ) from None


def served(
    fit: Callable[[], Any], mailbox: Any, verdict: Callable[[Path], dict[str, float]]
) -> Any:
    """The result of `fit`, which runs in a thread, while policies that trials hand in are judged
    here.
    """
    outcome: Future = Future()

    def work() -> None:
        try:
            outcome.set_result(fit())
        except Exception as error:  # raised again by outcome.result()
            outcome.set_exception(error)

    Thread(target=work, daemon=True).start()
    while not outcome.done():
        for policy in ray.get(mailbox.take.remote(0.5)):
            try:
                answer = verdict(Path(policy))
            except Exception as error:  # the trial's to report
                mailbox.reply.remote(
                    error=RuntimeError(f"{type(error).__name__} in judging {policy}: {error}")
                )
            else:
                mailbox.reply.remote(answer)
    return outcome.result()


def tuner(config: Sweep, trial: Callable[[dict[str, Any]], None], directory: Path) -> tune.Tuner:
    """A new sweep, or the one that `directory` holds: finished trials stay, failed and unfinished
    ones are repeated.
    """
    # The placement groups of learners lie outside that of their trial, so their number is limited
    # here.
    resourced = tune.with_resources(trial, {"CPU": TRIAL_CPUS})
    folder, t = directory / "tune", config.tune
    if tune.Tuner.can_restore(str(folder)):
        return tune.Tuner.restore(
            str(folder), resourced, resume_unfinished=True, restart_errored=True
        )
    grid = t.search == "grid"
    space = {
        key: tune.grid_search(list(domain.values)) if grid else domain.sampler()
        for key, domain in t.domains.items()
    }
    scheduler = (
        ASHAScheduler(time_attr="judgement", max_t=t.judgements, grace_period=1, reduction_factor=2)
        if t.scheduler == "asha"
        else FIFOScheduler()
    )
    return tune.Tuner(
        resourced,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=t.metric,
            mode=t.mode,
            num_samples=1 if grid else t.trials,
            max_concurrent_trials=t.concurrent,
            scheduler=scheduler,
            search_alg=searcher(config),
            # Saves imports; a trial that is stopped must take its learners with it.
            reuse_actors=t.scheduler == "none",
        ),
        run_config=tune.RunConfig(name=folder.name, storage_path=str(directory), verbose=0),
    )


def trial_count(config: TuneConfig) -> int:
    return len(list(grid_points(config.domains))) if config.search == "grid" else config.trials


def searcher(config: Sweep) -> Any:
    if config.tune.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(seed=config.seed)
    return BasicVariantGenerator(max_concurrent=config.tune.concurrent, random_state=config.seed)


def require_metric(config: Sweep, baseline: Mapping[str, float]) -> None:
    if config.tune.metric not in baseline:
        raise RunError(
            f"tune.metric={config.tune.metric} is not among what this corpus and head give: "
            f"{', '.join(name for name in baseline if not name.endswith(('/low', '/high')))}"
        )


def require_room(config: Sweep, demand: Mapping[str, float]) -> None:
    """All trials that learn at once must find room beside the fleet: half a trial each would wait
    for ever.
    """
    if not config.cluster.preflight:
        return  # a cluster that grows on demand
    free, count = ray.available_resources(), config.tune.concurrent
    for kind, amount in (demand | {"CPU": demand["CPU"] + TRIAL_CPUS}).items():
        if count * amount > free.get(kind, 0.0) + 1e-6:
            raise RunError(
                f"tune.concurrent={count} trials need {count} x {amount:g} {kind}s, "
                f"{free.get(kind, 0.0):g} are free "
                "beside the fleet: fewer trials at once, or smaller shares (the `workers`, "
                "`world_size` and `cpus` "
                "keys); cluster.preflight=false for a cluster that grows on demand"
            )


def outcome_of(result: tune.Result, config: Sweep) -> Outcome:
    values, metrics = rounded(result.config), result.metrics or {}
    name, verdict = trial_name(values), metrics.get("verdict", {})
    if result.error is not None:
        return Outcome(
            0, name, values, "failed", verdict, error=str(result.error).strip().splitlines()[-1]
        )
    status = FINISHED if metrics["judgement"] == config.tune.judgements else "stopped"
    return Outcome(0, name, values, status, verdict, metrics["policy"], metrics["seconds"])


def sorted_outcomes(outcomes: Sequence[Outcome], config: Sweep) -> list[Outcome]:
    """Each trial once, numbered: finished ones first, the best of them at the top."""
    sign, metric = 1 if config.tune.mode == "min" else -1, config.tune.metric

    def place(o: Outcome) -> tuple[bool, float, str]:
        return (
            o.status != FINISHED,
            sign * o.metrics[metric] if metric in o.metrics else math.inf,
            o.name,
        )

    ordered = sorted({outcome.name: outcome for outcome in outcomes}.values(), key=place)
    return [Outcome(**vars(o) | {"number": i}) for i, o in enumerate(ordered, 1)]


def report(
    outcomes: Sequence[Outcome], baseline: Mapping[str, float], cost: str, config: Sweep, run: Run
) -> None:
    """Table, `tune.json`, charts, `best.yaml`, the registered model. Raises `RunError` at the end
    if trials failed.
    """
    failed = [o for o in outcomes if o.status == "failed"]
    finished = [o for o in outcomes if o.status == FINISHED]
    show(outcomes, baseline, cost, config)
    t, best = config.tune, finished[0] if finished else None
    write_atomic(
        run.directory / "tune.json",
        json.dumps(
            {
                "subject": config.subject,
                "metric": t.metric,
                "mode": t.mode,
                "space": t.space,
                "baseline": baseline,
                "best": best and best.name,
                "trials": [asdict(o) for o in outcomes],
            },
            indent=2,
        ),
    )
    files = {"tune": run.directory / "tune.json"}
    if best is not None:
        write_atomic(run.directory / "best.yaml", to_yaml(config.of_trial(dict(best.values))))
        files |= {"best": run.directory / "best.yaml"} | write_charts(
            finished, best, baseline, cost, config, run
        )
        run.summary["metrics"] |= {"baseline": dict(baseline), "best": dict(best.metrics)}
        run.summary["artifacts"]["best_policy"] = best.policy
        run.tracker.log({f"best/{name}": value for name, value in best.metrics.items()})
    run.summary["artifacts"] |= {name: str(file) for name, file in files.items()}
    run.summary["counts"] |= {"trials": len(outcomes), "failed_trials": len(failed)}
    for file in files.values():
        run.tracker.log_artifact(file)
    for outcome in outcomes:
        if outcome.status == "stopped":  # its process was ended
            child = (run.directory / "trials" / outcome.name / "mlflow_run_id").read_text()
            run.tracker.outbox.call("end", child, status="KILLED")
    if failed:
        raise RunError(
            f"{len(failed)} of {len(outcomes)} trials failed, first {failed[0].name}: "
            f"{failed[0].error}\n  "
            f"The others are in {run.directory / 'tune.json'}; --resume repeats the failed ones"
        )
    print(f"best: {best.name}; {config.subject} --config {files['best']}", flush=True)
    if t.model is not None:
        run.once("register", lambda phase: register(t.model, best, phase, run))


def register(model: str, best: Outcome, phase: Phase, run: Run) -> dict[str, Any]:
    """The best policy becomes the registered model's next version, from the trial's own MLflow run."""
    child = (run.directory / "trials" / best.name / "mlflow_run_id").read_text()
    TrackedRun(run.tracker.outbox, run.tracker.experiment_id, child).register(
        model, Path(best.policy)
    )
    phase.say(f"{best.policy} is the next version of the MLflow model {model}")
    return {"engines": {"model": model}}


def show(
    outcomes: Sequence[Outcome], baseline: Mapping[str, float], cost: str, config: Sweep
) -> None:
    keys, columns = list(config.tune.space), list(dict.fromkeys([config.tune.metric, "kl", cost]))
    table = Table(
        title=f"tune {config.subject}: {config.tune.metric}, {config.tune.mode}; kl = to where trials start"
    )
    for column in ("", *keys, "status", "seconds", *columns):
        table.add_column(column, justify="right")
    table.add_row(
        "start", *["" for _ in keys], "", "", *(cell(baseline, column) for column in columns)
    )
    for o in outcomes:
        table.add_row(
            str(o.number),
            *(str(o.values[key]) for key in keys),
            o.status,
            f"{o.seconds:.0f}",
            *(cell(o.metrics, column) for column in columns),
        )
    Console(width=140).print(table)
    for o in outcomes:
        if o.error:
            print(f"[tune] {o.name} failed: {o.error}", flush=True)


def cell(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "-"
    bounds = [metrics[f"{name}/{end}"] for end in ("low", "high") if f"{name}/{end}" in metrics]
    return f"{metrics[name]:.4g}" + (f" [{bounds[0]:.4g}, {bounds[1]:.4g}]" if bounds else "")


def write_charts(
    finished: Sequence[Outcome],
    best: Outcome,
    baseline: Mapping[str, float],
    cost: str,
    config: Sweep,
    run: Run,
) -> dict[str, Path]:
    """Response curve of each key, parallel coordinates, Pareto front, as SVG in `charts`; name ->
    file.
    """
    t, keys = config.tune, list(config.tune.space)
    outcome_metrics = list(dict.fromkeys(["kl", cost, t.metric]))
    charts = {
        f"response_{key}": response_chart(key, finished, [t.metric, "kl"], best, baseline)
        for key in keys
    }
    charts["parallel"] = parallel_chart(keys, finished, outcome_metrics, best)
    if cost != t.metric and cost in best.metrics:
        charts["pareto"] = pareto_chart(finished, cost, t.metric, t.mode, best, baseline)
    (run.directory / "charts").mkdir(exist_ok=True)
    files = {name: run.directory / "charts" / f"{name}.svg" for name in charts}
    for name, file in files.items():
        write_atomic(file, charts[name])
    return files
