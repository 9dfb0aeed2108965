"""`bench SUBJECT`: measure speed against a baseline timed in the same run; writes bench.json."""

from __future__ import annotations

import importlib
import json

from rapport.actors.cluster import cluster
from rapport.pipeline.config import BenchConfig, flatten
from rapport.pipeline.rundir import Run, write_atomic


def run(config: BenchConfig, run: Run) -> None:
    subject = importlib.import_module(f"rapport.pipeline.bench.{config.subject}")
    with cluster(config.cluster.address, config.cluster.cpus):
        result = subject.measure(
            config, lambda text: print(f"[{config.subject}] {text}", flush=True)
        )
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
