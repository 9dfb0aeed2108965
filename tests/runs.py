"""Recipes as a person starts them: in a process of their own, with nothing of another Ray."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "pipeline.run", *map(str, arguments)]


def pipeline_run(*arguments, timeout=800) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


def started(*arguments, **options) -> subprocess.Popen:
    """A run whose output is read while it goes on."""
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def begun(*arguments) -> subprocess.Popen:
    """A run in a process group of its own, to be killed."""
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finished(process: subprocess.CompletedProcess, run_dir: Path) -> dict:
    """The summary of a run that ended well."""
    assert process.returncode == 0, process.stdout[-6000:]
    assert process.stdout.rstrip().endswith(f"summary: {run_dir / 'summary.json'}")
    return json.loads((run_dir / "summary.json").read_text())


def finished_run(recipe: str, folder: Path, *keys, timeout=800) -> dict:
    """Run a recipe to its end; its summary."""
    return finished(pipeline_run(recipe, "--run-dir", folder, *keys, timeout=timeout), folder)


def free_port() -> int:
    """Of this machine; nobody listens there now."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]
