"""MLflow in SQLite: one parent, nested phases, metrics by step from any process."""

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from rapport.log import show
from rapport.pipeline import tracking
from rapport.pipeline.config import TrackingConfig
from rapport.pipeline.rundir import Run
from rapport.pipeline.settings import PrepareConfig
from rapport.pipeline.tracking import MetricLogger, Tracker, TrackingError, metric_key


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One database for the file: a fresh one takes seconds to set up."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(autouse=True)
def no_run_left():
    yield
    assert mlflow.active_run() is None


def open_tracker(store, name, run_id=None):
    return Tracker(None, "tests", store / name, run_id, system_metrics=False)


def history(tracker, run_id, key):
    return [(m.step, m.value) for m in tracker.client.get_metric_history(run_id, key)]


def test_a_run_has_a_parent_and_nested_phases(store):
    config = PrepareConfig(
        seed=7, tracking=TrackingConfig(experiment="nested", system_metrics=False)
    )
    with pytest.raises(ValueError, match="no"), Run("prepare", config, store / "nested") as run:
        run.once("first", lambda phase: phase.logger.log({"loss": 0.5}, step=3) or {})
        run.once("second", lambda phase: int("no"))
    client = MlflowClient(run.tracker.uri)
    assert run.tracker.uri == f"sqlite:///{store / 'mlflow.db'}"
    parent = client.get_run(run.tracker.run_id)
    assert parent.info.run_name == "nested" and parent.info.status == "FAILED"
    assert parent.data.params["seed"] == "7" and parent.data.params["corpus.kind"] == "synthetic"
    assert {f.path for f in client.list_artifacts(parent.info.run_id)} == {
        "summary.json",
        "config.yaml",
    }
    found = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    assert {r.info.run_name: r.info.status for r in found} == {
        "first": "FINISHED",
        "second": "FAILED",
    }
    first = next(r for r in found if r.info.run_name == "first")
    assert history(run.tracker, first.info.run_id, "loss") == [(3, 0.5)]


def test_parts_are_nested_runs_with_phases_of_their_own(store):
    tracker = open_tracker(store, "parts")
    client = tracker.client
    part = tracker.part("seed-0", None)
    part.log({"l2": 0.5})
    phase = part.start_phase("sft")
    part.end_phase(phase, failed=False)
    part.end(failed=True)
    found = client.get_run(part.run_id)
    assert found.data.tags["mlflow.parentRunId"] == tracker.run_id and found.info.status == "FAILED"
    assert (
        found.data.metrics == {"l2": 0.5} and client.get_run(phase.run_id).info.status == "FINISHED"
    )
    assert client.get_run(phase.run_id).data.tags["mlflow.parentRunId"] == part.run_id
    again = tracker.part("seed-0", part.run_id)
    again.end(failed=False)
    assert client.get_run(part.run_id).info.status == "FINISHED"
    tracker.close(failed=False)


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(store):
    first = open_tracker(store, "resumed")
    first.log({"x": 1.0}, step=1)
    first.close(failed=True)
    second = open_tracker(store, "resumed", run_id=first.run_id)
    second.log({"x": 2.0}, step=2)
    second.close(failed=False)
    assert second.run_id == first.run_id
    assert sorted(history(second, first.run_id, "x")) == [(1, 1.0), (2, 2.0)]
    assert second.client.get_run(first.run_id).info.status == "FINISHED"


def test_absent_values_are_not_logged_as_zero(store):
    tracker = open_tracker(store, "absent")
    tracker.log({"given": 0.0, "absent": None})
    tracker.close(failed=False)
    assert tracker.client.get_run(tracker.run_id).data.metrics == {"given": 0.0}


def test_long_params_and_many_of_them_arrive(store):
    tracker = open_tracker(store, "params")
    tracker.log_params({f"key{i}": "x" * 600 for i in range(130)})
    tracker.close(failed=False)
    params = tracker.client.get_run(tracker.run_id).data.params
    assert len(params) == 130 and set(params.values()) == {"x" * 500}


def write_steps(logger: MetricLogger, name: str) -> None:
    for step in range(5):
        logger.log({name: float(step)}, step)


def test_two_processes_write_one_run_and_do_not_end_it(store):
    tracker = open_tracker(store, "shared")
    phase = tracker.start_phase("phase")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        job = pool.submit(write_steps, phase, "a")
        write_steps(phase, "b")
        job.result()
    assert tracker.client.get_run(phase.run_id).info.status == "RUNNING"
    for name in ("a", "b"):
        assert sorted(history(tracker, phase.run_id, name)) == [(i, float(i)) for i in range(5)]
    tracker.end_phase(phase, failed=False)
    tracker.close(failed=False)
    assert tracker.client.get_run(phase.run_id).info.status == "FINISHED"


