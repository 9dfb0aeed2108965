"""`serve`: a page and an endpoint for live listeners, until it is interrupted."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

import ray
from ray import serve

from rapport.actors.cluster import cluster
from rapport.pipeline.rundir import Phase, PhaseResult, Run, RunError, phase
from rapport.pipeline.serve.deployment import APPLICATION, built
from rapport.pipeline.settings import ServeConfig

READY_S = 120.0
LOOK_S = 1.0


def run(config: ServeConfig, run: Run) -> None:
    """Serve until Ctrl-C."""
    with cluster(config.cluster.address, config.cluster.cpus):
        serve_until_interrupted(run, config)


@phase("serve")
def serve_until_interrupted(step: Phase, config: ServeConfig) -> PhaseResult:
    """Start, say where, wait."""
    began = time.monotonic()
    serve.start(http_options={"host": config.serve.host, "port": config.serve.port})
    try:
        serve.run(built(config.serve, config.head), name=APPLICATION, route_prefix="/")
        url = f"http://{config.serve.host}:{config.serve.port}"
        _require_ready(url)
        ready = time.monotonic() - began
        step.say(f"{url} is ready after {ready:.1f} s; Ctrl-C ends it")
        _wait()
    finally:
        serve.shutdown()
    return PhaseResult(
        metrics={"ready_s": ready, "served_s": time.monotonic() - began},
        engines={"server": f"ray serve {ray.__version__}, {config.serve.replicas} replicas"},
    )


def _require_ready(url: str) -> None:
    """Wait until every policy answers as at its start."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=READY_S) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise RunError(f"{url} is not ready after {READY_S:g} s: {error}") from error
        time.sleep(0.1)


def _wait() -> None:
    """Until Ctrl-C, which ends the server as it should be ended."""
    try:
        while True:
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        return
