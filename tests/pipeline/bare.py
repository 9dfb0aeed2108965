"""A run directory without MLflow, for tests of what is written there."""

from pathlib import Path
from types import SimpleNamespace

from rapport.pipeline.rundir import Workspace
from rapport.pipeline.settings import PrepareConfig


def bare_run(directory: Path, config=None) -> Workspace:
    """`run.logged` and `run.files` have what MLflow would have got."""
    run = Workspace(config or PrepareConfig(), directory, directory)
    run.logged, run.files = [], []
    run.tracker = SimpleNamespace(log=run.logged.append, log_artifact=run.files.append)
    return run
