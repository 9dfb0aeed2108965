"""`bench SUBJECT`: measure speed against a baseline timed in the same run; writes bench.json."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from rapport.actors.cluster import cluster
from rapport.files import strict_json, write_atomic
from rapport.pipeline.config import flatten
from rapport.pipeline.rundir import Run, RunError


def run(config: Any, run: Run) -> None:
    """Measure one subject.

    Args:
        config: that of the subject (`rapport.pipeline.bench_settings`).
        run: takes bench.json.
    """
    bench = bench_of(config.subject)
    with cluster(config.cluster.address, config.cluster.cpus):
        result = bench.measure(config)
    file = run.directory / "bench.json"
    write_atomic(file, strict_json({"subject": config.subject} | result, indent=2) + "\n")
    run.summary["metrics"] = result
    run.leave({"bench": file})
    numbers = {
        f"bench/{name}": value
        for name, value in flatten(result).items()
        if isinstance(value, (int, float))
    }
    run.tracker.log(numbers)
    run.tracker.log_artifact(file)


def bench_of(subject: str) -> ModuleType:
    """The module that measures a subject.

    Raises:
        RunError: this is an installed package: the benches are in a checkout only.
    """
    try:
        return importlib.import_module(f"rapport.pipeline.bench.{subject}")
    except ModuleNotFoundError as error:
        if error.name != "rapport.pipeline.bench":
            raise
        raise RunError(
            "bench needs a checkout of the project: what it compares with is not in the package"
        ) from None
