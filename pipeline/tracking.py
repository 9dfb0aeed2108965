"""MLflow: one parent run for a recipe, a nested run for each phase.

Metrics come from whichever process measures them. A server that goes away in mid-run does not end
the run: calls that it could not take are kept in the run directory, in an outbox, and made when it
is back, at the end of the run or by `--resume`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from requests import RequestException

from rapport.files import write_atomic
from rapport.log import logger

logging.getLogger("alembic").setLevel(logging.ERROR)
logging.getLogger("mlflow").setLevel(logging.ERROR)

OUTBOX = "mlflow_outbox.jsonl"
SETUP_S = 120.0  # at most, for another process to set up a database
PAUSE_S = 30.0  # between attempts at a server that does not answer
LATER = "later-"  # prefix of the id of a run that the server could not create yet
CANDIDATE = "candidate"  # alias of a model's newest version; people choose the champion
# Codes of answers that refuse a call. They are our mistakes and raise; anything else is taken for a
# server that is away.
REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "BAD_REQUEST",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
}
_FAILURES = (MlflowException, RequestException, OSError)
_silent_until: dict[str, float] = {}


class TrackingError(RuntimeError):
    """MLflow cannot be reached when a run starts."""


@dataclass(frozen=True)
class Outbox:
    """Calls that MLflow could not take, one JSON a line, in order.

    It can be pickled, and any process may add to it.

    Args:
        uri: of MLflow.
        path: of the file; there is none while nothing is kept.
    """

    uri: str
    path: Path

    def call(self, what: str, run_id: str, **arguments: Any) -> None:
        """Make a call about a run, or keep it.

        Args:
            what: a key of `_CALLS`.
            run_id: of the run, also one that the server has not created yet.
            **arguments: of that call, as JSON.

        Raises:
            MlflowException: the server answers that the call is wrong.
        """
        if self._may_answer(run_id):
            try:
                _CALLS[what](MlflowClient(self.uri), run_id, **arguments)
                return
            except _FAILURES as error:
                self._note(error)
        self._keep({"what": what, "run_id": run_id} | arguments)

    def create(self, experiment_id: str, name: str, parent: str) -> str:
        """A nested run's id; one to be replaced later where the server cannot create it now."""
        if self._may_answer(parent):
            try:
                return _create(MlflowClient(self.uri), parent, experiment_id, name=name)
            except _FAILURES as error:
                self._note(error)
        placeholder = LATER + uuid.uuid4().hex
        self._keep(
            {
                "what": "create",
                "run_id": parent,
                "experiment_id": experiment_id,
                "name": name,
                "placeholder": placeholder,
            }
        )
        return placeholder

    def knows(self, run_id: str) -> bool:
        """Whether a run of an earlier process can be continued."""
        if run_id.startswith(LATER):
            return False
        try:
            return _knows(MlflowClient(self.uri), run_id)
        except _FAILURES:
            return True  # it does not answer: what is said of the run is kept for it

    def deliver(self) -> int:
        """Make the calls that are kept, until one fails again; returns how many are left."""
        if not self.path.is_file():
            return 0
        calls = [json.loads(line) for line in self.path.read_text().splitlines()]
        client = MlflowClient(self.uri)
        created: dict[str, str] = {}  # placeholder -> id of the run
        done = 0
        try:
            for call in calls:
                what = call.pop("what")
                run_id = call.pop("run_id")
                run_id = created.get(run_id, run_id)
                if what == "create":
                    placeholder = call.pop("placeholder")
                    created[placeholder] = _create(client, run_id, **call)
                else:
                    _CALLS[what](client, run_id, **call)
                done += 1
        except _FAILURES as error:
            self._note(error)
        # Read again, as another process may have added calls meanwhile.
        kept = self.path.read_text().splitlines()[done:]
        for placeholder, run_id in created.items():
            kept = [line.replace(placeholder, run_id) for line in kept]
        if kept:
            write_atomic(self.path, "".join(line + "\n" for line in kept))
        else:
            self.path.unlink()
        return len(kept)

    def forget(self) -> str:
        """Drop what is kept of a run that MLflow has lost; says how much it was."""
        if not self.path.is_file():
            return ""
        count = len(self.path.read_text().splitlines())
        self.path.unlink()
        return f"; {count} entries that were kept for the old one are dropped"

    def _may_answer(self, run_id: str) -> bool:
        """Whether to try: the server knows the run, and was not found silent a moment ago."""
        silent = time.monotonic() < _silent_until.get(self.uri, 0.0)
        return not run_id.startswith(LATER) and not silent

    def _keep(self, call: dict[str, Any]) -> None:
        with self.path.open("a") as lines:
            lines.write(json.dumps(call) + "\n")

    def _note(self, error: Exception) -> None:
        """Leave a silent server alone for a while. Raises the error where it is a refusal."""
        if getattr(error, "error_code", None) in REFUSALS:
            raise error
        if self.uri not in _silent_until:
            logger.warning(
                f"[mlflow] {self.uri} does not answer; the run goes on, {self.path} keeps what "
                "is to be sent"
            )
        _silent_until[self.uri] = time.monotonic() + PAUSE_S


