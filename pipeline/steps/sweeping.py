"""A sweep's search: Ray Tune starts trials, this process judges the policies that they hand in.

A trial is a process of its own with its own learners; one that fails takes nothing else with it.
Its policies are judged here, one after the other, because here is the one fleet that the sweep has.
"""

from __future__ import annotations

import fcntl
import itertools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from rapport import log
from rapport.actors.cluster import ClusterError
from rapport.actors.learner import Milestones
from rapport.actors.mailbox import open_mailbox
from rapport.files import strict_json, write_atomic
from rapport.pipeline.rundir import Phase, PhaseResult, Run, RunError, Workspace, noted, phase
from rapport.pipeline.search_space import grid_points, rounded, trial_name
from rapport.pipeline.steps.trials import Trials
from rapport.pipeline.tracking import TrackedRun
from rapport.pipeline.tune_settings import Sweep, TuneConfig

TRIAL_CPUS = 0.01  # of the process that waits for its learners
JudgePolicy = Callable[[Path], dict[str, float]]


@phase("baseline")
def judge_start(step: Phase, verdict: JudgePolicy, start: Path) -> PhaseResult:
    """The policy that all trials start from."""
    return PhaseResult(value=verdict(start))


def require_metric(config: Sweep, baseline: Mapping[str, float]) -> None:
    """Raise `RunError` where nothing is called like the metric that decides."""
    if config.tune.metric not in baseline:
        names = [name for name in baseline if not name.endswith(("/low", "/high"))]
        raise RunError(
            f"tune.metric={config.tune.metric} is not among what this corpus and head give: "
            f"{', '.join(names)}"
        )


def require_room(config: Sweep, demand: Mapping[str, float]) -> None:
    """Raise `RunError` where the trials that learn at once find no room beside the fleet.

    Half of each would find a place, and all would wait for ever.
    """
    if not config.cluster.preflight:
        return  # a cluster that grows on demand
    free = ray.available_resources()
    count = config.tune.concurrent
    for kind, amount in {**demand, "CPU": demand["CPU"] + TRIAL_CPUS}.items():
        if count * amount > free.get(kind, 0.0) + 1e-6:
            raise RunError(
                f"tune.concurrent={count} trials need {count} x {amount:g} {kind}s, "
                f"{free.get(kind, 0.0):g} are free beside the fleet: fewer trials at once, or "
                "smaller shares (the `workers`, `world_size` and `cpus` keys); "
                "cluster.preflight=false for a cluster that grows on demand"
            )


def trial_count(config: TuneConfig) -> int:
    """How many trials there will be."""
    if config.search == "grid":
        return len(list(grid_points(config.domains)))
    return config.trials


def search(run: Run, config: Sweep, trials: Trials, verdict: JudgePolicy) -> list[tune.Result]:
    """Run all trials, or those that an earlier run of this sweep left undone."""
    mailbox = open_mailbox()
    root = trials_workspace(run)
    context = TrialContext(config, trials, root=root, mailbox=mailbox)

    def trial(values: dict[str, Any]) -> None:
        run_trial(rounded(values), context)

    results = served(tuner(config, trial, run.directory).fit, mailbox, verdict)
    return [results[index] for index in range(len(results))]


def trials_workspace(run: Run) -> Workspace:
    """Where trials run, in whichever process: their folders, within the sweep's MLflow run."""
    root = Workspace(run.config, run.directory / "trials", run.root)
    root.directory.mkdir(exist_ok=True)
    root.mirror = run.mirror
    root.tracker = TrackedRun(run.tracker.outbox, run.tracker.experiment_id, run.tracker.run_id)
    return root


@dataclass(frozen=True)
class TrialContext:
    """What a trial is given beside its values. Picklable.

    Args:
        config: of the sweep.
        trials: what a trial does.
        root: where trials run.
        mailbox: takes the policies that are to be judged.
    """

    config: Sweep
    trials: Trials
    root: Workspace
    mailbox: Any


