"""What was said, from a transcript beside a recording or from a `Transcriber` of one's own.

    a.json     whisper's and WhisperX's output, or a list of {text or word, start, end}
    a.vtt      WebVTT
    a.srt      SubRip
    a.txt      a line for each stretch of speech: start, end, text (Audacity's labels)

Times are seconds from the start of the recording. Where only a whole sentence has times, its words
share them by their lengths, which is a guess of about a syllable.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rapport.files import strict_json, write_atomic
from rapport.pipeline.data.store import CorpusError
from rapport.policies.clip import AUDIO_RATE, Word

# Forms of transcripts, the one that knows most first: whisper writes all of them at once.
KINDS = ("json", "vtt", "srt", "txt")
# A recogniser's last word may end a little after its sound.
BEYOND_S = 0.5
_TIMES = re.compile(r"(?P<start>[\d:.,]+)\s+-->\s+(?P<end>[\d:.,]+)")
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
_TAG = re.compile(r"<[^>]*>")

Timed = tuple[str, float, float]  # text, start and end in seconds


class Transcriber(Protocol):
    """Something that writes down what is said, for example a speech recogniser of yours."""

    def __call__(self, audio: np.ndarray, rate: int) -> Sequence[Word]:
        """Words with times.

        Args:
            audio: (samples,) float32 in [-1, 1], mono.
            rate: samples per second.

        Returns:
            The words in order, in seconds from the first sample; empty where nobody speaks.
        """


def read_transcript(path: Path, seconds: float) -> tuple[Word, ...]:
    """The words of a transcript, in order.

    Args:
        path: a file of one of the `KINDS`.
        seconds: length of the recording.

    Raises:
        CorpusError: the file is damaged or has no times, or they are no times of this recording;
            names the file and the word.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} cannot be read as text: {error}") from error
    read = {".json": _of_json, ".txt": _of_labels}.get(path.suffix.lower(), _of_captions)
    try:
        timed = list(read(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(
            f"{path} is no transcript with times: {error}. Words or sentences need a start and an "
            "end in seconds"
        ) from error
    return checked(timed, seconds, str(path))


def checked(timed: Iterable[Timed], seconds: float, where: str) -> tuple[Word, ...]:
    """Words in order, each with times within the recording.

    Args:
        timed: words, or stretches of several, which share their time.
        seconds: length of the recording.
        where: they come from.

    Raises:
        CorpusError: a time is none, or lies outside the recording; names the word.
    """
    words: list[Word] = []
    for text, start, end in timed:
        if not (math.isfinite(start) and math.isfinite(end) and 0 <= start <= end):
            raise CorpusError(f"{where}: {text!r} from {start} to {end} s: these are no times")
        if end > seconds + BEYOND_S:
            raise CorpusError(
                f"{where}: {text!r} ends at {end:.2f} s, its recording after {seconds:.2f} s. Is "
                "it the transcript of another recording, or are its times no seconds?"
            )
        words += _spread(text, start, min(end, seconds))
    return tuple(sorted(words, key=lambda word: word.start))


def _spread(text: str, start: float, end: float) -> Iterator[Word]:
    """The words of a stretch, each with a share of its time by its letters."""
    texts = text.split()
    letters = np.cumsum([0] + [len(word) + 1 for word in texts])
    start = min(start, end)
    times = start + (end - start) * letters / letters[-1]
    for word, begin, stop in zip(texts, times, times[1:], strict=False):
        yield Word(word, float(begin), float(stop))


def _of_json(text: str) -> Iterator[Timed]:
    content = json.loads(text)
    entries = content
    if isinstance(content, dict):
        entries = content.get("segments", content.get("words"))
    if not isinstance(entries, list):
        raise ValueError("neither a list nor whisper's segments")
    for entry in entries:
        inner = entry.get("words")
        # WhisperX leaves out the times of numbers: their sentence has them.
        whole = not inner or any("start" not in word or "end" not in word for word in inner)
        for item in [entry] if whole else inner:
            yield _text_of(item), float(item["start"]), float(item["end"])


def _text_of(entry: dict[str, Any]) -> str:
    text = entry["text"] if "text" in entry else entry["word"]
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no text")
    return text


def _of_labels(text: str) -> Iterator[Timed]:
    for line in filter(None, map(str.strip, text.splitlines())):
        parts = line.split(maxsplit=2)
        if len(parts) < 3:
            raise ValueError(f"{line!r} is not: start end text")
        yield parts[2], float(parts[0]), float(parts[1])


def _of_captions(text: str) -> Iterator[Timed]:
    """SubRip and WebVTT: blocks of lines, one of which has the times, above the text."""
    blocks = 0
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        lines = block.strip().splitlines()
        place = next((i for i, line in enumerate(lines) if "-->" in line), None)
        if place is None:
            continue
        times = _TIMES.search(lines[place])
        if times is None:
            raise ValueError(f"{lines[place]!r} has no times")
        blocks += 1
        said = _TAG.sub("", " ".join(lines[place + 1 :]))
        yield said, _clock(times["start"]), _clock(times["end"])
    if not blocks and text.strip() not in ("", "WEBVTT"):
        raise ValueError("no line with -->")


def _clock(text: str) -> float:
    """Seconds of 01:02:03,450 or 02:03.450."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time")
    hours, minutes, seconds = match.groups()
    return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds.replace(",", "."))


def load_transcriber(name: str) -> Transcriber:
    """The `Transcriber` that `corpus.transcriber` names.

    Args:
        name: "module:Class"; the class is called without arguments.

    Raises:
        CorpusError: there is none, or it does not start.
    """
    module, _, attribute = name.partition(":")
    try:
        transcriber: Transcriber = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # whatever a module of somebody else raises
        raise CorpusError(
            f"corpus.transcriber={name} cannot be used: {type(error).__name__}: {error}. It must "
            "be module:Class, a class that takes no arguments"
        ) from error
    if not callable(transcriber):
        raise CorpusError(
            f"corpus.transcriber={name} cannot be called: it needs __call__(audio, rate), see "
            "rapport.pipeline.data.readers.transcripts.Transcriber"
        )
    return transcriber


class Transcripts:
    """Answers of a transcriber, kept in files so that a killed `prepare` need not ask again.

    Args:
        name: of the transcriber, "module:Class".
        folder: of the answers.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self._transcribe = load_transcriber(name)

    def __call__(self, audio: np.ndarray, speaker: str) -> tuple[Word, ...]:
        """What a transcriber hears, (samples,) at `AUDIO_RATE`.

        Raises:
            CorpusError: it fails, or answers with anything but words with times.
        """
        seconds = len(audio) / AUDIO_RATE
        heard = hashlib.sha256(self.name.encode() + np.ascontiguousarray(audio).tobytes())
        file = self.folder / f"{speaker}-{heard.hexdigest()[:10]}.json"
        if file.is_file():
            return read_transcript(file, seconds)
        where = f"corpus.transcriber={self.name} on {speaker}"
        try:
            answer = self._transcribe(audio, AUDIO_RATE)
            timed = [(str(word.text), float(word.start), float(word.end)) for word in answer]
        except Exception as error:  # whatever a module of somebody else raises
            raise CorpusError(f"{where}: {type(error).__name__}: {error}") from error
        words = checked(timed, seconds, where)
        kept = [{"text": word.text, "start": word.start, "end": word.end} for word in words]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, strict_json(kept))
        return words
