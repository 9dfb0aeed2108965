"""MLflow: one parent run per recipe, a nested run per phase, metrics from whichever process
measures them.

A server that goes away in mid-run does not end the run: what it could not take is kept in the run
directory and delivered when it is back, at the end of the run or by `--resume`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from requests import RequestException

logging.getLogger("alembic").setLevel(logging.ERROR)
logging.getLogger("mlflow").setLevel(logging.ERROR)

OUTBOX = "mlflow_outbox.jsonl"
PAUSE_S = 30.0  # between attempts at a server that does not answer
LATER = "later-"  # prefix of the id of a run that the server could not create yet
REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "BAD_REQUEST",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
}  # answers, not silence: ours to mend
_silent_until: dict[str, float] = {}


class TrackingError(RuntimeError):
    """MLflow cannot be reached when a run starts."""


@dataclass(frozen=True)
class Outbox:
    """Calls that MLflow could not take, one JSON a line, in order. Picklable; any process may add
    to it.
    """

    uri: str
    path: Path

    def call(self, what: str, run_id: str, **arguments: Any) -> None:
        """Make the call, or keep it. Raises `MlflowException` when the server answers that the call
        is wrong.
        """
        if not run_id.startswith(LATER) and time.monotonic() >= _silent_until.get(self.uri, 0.0):
            try:
                _CALLS[what](MlflowClient(self.uri), run_id, **arguments)
                return
            except (MlflowException, RequestException, OSError) as error:
                self._note(error)
        with self.path.open("a") as lines:
            lines.write(json.dumps({"what": what, "run_id": run_id} | arguments) + "\n")

    def create(self, experiment_id: str, name: str, parent: str) -> str:
        """A nested run's id; one to be replaced later where the server cannot create it now."""
        if not parent.startswith(LATER) and time.monotonic() >= _silent_until.get(self.uri, 0.0):
            try:
                return _create(MlflowClient(self.uri), parent, experiment_id, name)
            except (MlflowException, RequestException, OSError) as error:
                self._note(error)
        placeholder = LATER + uuid.uuid4().hex
        with self.path.open("a") as lines:
            lines.write(
                json.dumps(
                    {
                        "what": "create",
                        "run_id": parent,
                        "experiment_id": experiment_id,
                        "name": name,
                        "placeholder": placeholder,
                    }
                )
                + "\n"
            )
        return placeholder

    def deliver(self) -> int:
        """Make the calls that are kept, until one fails again; returns how many are left."""
        if not self.path.is_file():
            return 0
        calls = [json.loads(line) for line in self.path.read_text().splitlines()]
        client, real, done = MlflowClient(self.uri), {}, 0
        try:
            for call in calls:
                what, run_id = call.pop("what"), call.pop("run_id")
                placeholder, run_id = call.pop("placeholder", None), real.get(run_id, run_id)
                if what == "create":
                    real[placeholder] = _create(client, run_id, **call)
                else:
                    _CALLS[what](client, run_id, **call)
                done += 1
        except (MlflowException, RequestException, OSError) as error:
            self._note(error)
        kept = self.path.read_text().splitlines()[done:]
        for placeholder, run_id in real.items():
            kept = [line.replace(placeholder, run_id) for line in kept]
        partial = self.path.with_name(self.path.name + ".tmp")
        partial.write_text("".join(line + "\n" for line in kept))
        os.replace(partial, self.path)
        if not kept:
            self.path.unlink()
        return len(kept)

    def _note(self, error: Exception) -> None:
        if getattr(error, "error_code", None) in REFUSALS:
            raise error
        if self.uri not in _silent_until:
            print(
                f"[mlflow] {self.uri} does not answer; the run goes on, {self.path} keeps what "
                "is to be sent",
                flush=True,
            )
        _silent_until[self.uri] = time.monotonic() + PAUSE_S


def _create(client: MlflowClient, parent: str, experiment_id: str, name: str) -> str:
    return client.create_run(
        experiment_id, run_name=name, tags={MLFLOW_PARENT_RUN_ID: parent}
    ).info.run_id


def _log_metrics(client: MlflowClient, run_id: str, metrics: list[list[Any]]) -> None:
    client.log_batch(run_id, metrics=[Metric(*metric) for metric in metrics])


def _log_artifact(client: MlflowClient, run_id: str, path: str, folder: str | None) -> None:
    if Path(path).is_dir():
        client.log_artifacts(run_id, path, folder or Path(path).name)
    else:
        client.log_artifact(run_id, path, folder)


def _log_params(client: MlflowClient, run_id: str, params: dict[str, str]) -> None:
    entries = [Param(*entry) for entry in params.items()]
    for start in range(0, len(entries), 100):
        client.log_batch(run_id, params=entries[start : start + 100])


