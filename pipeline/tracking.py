"""MLflow: one parent run per recipe, a nested run per phase, metrics from whichever process measures them."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

logging.getLogger("alembic").setLevel(logging.ERROR)
logging.getLogger("mlflow").setLevel(logging.ERROR)


@dataclass(frozen=True)
class MetricLogger:
    """Logs to one MLflow run from any process; picklable, holds no connection.

    MLflow's `start_run(run_id=...)` would mark the shared run finished when a worker leaves it,
    so workers write through the client only.
    """

    uri: str
    run_id: str

    def log(self, metrics: dict[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        batch = [Metric(key, float(value), now, step) for key, value in metrics.items() if value is not None]
        MlflowClient(self.uri).log_batch(self.run_id, metrics=batch)


class TrackedRun:
    """An MLflow run that others can be nested in: a recipe's, or that of a part of it."""

    def __init__(self, client: MlflowClient, uri: str, experiment_id: str, run_id: str):
        self.client, self.uri, self.experiment_id, self.run_id = client, uri, experiment_id, run_id

    def log(self, metrics: dict[str, float], step: int = 0) -> None:
        MetricLogger(self.uri, self.run_id).log(metrics, step)

    def start_phase(self, name: str) -> MetricLogger:
        return MetricLogger(self.uri, self._nested(name))

    def end_phase(self, phase: MetricLogger, failed: bool) -> None:
        self.client.set_terminated(phase.run_id, "FAILED" if failed else "FINISHED")

    def part(self, name: str, run_id: str | None) -> TrackedRun:
        """A run nested in this one, for phases of its own; `run_id` continues an earlier one."""
        return TrackedRun(self.client, self.uri, self.experiment_id, run_id or self._nested(name))

    def end(self, failed: bool) -> None:
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), folder or path.name)
        else:
            self.client.log_artifact(self.run_id, str(path), folder)

    def _nested(self, name: str) -> str:
        tags = {MLFLOW_PARENT_RUN_ID: self.run_id}
        return self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id


class Tracker(TrackedRun):
    """The recipe's MLflow run.

    Args:
        uri: any MLflow URI, or None for SQLite in `directory.parent`.
        directory: the run directory (absolute); its name becomes the run name.
        run_id: an earlier run to continue, or None.
    """

    def __init__(self, uri: str | None, experiment: str, directory: Path, run_id: str | None, system_metrics: bool):
        uri = uri or f"sqlite:///{directory.parent / 'mlflow.db'}"
        os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "2")
        os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
        mlflow.set_tracking_uri(uri)
        client = MlflowClient(uri)
        if client.get_experiment_by_name(experiment) is None:
            # Absolute, because Ray workers run elsewhere; a server keeps artefacts where it was told to.
            location = (directory.parent / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
            client.create_experiment(experiment, artifact_location=location)
        mlflow.set_experiment(experiment)
        run = mlflow.start_run(run_id=run_id, run_name=None if run_id else directory.name,
                               log_system_metrics=system_metrics)
        super().__init__(client, uri, run.info.experiment_id, run.info.run_id)

    def log_params(self, params: dict[str, Any]) -> None:
        entries = [Param(key, str(value)[:500]) for key, value in params.items()]
        for start in range(0, len(entries), 100):
            self.client.log_batch(self.run_id, params=entries[start : start + 100])

    def close(self, failed: bool) -> None:
        mlflow.end_run("FAILED" if failed else "FINISHED")
