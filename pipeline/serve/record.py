"""What a session that is recorded leaves: what was said, and to whom."""

from __future__ import annotations

import json
import wave
from pathlib import Path

from rapport.files import atomic, write_atomic
from rapport.pipeline.serve import wire
from rapport.pipeline.serve.session import Session
from rapport.pipeline.serve.wire import Kind, Part
from rapport.policies.clip import AUDIO_RATE


class Recorder:
    """Keeps the sound of one session, until it is written.

    Args:
        folder: of all recordings.
        session: that is recorded.
    """

    def __init__(self, folder: Path, session: Session) -> None:
        self._folder = folder
        self._session = session
        self._sound: list[bytes] = []

    @classmethod
    def of(cls, folder: Path | None, session: Session) -> Recorder | None:
        """None where nothing is kept."""
        return None if folder is None else cls(folder, session)

    def heard(self, message: str | bytes) -> None:
        """A message that the session understood."""
        said = wire.unpacked(message) if isinstance(message, bytes) else [wire.said(message)]
        self._sound += [
            part.payload for part in said if isinstance(part, Part) and part.kind == Kind.SOUND
        ]

    def write(self) -> None:
        """`NAME.wav`, what was said, and `NAME.json`, with which listener moves alike again."""
        session = self._session
        path = self._folder / f"{session.name}.wav"
        with atomic(path) as partial, wave.open(str(partial), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(AUDIO_RATE)
            file.writeframes(b"".join(self._sound))
        asked = session.request.model_dump() | {"policy": session.voice.name}
        write_atomic(self._folder / f"{session.name}.json", json.dumps(asked, indent=1))
