"""SIGTERM and SIGHUP end a command as Ctrl-C does: it stops, cleans up and says how to go on.

Kubernetes and Slurm send the first, a terminal that is closed the second.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


@contextmanager
def heeded() -> Iterator[None]:
    """Within, either signal raises `Interrupted` in the main thread."""
    with _put_back():
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` asks to live on
                signal.signal(number, _interrupt)
        yield


@contextmanager
def kept() -> Iterator[None]:
    """A block that puts a handler of its own in their place, one that exits, as Ray's `init` does.

    They are put back after it.
    """
    with _put_back():
        try:
            yield
        except SystemExit as error:
            raise Interrupted(signal.SIGTERM) from error


@contextmanager
def _put_back() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers are the main thread's business
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status(error: KeyboardInterrupt) -> int:
    """Exit status of a process that was interrupted, as shells count it."""
    number = error.signal if isinstance(error, Interrupted) else signal.SIGINT
    return 128 + number


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # what cleans up is not interrupted again
    raise Interrupted(number)