def run_trial(values: Mapping[str, Any], context: TrialContext) -> None:
    """Align and be judged, in the trial's own process.

    What an earlier run of the sweep did is not done again.
    """
    log.show()
    config = context.config.of_trial(dict(values))
    sweep = context.config.tune
    name = trial_name(values)
    numbers = itertools.count(1)
    with alone(context.root.directory / name), context.root.part(name, config) as part:
        part.tracker.log_params(dict(values))

        def judge(policy: Path, number: int) -> None:
            judged = _judged(
                part, context.mailbox, policy, timeout_s=sweep.timeout_s, round_index=number
            )
            part.tracker.log(judged.value, number)
            tune.report(
                {
                    sweep.metric: judged.value[sweep.metric],
                    "judgement": number,
                    "verdict": judged.value,
                    "policy": noted(policy, part.root),
                    "seconds": sum(part.summary["timings_s"].values()),
                }
            )

        milestones = Milestones(sweep.judgements, lambda policy: judge(policy, next(numbers)))
        policy = context.trials.learn(config, part, milestones)
        judge(policy, sweep.judgements)
        write_atomic(part.directory / "summary.json", strict_json(part.summary, indent=2))


@phase("judge")
def _judged(
    step: Phase, mailbox: Any, policy: Path, *, timeout_s: float, round_index: int
) -> PhaseResult:
    return PhaseResult(value=ask(mailbox, policy, timeout_s))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """A trial of the same values waits here, then finds everything done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ask(mailbox: Any, policy: Path, timeout_s: float) -> dict[str, float]:
    """The sweep's verdict of a policy. Raises `ClusterError` when it takes too long."""
    try:
        return ray.get(mailbox.ask.remote(str(policy)), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        raise ClusterError(
            f"{policy} was not judged within tune.timeout_s={timeout_s:g} s, its wait for other "
            "trials included; raise it or lower tune.concurrent"
        ) from None


def served(fit: Callable[[], Any], mailbox: Any, verdict: JudgePolicy) -> Any:
    """The result of `fit`, while policies that trials hand in are judged here.

    Args:
        fit: runs in a thread.
        mailbox: takes the policies.
        verdict: judges one.
    """
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            outcome.set_result(fit())
        except Exception as error:  # raised again by outcome.result()
            outcome.set_exception(error)

    Thread(target=work, daemon=True).start()
    while not outcome.done():
        for policy in ray.get(mailbox.take.remote(0.5), timeout=60):
            try:
                answer = verdict(Path(policy))
            except Exception as error:  # the trial's to report
                text = f"{type(error).__name__} in judging {policy}: {error}"
                mailbox.reply.remote(error=RuntimeError(text))
            else:
                mailbox.reply.remote(answer)
    return outcome.result()


def tuner(config: Sweep, trial: Callable[[dict[str, Any]], None], directory: Path) -> tune.Tuner:
    """A new sweep, or the one that `directory` holds.

    Of the latter, finished trials stay, failed and unfinished ones are repeated.
    """
    # The placement groups of learners lie outside that of their trial, so their number is limited
    # here.
    resourced = tune.with_resources(trial, {"CPU": TRIAL_CPUS})
    folder = directory / "tune"
    sweep = config.tune
    if tune.Tuner.can_restore(str(folder)):
        return tune.Tuner.restore(
            str(folder), resourced, resume_unfinished=True, restart_errored=True
        )
    grid = sweep.search == "grid"
    space = {
        key: tune.grid_search(list(domain.values)) if grid else domain.sampler()
        for key, domain in sweep.domains.items()
    }
    return tune.Tuner(
        resourced,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode=sweep.mode,
            num_samples=1 if grid else sweep.trials,
            max_concurrent_trials=sweep.concurrent,
            scheduler=scheduler(sweep),
            search_alg=searcher(config),
            # Saves imports; a trial that is stopped must take its learners with it.
            reuse_actors=sweep.scheduler == "none",
        ),
        run_config=tune.RunConfig(name=folder.name, storage_path=str(directory), verbose=0),
    )


def scheduler(config: TuneConfig) -> Any:
    """What ends trials early, if anything."""
    if config.scheduler == "none":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="judgement", max_t=config.judgements, grace_period=1, reduction_factor=2
    )


def searcher(config: Sweep) -> Any:
    """What chooses the values of trials."""
    if config.tune.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(seed=config.seed)
    return BasicVariantGenerator(max_concurrent=config.tune.concurrent, random_state=config.seed)
