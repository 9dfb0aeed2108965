"""The one logger. Quiet in a library; the command line shows what it says."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("rapport")


class _Terminal(logging.Handler):
    """Lines as they are, on whatever `sys.stdout` is by then (tests and Ray replace it)."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stdout, flush=True)


def show() -> None:
    """Progress goes to the terminal of this process. Calling it again changes nothing."""
    if not any(isinstance(handler, _Terminal) for handler in logger.handlers):
        logger.addHandler(_Terminal())
        logger.setLevel(logging.INFO)
        logger.propagate = False


@contextmanager
def quiet() -> Iterator[None]:
    """Say nothing meanwhile: what is looked at twice is not told twice."""
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before
