"""`bench SUBJECT`: measure speed against a baseline timed in the same run; writes bench.json."""

from __future__ import annotations

import importlib
import json

from rapport.actors.cluster import cluster
from rapport.files import write_atomic
from rapport.log import logger
from rapport.pipeline.config import flatten
from rapport.pipeline.rundir import Run, RunError
from rapport.pipeline.settings import BenchConfig


def run(config: BenchConfig, run: Run) -> None:
    try:
        subject = importlib.import_module(f"rapport.pipeline.bench.{config.subject}")
    except ModuleNotFoundError as error:
        if error.name != "rapport.pipeline.bench":
            raise
        raise RunError("bench needs a checkout: its baselines are not in the package") from None
    with cluster(config.cluster.address, config.cluster.cpus):
        result = subject.measure(config, lambda text: logger.info(f"[{config.subject}] {text}"))
    file = run.directory / "bench.json"
    write_atomic(file, json.dumps({"subject": config.subject} | result, indent=2) + "\n")
    run.summary["metrics"] = result
    run.summary["artifacts"]["bench"] = str(file)
    run.tracker.log(
        {
            f"bench/{name}": value
            for name, value in flatten(result).items()
            if isinstance(value, (int, float))
        }
    )
    run.tracker.log_artifact(file)