def _client(uri: str, experiment: str, folder: Path) -> MlflowClient:
    """MLflow with the experiment in it.

    A database is set up by one process at a time: several at once break it.

    Args:
        uri: of MLflow.
        experiment: its name; it is created where there is none.
        folder: of a local database's artefacts.
    """
    local = uri.startswith("sqlite")
    alone = FileLock(folder / ".mlflow.lock", timeout=SETUP_S) if local else nullcontext()
    with alone:
        client = MlflowClient(uri)
        if client.get_experiment_by_name(experiment) is None:
            # Absolute, because Ray workers run in other folders; a server has its own place.
            location = (folder / "mlartifacts").as_uri() if local else None
            try:
                client.create_experiment(experiment, artifact_location=location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by somebody else, just now
                    raise
    return client


def _knows(client: MlflowClient, run_id: str) -> bool:
    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _create(client: MlflowClient, parent: str, experiment_id: str, name: str) -> str:
    tags = {MLFLOW_PARENT_RUN_ID: parent}
    return client.create_run(experiment_id, run_name=name, tags=tags).info.run_id


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


def _register(
    client: MlflowClient, run_id: str, model: str, path: str, alias: str = CANDIDATE
) -> None:
    """Log a policy folder with the run as an MLflow model: the registered model's next version."""
    from rapport.pipeline import served_model  # imports pandas: not at the start of every command

    # Beside the checkpoint, as the system's folder for temporary files may not hold a large one.
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=Path(path).parent) as scratch:
        served_model.save(Path(path), Path(scratch) / "model")
        client.log_artifacts(run_id, str(Path(scratch) / "model"), "policy")
    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/policy"
    version = client.create_model_version(model, source, run_id)
    client.set_registered_model_alias(model, alias, version.version)


def _end(client: MlflowClient, run_id: str, status: str) -> None:
    client.set_terminated(run_id, status)


_CALLS: dict[str, Callable[..., None]] = {
    "metrics": _log_metrics,
    "params": _log_params,
    "register": _register,
    "artifact": _log_artifact,
    "end": _end,
}


