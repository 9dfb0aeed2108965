"""The face of somebody who talks, read while they do: pictures become motion, chunk by chunk.

As `tracking`, but nothing that comes later is known: what is usual for a face is the median of what
was seen so far, the landmarks' noise stays, and after the newest picture a face is as it was there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from rapport.log import logger
from rapport.pipeline.data.recording import Media
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.data.video.landmarks import Landmarker
from rapport.pipeline.data.video.regressor import Regressor, learnt
from rapport.pipeline.data.video.tracking import BRIDGED_S, Finder, film_of
from rapport.policies.head.asset import HeadAsset
from rapport.policies.live import Chunk
from rapport.policies.motion import Layout, Motion

USUAL_S = 60.0  # what was seen of a face for so long says what is usual for it
_USUAL_EVERY_S = 0.25  # of that, so often
_KEPT_S = 2.0  # what is older says nothing of a frame that is still asked for


class Watcher:
    """Watches one person; one thread may look while another asks for motion.

    Args:
        finder: of the person's face.
        regressor: that reads it.
        layout: of the motion that is asked for, as of `require_readable`.
    """

    def __init__(self, finder: Finder, regressor: Regressor, layout: Layout) -> None:
        require_readable(layout, regressor.layout.topology)
        self.layout = layout
        self.looked = 0
        self.found = 0
        self._finder = finder
        self._regressor = regressor
        self._lock = threading.Lock()
        self._times: list[float] = []  # of pictures with a face
        self._seen: list[np.ndarray] = []
        self._usual: list[tuple[float, np.ndarray]] = []  # some of them, of the last minute
        self._last = -np.inf

    def look(self, time: float, picture: np.ndarray) -> None:
        """Look at the next picture.

        Args:
            time: when it was taken, seconds from the beginning; one that is not later than those
                before says nothing new, and is left out.
            picture: (height, width, 3) uint8.
        """
        if time <= self._last:
            return
        self._last = time
        face = self._finder.find(picture)
        self.looked += 1
        if face is None:
            return
        [seen] = self._regressor.features([face])
        with self._lock:
            self.found += 1
            self._times.append(time)
            self._seen.append(seen)
            if not self._usual or time >= self._usual[-1][0] + _USUAL_EVERY_S:
                self._usual.append((time, seen))
                del self._usual[: -round(USUAL_S / _USUAL_EVERY_S)]

    def motion(self, start: float, frames: int) -> Motion | None:
        """Frames from `start` seconds on, as far as is known by their end.

        None where no face was seen in them, nor just before.
        """
        fps = self.layout.fps
        clock, end = start + np.arange(frames) / fps, start + frames / fps
        with self._lock:
            self._forget(start)
            known = [n for n, time in enumerate(self._times) if time < end]
            if not known or self._times[known[-1]] < start - BRIDGED_S:
                return None
            times = np.array([self._times[n] for n in known])
            seen = np.stack([self._seen[n] for n in known])
            usual = np.median([seen for time, seen in self._usual if time < end], axis=0)
        read = self._regressor(seen, usual)
        rows = np.stack([np.interp(clock, times, column) for column in read.T], axis=1)
        return Motion(_in_layout(rows, self._regressor.layout, self.layout), self.layout)

    def _forget(self, start: float) -> None:
        """All that is too old to be asked for, but for the newest."""
        old = sum(time < start - _KEPT_S for time in self._times)
        old = min(old, len(self._times) - 1)
        if old > 0:
            del self._times[:old], self._seen[:old]


def require_readable(layout: Layout, topology: str) -> None:
    """Raise `CorpusError` unless faces of a head can be read in a layout."""
    if layout.topology != topology:
        raise CorpusError(
            f"faces are read as motion of the {topology} head, and this policy perceives motion of "
            f"{layout.topology}: name its head, head.path=FILE, or do not watch"
        )


def watched(
    chunks: Iterator[Chunk], media: Media, head: HeadAsset, layout: Layout, seconds: float
) -> Iterator[Chunk]:
    """Chunks of a film with the motion of the face in it.

    Args:
        chunks: of it, in order, from the beginning.
        media: the film.
        head: whose coefficients the face is read as.
        layout: of the motion.
        seconds: of a chunk.

    Raises:
        RecordingError: the pictures cannot be decoded.
        CorpusError: MediaPipe is not there, or the layout is of another head.
    """
    frames = round(seconds * layout.fps)
    with Landmarker() as landmarker:
        watcher = Watcher(Finder(landmarker), learnt(head, landmarker), layout)
        film = film_of(media)
        try:
            for number, chunk in enumerate(chunks):
                for time, picture in film.until((number + 1) * seconds) or []:
                    watcher.look(time, picture)
                yield replace(chunk, motion=watcher.motion(number * seconds, frames))
        finally:
            say = logger.info if watcher.found else logger.warning
            say(f"  a face in {watcher.found} of {watcher.looked} pictures of {media.path.name}")


def _in_layout(rows: np.ndarray, read: Layout, wanted: Layout) -> np.ndarray:
    """Rows (frames, dim) of one layout in another; what was not read keeps still."""
    values = np.zeros((len(rows), wanted.dim), np.float32)
    for name, width in wanted.groups:
        if name in read.names:
            known = rows[:, read.columns(name)][:, :width]
            first = wanted.columns(name).start
            values[:, first : first + known.shape[1]] = known
    return values
