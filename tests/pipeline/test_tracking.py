"""MLflow in SQLite: one parent, nested phases, metrics by step from any process."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import mlflow
import pytest
from mlflow import MlflowClient

from pipeline.config import PrepareConfig, TrackingConfig
from pipeline.rundir import Run
from pipeline.tracking import MetricLogger, Tracker


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
    config = PrepareConfig(seed=7, tracking=TrackingConfig(experiment="nested", system_metrics=False))
    with pytest.raises(ValueError, match="no"), Run("prepare", config, store / "nested") as run:
        run.once("first", lambda phase: phase.logger.log({"loss": 0.5}, step=3) or {})
        run.once("second", lambda phase: int("no"))
    client = MlflowClient(run.tracker.uri)
    assert run.tracker.uri == f"sqlite:///{store / 'mlflow.db'}"
    parent = client.get_run(run.tracker.run_id)
    assert parent.info.run_name == "nested" and parent.info.status == "FAILED"
    assert parent.data.params["seed"] == "7" and parent.data.params["corpus.kind"] == "synthetic"
    assert {f.path for f in client.list_artifacts(parent.info.run_id)} == {"summary.json", "config.yaml"}
    found = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {r.info.run_name: r.info.status for r in found} == {"first": "FINISHED", "second": "FAILED"}
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
    assert found.data.metrics == {"l2": 0.5} and client.get_run(phase.run_id).info.status == "FINISHED"
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
