"""Eyes of a replica: faces are read off the pictures that clients send (`serve.watch`).

One thread looks at the pictures of all sessions, the longest waiting first. Where more come than
it can look at, the oldest of a session are skipped: its face is then read less often, and nobody
waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from rapport.actors import telemetry
from rapport.log import logger
from rapport.pipeline.data.video.landmarks import Landmarker
from rapport.pipeline.data.video.regressor import learnt
from rapport.pipeline.data.video.tracking import Finder
from rapport.pipeline.data.video.watching import Watcher
from rapport.policies.head.asset import HeadAsset
from rapport.policies.motion import Layout

WAITING = 3  # pictures of a session


@dataclass(eq=False)
class Watch:
    """A session whose speaker is watched.

    Args:
        watcher: of the speaker.
        waiting: pictures that were not looked at, with their seconds.
    """

    watcher: Watcher
    waiting: deque[tuple[float, np.ndarray]] = field(default_factory=deque)


class Eyes:
    """Looks at pictures in a thread of its own.

    Args:
        head: whose coefficients faces are read as.

    Raises:
        CorpusError: MediaPipe or its weights are not there; says how to get them.
    """

    def __init__(self, head: HeadAsset) -> None:
        self.looked = 0
        self.skipped = 0
        self._landmarker = Landmarker()
        self._regressor = learnt(head, self._landmarker)
        self._changed = threading.Condition()
        self._watches: dict[int, Watch] = {}  # that have pictures, the longest waiting first
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="eyes", daemon=True)
        self._thread.start()

    def watch(self, layout: Layout) -> Watch:
        """Somebody new, whose motion is asked for in a layout."""
        return Watch(Watcher(Finder(self._landmarker), self._regressor, layout))

    def see(self, watch: Watch, taken: float, picture: np.ndarray) -> None:
        """Look at a picture of somebody soon; `taken` is the time of `Watcher.look`."""
        with self._changed:
            if len(watch.waiting) == WAITING:
                watch.waiting.popleft()
                self.skipped += 1
                telemetry.record(telemetry.SKIPPED, 1)
            watch.waiting.append((taken, picture))
            self._watches.setdefault(id(watch), watch)
            self._changed.notify()

    def stop(self) -> None:
        """End the thread, after the picture that it looks at."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()
        self._landmarker.close()

    def _work(self) -> None:
        while (following := self._next()) is not None:
            watch, taken, picture = following
            began = time.monotonic()
            try:
                watch.watcher.look(taken, picture)
            except Exception:
                logger.exception("a picture could not be looked at, and is left out")
            self.looked += 1
            telemetry.record(telemetry.LOOK_SECONDS, time.monotonic() - began)

    def _next(self) -> tuple[Watch, float, np.ndarray] | None:
        """The next picture, and whose it is; None when all is over."""
        with self._changed:
            while not self._stopped and not self._watches:
                self._changed.wait()
            if self._stopped:
                return None
            key = next(iter(self._watches))
            watch = self._watches.pop(key)
            taken, picture = watch.waiting.popleft()
            if watch.waiting:
                self._watches[key] = watch  # behind all others
            return watch, taken, picture
