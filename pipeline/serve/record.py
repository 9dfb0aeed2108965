"""What a session that is recorded leaves: what was heard, and by whom."""

from __future__ import annotations

import json
import os
import tempfile
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rapport.files import write_atomic
from rapport.log import logger
from rapport.pipeline.rundir import RunError
from rapport.policies.clip import AUDIO_RATE

if TYPE_CHECKING:  # seconds of imports, which whoever only looks at the folder needs none of
    from rapport.pipeline.serve.session import Session
    from rapport.policies.live import Chunk


def require_folder(folder: Path | None) -> None:
    """Raise `RunError` where recordings cannot be written; the folder is made, None is none."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"sound")
    except OSError as error:
        raise RunError(
            f"serve.record={folder}: no recording can be written there ({error}); name a folder "
            "that takes files, or leave serve.record out"
        ) from error


class Recorder:
    """Writes what one session hears, chunk by chunk.

    Until the session has ended its sound is `NAME.wav.partial`, which plays as far as it goes at
    any time, also where the process is gone. A disk that takes no more ends the recording, not the
    session.

    Args:
        folder: of all recordings.
        session: that is recorded.
    """

    def __init__(self, folder: Path, session: Session) -> None:
        self._path = folder / f"{session.name}.wav"
        self._partial = folder / f"{session.name}.wav.partial"
        self._session = session
        self._texts: list[tuple[int, str | None]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._file = wave.open(str(self._partial), "wb")  # noqa: SIM115 -- closed by `write`
        self._file.setnchannels(1)
        self._file.setsampwidth(2)
        self._file.setframerate(AUDIO_RATE)
        self._file.writeframes(b"")  # its length stands in the header from here on
        self._say()
        self._writer = ThreadPoolExecutor(1, "recorder")  # others go on while a disk is slow
        session.noted = self.heard

    @classmethod
    def of(cls, folder: Path | None, session: Session) -> Recorder | None:
        """None where nothing is kept, or nothing can be."""
        if folder is None:
            return None
        try:
            return cls(folder, session)
        except OSError as error:
            logger.error(f"session {session.name} is not recorded: {error}")
            return None

    def heard(self, number: int, chunk: Chunk, *told: str | None) -> None:
        """A chunk, and what the listener is told from it on, where that changes."""
        assert chunk.audio is not None
        sound = np.rint(chunk.audio * 32768).astype("<i2").tobytes()
        self._writer.submit(self._append, sound, [(number, text) for text in told])

    def _append(self, sound: bytes, texts: list[tuple[int, str | None]]) -> None:
        try:
            self._file.writeframes(sound)
            if texts:
                self._texts += texts
                self._say()
        except Exception as error:  # nobody asks this thread how it went
            self._session.noted = None
            logger.error(
                f"session {self._session.name} is recorded no further: {error}", exc_info=error
            )

    def _say(self) -> None:
        """`NAME.json`: what was asked for, and told in which chunk."""
        asked = self._session.request.model_dump()
        asked |= {"policy": self._session.voice.name, "texts": self._texts}
        write_atomic(self._path.with_suffix(".json"), json.dumps(asked, indent=1))

    def write(self) -> None:
        """`NAME.wav`: it has ended."""
        self._writer.shutdown()
        try:
            self._file.close()
            os.replace(self._partial, self._path)
        except OSError as error:
            logger.error(f"what session {self._session.name} heard stays as it is: {error}")
