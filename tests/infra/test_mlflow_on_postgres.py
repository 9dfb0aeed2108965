"""The MLflow server as compose.yaml starts it, on a real PostgreSQL, with a folder in the object
store's place.

Needs PostgreSQL's binaries (Debian: postgresql) and infra/requirements/server.lock; skipped without
them."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from rapport.pipeline.tracking import Tracker
from tests.runs import free_port

ROOT = Path(__file__).parents[2]
BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
pytestmark = pytest.mark.engine


@pytest.fixture
def postgres():
    """Host and port of a server with an empty database `mlflow`."""
    if BINARIES is None:
        pytest.skip("no PostgreSQL is installed")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: it holds a socket
    user = {}
    if os.geteuid() == 0:  # PostgreSQL refuses root
        shutil.chown(folder, "postgres")
        user = {"user": "postgres"}
    data, port = folder / "data", free_port()
    subprocess.run(
        [BINARIES / "initdb", "--pgdata", data, "--username=mlflow", "--auth=trust", "--no-sync"],
        check=True,
        stdout=subprocess.DEVNULL,
        **user,
    )
    server = subprocess.Popen(
        [BINARIES / "postgres", "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **user,
    )
    try:
        deadline = time.monotonic() + 30
        ready = [BINARIES / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, stdout=subprocess.DEVNULL).returncode:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        subprocess.run(
            [BINARIES / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"],
            check=True,
        )
        yield f"127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
        shutil.rmtree(folder)


@pytest.fixture
def mlflow_server(postgres, tmp_path):
    pytest.importorskip("psycopg2", reason="infra/requirements/server.lock is not installed")
    service = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())["services"]["mlflow"]
    port = free_port()
    command = (
        service["command"]
        .replace("5000", str(port))
        .replace("0.0.0.0", "127.0.0.1")
        .replace("s3://mlflow", str(tmp_path / "objects"))
        .replace("--workers 2", "--workers 1")
    )
    driver = service["environment"]["MLFLOW_BACKEND_STORE_URI"].split(":")[0]
    environment = (
        os.environ
        | service["environment"]
        | {"MLFLOW_BACKEND_STORE_URI": f"{driver}://mlflow@{postgres}/mlflow"}
    )
    program, *arguments = command.split()
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [Path(sys.executable).parent / program, *arguments],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            assert server.poll() is None and time.monotonic() < deadline, (
                tmp_path / "server.log"
            ).read_text()
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://localhost:{port}"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)


def test_a_run_is_tracked_and_its_artefacts_kept(mlflow_server, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "summary.json").write_text("{}")
    tracker = Tracker(mlflow_server, "rapport", run_dir, None, system_metrics=False)
    phase = tracker.start_phase("dpo")
    phase.log({"loss": 0.5}, 1)
    tracker.end_phase(phase, failed=False)
    tracker.log_artifact(run_dir / "summary.json")
    tracker.close(failed=False)
    client = MlflowClient(mlflow_server)
    assert client.get_run(phase.run_id).data.metrics == {"loss": 0.5}
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["summary.json"]
    assert list((tmp_path / "objects").rglob("summary.json")), "the server keeps it, not the client"
