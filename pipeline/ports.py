"""What recipes do that listen at a port until they are interrupted."""

from __future__ import annotations

import socket
import time

from rapport.pipeline.rundir import RunError

LOOK_S = 1.0


def listening(host: str, port: int, key: str) -> socket.socket:
    """A socket that listens.

    Args:
        host: name or address of this machine.
        port: to listen at.
        key: by which the port is set, as `serve.port`.

    Raises:
        RunError: the port is not free, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listens = socket.socket(family)
    listens.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listens.bind((host, port))
        listens.listen(512)
    except OSError as error:
        listens.close()
        raise RunError(
            f"{key}={port} on {host} is not free ({error}): end what is there, or take another port"
        ) from error
    return listens


def until_interrupted() -> None:
    """Until Ctrl-C, which ends what listens as it should be ended."""
    try:
        while True:
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        return
