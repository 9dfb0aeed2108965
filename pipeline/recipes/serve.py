"""`serve`: a page and an endpoint for live listeners, until it is interrupted."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request

import ray
from ray import serve

from rapport.actors.cluster import cluster
from rapport.pipeline.ports import listening, until_interrupted
from rapport.pipeline.rundir import Phase, PhaseResult, Run, RunError, phase
from rapport.pipeline.serve.deployment import APPLICATION, REGISTRY, built
from rapport.pipeline.serve.record import require_folder
from rapport.pipeline.settings import ServeConfig
from rapport.settings import url_of

READY_S = 120.0
QUIET = {"log_level": "ERROR", "enable_access_log": False}


def run(config: ServeConfig, run: Run) -> None:
    """Serve until Ctrl-C."""
    if config.cluster.address is None:  # else replicas are elsewhere, and look themselves
        require_folder(config.serve.record)
    # Where somebody listens already, both would get every other request.
    listening(config.serve.host, config.serve.port, "serve.port").close()
    with cluster(config.cluster.address, config.cluster.cpus):
        require_no_server()
        serve_until_interrupted(run, config)


@phase("serve")
def serve_until_interrupted(step: Phase, config: ServeConfig) -> PhaseResult:
    """Start, say where, wait."""
    began = time.monotonic()
    listen_at(config.serve.host, config.serve.port)
    try:
        registry = registry_of(config, step.logger.outbox.uri)
        application = built(config.serve, config.head, registry)
        serve.run(application, name=APPLICATION, route_prefix="/")
        url = url_of(config.serve.host, config.serve.port)
        _require_ready(url)
        ready = time.monotonic() - began
        step.say(f"{url} is ready after {ready:.1f} s; Ctrl-C ends it")
        until_interrupted()
    finally:
        serve.shutdown()
    return PhaseResult(
        metrics={"ready_s": ready, "served_s": time.monotonic() - began},
        engines={"server": f"ray serve {ray.__version__}, {config.serve.replicas} replicas"},
    )


def registry_of(config: ServeConfig, own: str) -> str:
    """URI of MLflow, whose registry policies come from.

    Args:
        config: of the recipe.
        own: of this run, where nothing else is said.
    """
    return config.tracking.uri or os.environ.get(REGISTRY) or own


def require_no_server() -> None:
    """Raise `RunError` where Ray Serve runs on the cluster: what it serves would end with us."""
    status = serve.status()
    if status.proxies:
        names = ", ".join(status.applications) or "no application"
        raise RunError(
            f"Ray Serve runs on this cluster already ({names}), and `serve` would end it with "
            "itself: bring the listener there by `serve deploy infra/serve.yaml`, or end what runs "
            "by `serve shutdown`"
        )


def listen_at(host: str, port: int) -> None:
    """Start Ray Serve in the cluster, without a log of who came from where."""
    serve.start(http_options={"host": host, "port": port}, logging_config=QUIET)


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
