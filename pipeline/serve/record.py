"""What a session that is recorded leaves: what was heard, and by whom."""

from __future__ import annotations

import json
import tempfile
import wave
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rapport.files import atomic, write_atomic
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
    """Keeps what one session hears, until it is written.

    Args:
        folder: of all recordings.
        session: that is recorded.
    """

    def __init__(self, folder: Path, session: Session) -> None:
        self._folder = folder
        self._session = session
        self._sound: list[bytes] = []
        self._texts: list[tuple[int, str | None]] = []
        session.noted = self.heard

    @classmethod
    def of(cls, folder: Path | None, session: Session) -> Recorder | None:
        """None where nothing is kept."""
        return None if folder is None else cls(folder, session)

    def heard(self, number: int, chunk: Chunk, *told: str | None) -> None:
        """A chunk, and what the listener is told from it on, where that changes."""
        assert chunk.audio is not None
        self._sound.append(np.rint(chunk.audio * 32768).astype("<i2").tobytes())
        self._texts += [(number, text) for text in told]

    def write(self) -> None:
        """`NAME.wav`, what was heard; `NAME.json`, what was asked for, and told in which chunk."""
        session = self._session
        path = self._folder / f"{session.name}.wav"
        with atomic(path) as partial, wave.open(str(partial), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(AUDIO_RATE)
            file.writeframes(b"".join(self._sound))
        asked = session.request.model_dump() | {"policy": session.voice.name, "texts": self._texts}
        write_atomic(self._folder / f"{session.name}.json", json.dumps(asked, indent=1))