@dataclass(frozen=True)
class MetricLogger:
    """Logs to one MLflow run from any process; it can be pickled and holds no connection.

    MLflow's `start_run(run_id=...)` would mark the shared run finished when a worker leaves it,
    so workers write through the client only.
    """

    outbox: Outbox
    run_id: str

    def log(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Log values of one step; those that are None are missing and not logged."""
        now_ms = int(time.time() * 1000)
        present = {key: value for key, value in metrics.items() if value is not None}
        batch = [[key, float(value), now_ms, step] for key, value in present.items()]
        self.outbox.call("metrics", self.run_id, metrics=batch)


class TrackedRun:
    """An MLflow run that others can be nested in: a recipe's, or that of a part of it."""

    def __init__(self, outbox: Outbox, experiment_id: str, run_id: str):
        self.outbox = outbox
        self.experiment_id = experiment_id
        self.run_id = run_id

    @property
    def uri(self) -> str:
        return self.outbox.uri

    def log(self, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """See `MetricLogger.log`."""
        MetricLogger(self.outbox, self.run_id).log(metrics, step)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters as texts, which MLflow limits to 500 characters."""
        texts = {key: str(value)[:500] for key, value in params.items()}
        self.outbox.call("params", self.run_id, params=texts)

    def start_phase(self, name: str) -> MetricLogger:
        """The logger of a new run that is nested in this one."""
        return MetricLogger(self.outbox, self.outbox.create(self.experiment_id, name, self.run_id))

    def end_phase(self, phase: MetricLogger, failed: bool) -> None:
        self.outbox.call("end", phase.run_id, status=_status(failed))

    def part(self, name: str, run_id: str | None) -> TrackedRun:
        """A run nested in this one, for phases of its own; `run_id` continues an earlier one."""
        if run_id is None or not self.outbox.knows(run_id):
            run_id = self.outbox.create(self.experiment_id, name, self.run_id)
        return TrackedRun(self.outbox, self.experiment_id, run_id)

    def end(self, failed: bool) -> None:
        self.outbox.call("end", self.run_id, status=_status(failed))

    def register(self, model: str, checkpoint: Path, alias: str = CANDIDATE) -> None:
        """Make a policy the next version of a registered model.

        It is logged with this run as an MLflow model (`rapport.pipeline.served_model`), which
        `mlflow.pyfunc.load_model("models:/MODEL@ALIAS")` loads.

        Args:
            model: name in the registry.
            checkpoint: policy folder.
            alias: is moved to this version.
        """
        self.outbox.call("register", self.run_id, model=model, path=str(checkpoint), alias=alias)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file or a folder to the run's artefacts."""
        self.outbox.call("artifact", self.run_id, path=str(path), folder=folder)


class Tracker(TrackedRun):
    """The recipe's MLflow run.

    Args:
        uri: any MLflow URI, or None for SQLite in `directory.parent`.
        experiment: its name; it is created where there is none.
        directory: the run directory (absolute); its name becomes the run name.
        run_id: an earlier run to continue, or None.
        system_metrics: whether MLflow measures CPU, memory and disk.

    Raises:
        TrackingError: MLflow cannot be reached.
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
        # By default a call waits for minutes; the outbox keeps it instead.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        mlflow.set_tracking_uri(uri)
        outbox = Outbox(uri, directory / OUTBOX)
        try:
            self.client = _client(uri, experiment, directory.parent)
            mlflow.set_experiment(experiment)
            if run_id is not None and not _knows(self.client, run_id):
                logger.warning(
                    f"[mlflow] {uri} knows no run {run_id}, in which this one began: it goes on in "
                    f"a new one{outbox.forget()}"
                )
                run_id = None
            outbox.deliver()  # of an earlier process, whose last phases may not have been told yet
            run = mlflow.start_run(
                run_id=run_id,
                run_name=None if run_id else directory.name,
                log_system_metrics=system_metrics,
            )
        except (MlflowException, Timeout) as error:
            raise TrackingError(
                f"tracking.uri={uri}: {error}\n  Start that server, or leave tracking.uri empty "
                "for SQLite."
            ) from error
        super().__init__(outbox, run.info.experiment_id, run.info.run_id)
        if run_id is not None:
            self._end_dead_phases()

    def _end_dead_phases(self) -> None:
        """Phases and parts that were running when an earlier process was killed."""
        inside = [self.run_id]
        for parent in inside:  # which grows
            found = self.client.search_runs(
                [self.experiment_id],
                f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}' and attributes.status = 'RUNNING'",
            )
            for run in found:
                inside.append(run.info.run_id)
                self.client.set_terminated(run.info.run_id, "KILLED")

    def close(self, failed: bool) -> None:
        """End the run, once more trying to make the calls that are kept."""
        left = self.outbox.deliver()
        try:
            mlflow.end_run(_status(failed))
        except (MlflowException, RequestException):
            self.end(failed)
            left += 1
        if left:
            logger.warning(
                f"[mlflow] {self.uri} lacks the last {left} entries of this run, they are in "
                f"{self.outbox.path}; --resume delivers them"
            )


def _status(failed: bool) -> str:
    return "FAILED" if failed else "FINISHED"


def metric_key(name: str) -> str:
    """A method's name as MLflow accepts it within the name of a metric."""
    return re.sub(r"[^\w.:/-]+", "_", name).strip("_").lower()


def by_method(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics of several methods, by the names that MLflow has them under: METHOD/METRIC."""
    return {
        f"{metric_key(method)}/{metric}": value
        for method, row in rows.items()
        for metric, value in row.items()
    }