class Server:
    """A real MLflow server over one database, that can be killed and started again on the same
    port.
    """

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self):
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
                "--workers",
                "1",
                "--backend-store-uri",
                f"sqlite:///{self.folder / 'server.db'}",
                "--artifacts-destination",
                str(self.folder / "artifacts"),
            ],
            cwd=self.folder,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                assert requests.get(f"{self.uri}/health", timeout=2).ok
                return
            except requests.RequestException:
                assert time.monotonic() < deadline and self.process.poll() is None
                time.sleep(0.2)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def test_a_phase_that_was_told_late_by_a_run_that_was_killed_is_ended(store, monkeypatch):
    (store / "killed").mkdir()
    tracker = open_tracker(store, "killed")
    uri = tracker.uri
    monkeypatch.setattr(tracking, "_silent_until", {uri: float("inf")})
    tracker.start_phase("sft")  # kept in the outbox; the process is killed
    monkeypatch.setattr(tracking, "_silent_until", {})
    mlflow.end_run()
    again = open_tracker(store, "killed", tracker.run_id)
    found = again.client.search_runs(
        [again.experiment_id], f"tags.mlflow.parentRunId = '{tracker.run_id}'"
    )
    assert [run.info.status for run in found] == ["KILLED"]
    again.close(failed=False)


@pytest.mark.engine
@pytest.mark.long
def test_a_server_that_goes_away_loses_nothing(server, tmp_path, monkeypatch, capsys):
    """The run goes on without it and says so; resuming the run delivers what it missed."""
    show()  # the logger's lines on the terminal
    monkeypatch.setattr(tracking, "_silent_until", {})
    (tmp_path / "run").mkdir()
    (tmp_path / "summary.json").write_text("{}")
    tracker = Tracker(server.uri, "tests", tmp_path / "run", None, system_metrics=False)
    early = tracker.start_phase("early")
    tracker.log({"a": 1.0})
    server.kill()
    tracker.log({"b": 2.0}, step=3)
    tracker.end_phase(early, failed=False)
    phase = tracker.start_phase("late")
    phase.log({"c": 3.0}, step=4)
    tracker.end_phase(phase, failed=False)
    tracker.log_artifact(tmp_path / "summary.json")
    tracker.close(failed=False)
    printed = capsys.readouterr().out
    assert printed.count("does not answer") == 1 and "lacks the last 7 entries" in printed
    outbox = tmp_path / "run" / tracking.OUTBOX
    assert len(outbox.read_text().splitlines()) == 7

    server.start()
    again = Tracker(server.uri, "tests", tmp_path / "run", tracker.run_id, system_metrics=False)
    again.close(failed=False)
    assert not outbox.exists()
    client = MlflowClient(server.uri)
    found = client.get_run(tracker.run_id)
    assert found.data.metrics == {"a": 1.0, "b": 2.0} and found.info.status == "FINISHED"
    assert [f.path for f in client.list_artifacts(tracker.run_id)] == ["summary.json"]
    nested = client.search_runs(
        [found.info.experiment_id], f"tags.mlflow.parentRunId = '{tracker.run_id}'"
    )
    assert {r.info.run_name: r.info.status for r in nested} == {
        "early": "FINISHED",
        "late": "FINISHED",
    }
    late = next(r for r in nested if r.info.run_name == "late")
    assert [(m.step, m.value) for m in client.get_metric_history(late.info.run_id, "c")] == [
        (4, 3.0)
    ]


def test_a_server_that_is_not_there_at_the_start_is_an_error(tmp_path):
    with pytest.raises(
        TrackingError, match=r"(?s)tracking.uri=http://127.0.0.1:9: .*leave tracking.uri empty"
    ):
        Tracker("http://127.0.0.1:9", "tests", tmp_path, None, system_metrics=False)


def test_what_the_server_refuses_is_our_mistake_and_raises(store):
    tracker = open_tracker(store, "refused")
    with pytest.raises(MlflowException, match="[Ii]nvalid"):
        tracker.log({"a,b": 1.0})
    assert not tracker.outbox.path.exists()
    tracker.close(failed=False)


@pytest.mark.parametrize(
    ("method", "key"),
    [("SFT + DPO", "sft_dpo"), ("mirror, late", "mirror_late"), ("GDPO (dpo, X)", "gdpo_dpo_x")],
)
def test_a_methods_name_is_a_metrics_name(method, key):
    """MLflow refuses commas, brackets and plus signs."""
    assert metric_key(method) == key