def _register(client: MlflowClient, run_id: str, model: str, path: str) -> None:
    """`path`, a checkpoint folder, becomes an artefact of the run and the model's next version."""
    client.log_artifacts(run_id, path, "policy")
    with contextlib.suppress(MlflowException):  # it has earlier versions
        client.create_registered_model(model)
    client.create_model_version(model, f"{client.get_run(run_id).info.artifact_uri}/policy", run_id)


_CALLS = {
    "metrics": _log_metrics,
    "params": _log_params,
    "register": _register,
    "artifact": _log_artifact,
    "end": lambda client, run_id, status: client.set_terminated(run_id, status),
}


@dataclass(frozen=True)
class MetricLogger:
    """Logs to one MLflow run from any process; picklable, holds no connection.

    MLflow's `start_run(run_id=...)` would mark the shared run finished when a worker leaves it,
    so workers write through the client only.
    """

    outbox: Outbox
    run_id: str

    def log(self, metrics: dict[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        batch = [
            [key, float(value), now, step] for key, value in metrics.items() if value is not None
        ]
        self.outbox.call("metrics", self.run_id, metrics=batch)


class TrackedRun:
    """An MLflow run that others can be nested in: a recipe's, or that of a part of it."""

    def __init__(self, outbox: Outbox, experiment_id: str, run_id: str):
        self.outbox, self.experiment_id, self.run_id = outbox, experiment_id, run_id

    @property
    def uri(self) -> str:
        return self.outbox.uri

    def log(self, metrics: dict[str, float], step: int = 0) -> None:
        MetricLogger(self.outbox, self.run_id).log(metrics, step)

    def log_params(self, params: dict[str, Any]) -> None:
        self.outbox.call(
            "params", self.run_id, params={key: str(value)[:500] for key, value in params.items()}
        )

    def start_phase(self, name: str) -> MetricLogger:
        return MetricLogger(self.outbox, self.outbox.create(self.experiment_id, name, self.run_id))

    def end_phase(self, phase: MetricLogger, failed: bool) -> None:
        self.outbox.call("end", phase.run_id, status=_status(failed))

    def part(self, name: str, run_id: str | None) -> TrackedRun:
        """A run nested in this one, for phases of its own; `run_id` continues an earlier one."""
        if run_id is None or run_id.startswith(LATER):
            run_id = self.outbox.create(self.experiment_id, name, self.run_id)
        return TrackedRun(self.outbox, self.experiment_id, run_id)

    def end(self, failed: bool) -> None:
        self.outbox.call("end", self.run_id, status=_status(failed))

    def register(self, model: str, checkpoint: Path) -> None:
        """Keep a checkpoint folder with this run, as the next version of a registered model."""
        self.outbox.call("register", self.run_id, model=model, path=str(checkpoint))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self.outbox.call("artifact", self.run_id, path=str(path), folder=folder)


class Tracker(TrackedRun):
    """The recipe's MLflow run.

    Args:
        uri: any MLflow URI, or None for SQLite in `directory.parent`.
        directory: the run directory (absolute); its name becomes the run name.
        run_id: an earlier run to continue, or None.
    """

    def __init__(
        self,
        uri: str | None,
        experiment: str,
        directory: Path,
        run_id: str | None,
        system_metrics: bool,
    ):
        uri = uri or f"sqlite:///{directory.parent / 'mlflow.db'}"
        os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "2")
        os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
        os.environ.setdefault(
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"
        )  # the default waits for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        mlflow.set_tracking_uri(uri)
        try:
            client = MlflowClient(uri)
            if client.get_experiment_by_name(experiment) is None:
                # Absolute, because Ray workers run elsewhere; a server keeps artefacts where it was
                # told to.
                location = (
                    (directory.parent / "mlartifacts").as_uri()
                    if uri.startswith("sqlite")
                    else None
                )
                client.create_experiment(experiment, artifact_location=location)
            mlflow.set_experiment(experiment)
            run = mlflow.start_run(
                run_id=run_id,
                run_name=None if run_id else directory.name,
                log_system_metrics=system_metrics,
            )
        except MlflowException as error:
            raise TrackingError(
                f"tracking.uri={uri}: {error}\n  Start that server, or leave tracking.uri empty "
                "for SQLite."
            ) from error
        super().__init__(Outbox(uri, directory / OUTBOX), run.info.experiment_id, run.info.run_id)
        self.client = client
        self.outbox.deliver()

    def close(self, failed: bool) -> None:
        left = self.outbox.deliver()
        try:
            mlflow.end_run(_status(failed))
        except (MlflowException, RequestException):
            self.end(failed)
            left += 1
        if left:
            print(
                f"[mlflow] {self.uri} lacks the last {left} entries of this run, they are in "
                f"{self.outbox.path}; "
                "--resume delivers them",
                flush=True,
            )


def _status(failed: bool) -> str:
    return "FAILED" if failed else "FINISHED"


def metric_key(name: str) -> str:
    """A method's name as MLflow takes it within the name of a metric."""
    return name.replace(" + ", "_").replace(" ", "_").lower()
