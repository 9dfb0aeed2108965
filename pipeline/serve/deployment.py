"""The application on Ray Serve: the same on a laptop, on a cluster and on Kubernetes."""

from __future__ import annotations

import asyncio
import os
import secrets
from typing import TYPE_CHECKING, Any

from ray import serve

from rapport.actors.cluster import vllm_environment, worker_environment
from rapport.pipeline.rundir import RunError
from rapport.pipeline.serve.settings import (
    CLOSED_S,
    FORGOTTEN_S,
    LOOKED_AT_S,
    MOVE_S,
    TOKEN,
    ServeSection,
)
from rapport.policies.head.settings import HeadConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

APPLICATION = "rapport"
SECRET = "RAPPORT_SECRET"  # environment variable of the secret of tickets
SECRET_BYTES = 16
REGISTRY = "MLFLOW_TRACKING_URI"  # environment variable, as MLflow names it
SPARE = 16  # requests beside the live sessions of a replica


@serve.deployment
@serve.ingress()
class Listeners:
    """A replica, with its engine in the process that holds the sockets.

    Args:
        config: a `ServeSection`, as JSON has it.
        head: a `HeadConfig`, likewise.
        secret: of tickets.
        token: that clients need.
    """

    def __init__(
        self, config: dict[str, Any], head: dict[str, Any], secret: str, token: str | None
    ) -> None:
        # Imported here: whoever deploys needs none of it, and waits seconds for it.
        import torch

        from rapport.pipeline.serve.server import Server

        section = ServeSection(**config)
        torch.set_num_threads(max(int(section.cpus), 1))
        name = serve.get_replica_context().replica_id.unique_id
        self.server = Server(section, HeadConfig(**head), name, secret.encode(), token)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve answers requests by."""
        from rapport.pipeline.serve.app import application

        return application(self.server)

    async def reconfigure(self, changed: dict[str, Any]) -> None:
        """Other policies, in a running replica; sessions keep the one that they began with.

        Where one cannot be loaded, the present ones stay, and `/readyz` says why.
        """
        # In a thread, as sessions go on meanwhile.
        await asyncio.to_thread(self.server.reload, changed["policies"])

    def check_health(self) -> None:
        """Ray Serve calls this again and again, until the replica is to go away."""
        self.server.looked_at()
        self.server.require_alive()


def built(config: ServeSection, head: HeadConfig, registry: str | None = None) -> serve.Application:
    """The application, ready for `serve.run`.

    Policies stand in `user_config` alone: where only they change in a file of `serve deploy`,
    replicas live on and load them (`Listeners.reconfigure`). All else, and `serve.run`, replace all
    replicas.

    Args:
        config: of the server.
        head: that is animated.
        registry: MLflow's URI, for policies that lie there; None = as the nodes' environment says.

    Raises:
        RunError: the secret in the environment can be guessed.
    """
    secret = os.environ.get(SECRET) or secrets.token_hex(32)
    if len(secret) < SECRET_BYTES:
        raise RunError(f"{SECRET} can be guessed: take {SECRET_BYTES} bytes or more, at random")
    environment = worker_environment(max(int(config.cpus), 1), config.gpus)
    if config.engine == "vllm":
        environment |= vllm_environment(config.gpus)
    if registry is not None:
        environment[REGISTRY] = registry
    arguments = (
        config.model_dump(mode="json", exclude={"policies"}),
        head.model_dump(mode="json"),
        secret,
        os.environ.get(TOKEN) or None,
    )
    deployment = Listeners.options(  # type: ignore[attr-defined]
        name=APPLICATION,
        num_replicas=config.replicas,
        # A socket is a request, for as long as it is open: beyond the default of 5 it would hang.
        max_ongoing_requests=config.sessions + SPARE,
        user_config={"policies": config.policies},
        health_check_period_s=LOOKED_AT_S,
        graceful_shutdown_timeout_s=FORGOTTEN_S + MOVE_S + CLOSED_S,
        graceful_shutdown_wait_loop_s=0.5,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
        ray_actor_options={
            "num_cpus": config.cpus,
            "num_gpus": config.gpus,
            "runtime_env": {"env_vars": environment},
        },
    )
    return deployment.bind(*arguments)


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application of a config file of Ray Serve (`serve deploy infra/serve.yaml`).

    Args:
        arguments: `serve` and `head`, sections as of `python -m pipeline.run serve`.
    """
    return built(
        ServeSection(**arguments.get("serve", {})), HeadConfig(**arguments.get("head", {}))
    )
