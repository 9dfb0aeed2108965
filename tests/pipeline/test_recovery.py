"""What goes wrong around a run: lost disks, moved folders, two at once, signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

from rapport.pipeline.run import main
from tests.runs import ROOT, begun, environment, finished, pipeline_run, started

pytestmark = pytest.mark.engine
FEW = [
    "corpus.train_clips=16",
    "corpus.validation_clips=4",
    "corpus.test_clips=4",
    "corpus.listeners=1",
    "corpus.seconds=1",
    "corpus.image_size=28",
]
KEYS = [*FEW, "tracking.system_metrics=false"]


def prepared(folder, *keys):
    """The summary of `prepare`, run in this process."""
    assert main(["prepare", "--run-dir", str(folder), *keys]) == 0
    return json.loads((folder / "summary.json").read_text())


def texts(folder):
    """All that files say which people or programs read again."""
    kinds = {".json", ".yaml", ".html", ".md", ".jsonl"}
    return {path: path.read_text() for path in folder.rglob("*") if path.suffix in kinds}


def test_a_node_whose_disk_is_gone_goes_on_from_storage(tmp_path, caplog):
    node, other, bucket = tmp_path / "node", tmp_path / "other", tmp_path / "bucket"
    bucket.mkdir()
    keys = [*KEYS, f"storage.uri={bucket}"]
    first = prepared(node / "run", *keys)
    manifest = (node / "run" / "prepare" / "corpus" / "corpus.json").read_text()
    shutil.rmtree(node)  # the run, and the database of MLflow beside it
    (bucket / "run" / "phases" / "describe.json").unlink()  # it had not come so far
    caplog.clear()
    with caplog.at_level("INFO", logger="rapport"):
        summary = prepared(other / "run", "--resume", f"storage.uri={bucket}")
    assert "knows no run" in caplog.text and "goes on in a new one" in caplog.text
    assert "[prepare] done before" in caplog.text and "[describe] done before" not in caplog.text
    assert summary["metrics"] == first["metrics"] and summary["counts"] == first["counts"]
    assert (other / "run" / "prepare" / "corpus" / "corpus.json").read_text() == manifest
    client = MlflowClient(f"sqlite:///{other / 'mlflow.db'}")
    run = client.get_run((other / "run" / "mlflow_run_id").read_text())
    assert run.info.status == "FINISHED" and run.data.params["corpus.train_clips"] == "16"


def test_a_moved_run_goes_on_where_it_is_and_a_copy_reads_its_own_files(tmp_path):
    first = prepared(tmp_path / "a" / "run", *KEYS)
    assert first["artifacts"]["corpus"] == "prepare/corpus"
    shutil.copytree(tmp_path / "a" / "run", tmp_path / "copy")
    shutil.move(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "run" / "phases" / "describe.json").unlink()
    assert prepared(tmp_path / "b" / "run", "--resume")["metrics"] == first["metrics"]
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "copy" / "phases" / "describe.json").unlink()
    assert prepared(tmp_path / "copy", "--resume")["metrics"] == first["metrics"]
    for path, text in texts(tmp_path / "copy").items():
        assert str(tmp_path / "a") not in text, f"{path} names the place where it was made"


@pytest.mark.long
def test_runs_that_start_together_in_an_empty_folder_all_end_well(tmp_path):
    runs = [started("prepare", "--run-dir", tmp_path / str(number), *KEYS) for number in range(3)]
    for run in runs:
        said, _ = run.communicate(timeout=300)
        assert run.returncode == 0, said[-3000:]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rapport")
    names = {run.info.run_name for run in client.search_runs([experiment.experiment_id])}
    assert {"0", "1", "2"} <= names


@pytest.fixture
def generating(tmp_path):
    """A run that takes minutes, once it has begun to generate its corpus."""
    run_dir = tmp_path / "run"
    keys = ["corpus.train_clips=20000", *KEYS[1:]]
    run = started("prepare", "--run-dir", run_dir, *keys, start_new_session=True)
    said = ""
    while "generating" not in said:
        line = run.stdout.readline()
        assert line, said
        said += line
    wait_for(lambda: list(run_dir.glob("prepare/.corpus.*.tmp")))
    yield run, run_dir
    if run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)


def wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.long)]
)
def test_a_signal_ends_a_run_with_a_word_and_leaves_nothing_half_written(generating, number):
    run, run_dir = generating
    refused = pipeline_run("prepare", "--run-dir", run_dir, "--resume")
    assert refused.returncode == 2 and f"in use by process {run.pid} on" in refused.stdout
    assert "Traceback" not in refused.stdout and "generating" not in refused.stdout
    run.send_signal(number)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == 128 + number
    assert f"interrupted ({number.name}); continue with --resume --run-dir {run_dir}" in said
    assert "Traceback" not in said
    assert list((run_dir / "prepare").iterdir()) == []
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "failed" and number.name in summary["error"]
    client = MlflowClient(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    ids = [client.get_experiment_by_name("rapport").experiment_id]
    assert {found.info.status for found in client.search_runs(ids)} == {"FAILED"}


@pytest.mark.long
def test_what_a_killed_run_leaves_is_removed_and_its_phase_said_to_be_killed(tmp_path):
    run_dir = tmp_path / "run"
    run = begun("prepare", "--run-dir", run_dir, *KEYS)
    wait_for(lambda: list(run_dir.glob("prepare/.corpus.*.tmp")))
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    (left,) = run_dir.glob("prepare/.corpus.*.tmp")
    finished(pipeline_run("prepare", "--run-dir", run_dir, "--resume"), run_dir)
    assert not left.exists() and [p.name for p in (run_dir / "prepare").iterdir()] == ["corpus"]
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    ids = [client.get_experiment_by_name("rapport").experiment_id]
    states = [(found.info.run_name, found.info.status) for found in client.search_runs(ids)]
    assert sorted(states) == [
        ("describe", "FINISHED"),
        ("prepare", "FINISHED"),
        ("prepare", "KILLED"),
        ("run", "FINISHED"),
    ]


# A command that gets a signal, its last argument, as it loads.
LOADING = """
import os, runpy, sys

class Signal:
    def find_spec(self, name, path, target=None):
        if name == "rapport.pipeline.settings":
            os.kill(os.getpid(), int(sys.argv.pop()))

sys.meta_path.insert(0, Signal())
runpy.run_module("pipeline.run", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_while_the_program_still_loads_ends_with_a_word(number, status):
    given = [sys.executable, "-c", LOADING, "prepare", "--print-config", str(int(number))]
    run = subprocess.run(given, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (status, "")
    assert run.stderr == "rapport: interrupted before it began\n"
