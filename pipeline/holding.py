"""Who works in a run directory: one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from rapport.files import SCRATCH, write_atomic
from rapport.log import logger

LOCK = ".lock"
HOLDER = ".holder.json"


class HeldError(RuntimeError):
    """Another process works in the directory; the message says which, where and since when."""


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep a directory, which exists, for this process.

    The system lets go of a lock when its process dies, on whatever host: what a dead process left
    half written is then removed.

    Raises:
        HeldError: it is somebody else's.
    """
    lock = FileLock(directory / LOCK)
    holder = directory / HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise HeldError(
            f"{directory} is in use by {_holder(holder)}: wait until it ends, or stop it"
        ) from None
    except OSError as error:
        raise HeldError(
            f"{directory} cannot be locked ({error}), so nothing would keep a second run away: "
            "choose a --run-dir where files may be written and locked"
        ) from error
    try:
        if holder.is_file():
            logger.warning(f"  taken over from {_holder(holder)}, which is gone")
            remove_scratch(directory)
        me = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        write_atomic(holder, json.dumps(me))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def remove_scratch(directory: Path) -> None:
    """Remove what `rapport.files.atomic` had not finished when its process died."""
    for folder in [path for path in directory.rglob(SCRATCH) if path.is_dir()]:
        shutil.rmtree(folder, ignore_errors=True)


def _holder(file: Path) -> str:
    try:
        found = json.loads(file.read_text())
        return f"process {found['process']} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
