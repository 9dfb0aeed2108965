"""Recordings in, a listener's files out: jobs in a folder, done one after the other.

Nothing of a person is kept longer than it is needed. An upload goes as soon as its job has ended;
the job and what was made go when they are deleted, when the server that took them in goes, or an
hour after it ended. What a killed server left goes by then, too, as soon as another one looks into
the folder: whoever took a job in says by the times of its folders that it still waits or runs.

    FOLDER/ID/job.json      how far it is
    FOLDER/ID/files/...     what was made, once all of it is there
    FOLDER/ID.work/         the upload, and what is being made

A job is done by the process that took it in. All that share the folder answer for it, and delete
it: whoever works on a job looks, chunk by chunk, whether its folder is still there.
"""

from __future__ import annotations

import os
import queue
import re
import secrets
import shutil
import stat
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, NamedTuple, Protocol

from fastapi import APIRouter, File, Form, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel, ValidationError

from rapport.log import logger
from rapport.pipeline.data.recording import MOTION_FILES, RecordingError
from rapport.pipeline.explained import explained_errors
from rapport.pipeline.rundir import RunError
from rapport.pipeline.serve.doors import UPLOADS, Clock, Refused, full
from rapport.pipeline.settings import ListenConfig
from rapport.pipeline.steps.listener_files import write_files
from rapport.pipeline.steps.listening import Session, answer, begin, session_of
from rapport.policies.head.settings import HeadConfig
from rapport.policies.live import Chunk
from rapport.policies.policy import Policy
from rapport.policies.seams import Smoother

KEPT_S = 3600.0  # after the end of a job
SWEEP_S = 60.0  # how often a folder is looked through where nobody asks for anything
NICE = 10  # a recording can wait, a person who talks cannot
TEXT = 1000  # letters of what a listener is told
_ID = re.compile(r"[0-9a-f]{32}")
_COPIED = 1 << 20  # bytes at once


class Served(Protocol):
    """What a server serves under a name."""

    @property
    def policy(self) -> Policy:
        """Its weights; a live form of its own is made of them for every job."""

    @property
    def smoother(self) -> Smoother | None:
        """What joins the frames of a step to those before; None = nothing does."""


@dataclass(frozen=True)
class Limits:
    """How much a job may be.

    Args:
        bytes: of an upload, and of arrays once they are unpacked.
        minutes: of a recording.
        samples: listeners of a recording.
        waiting: jobs that wait for the one before them.
    """

    bytes: int = 64 * 1024 * 1024
    minutes: float = 10.0
    samples: int = 4
    waiting: int = 8


class Generation(BaseModel):
    """A job.

    Args:
        id: known to whoever handed the recording in, and not to be guessed.
        policy: who listens.
        status: how far it is.
        why: it failed.
        files: names of what was made.
        seconds: of the recording.
        delay_s: by how much a frame would be shown later, live.
    """

    id: str
    policy: str
    status: Literal["waits", "runs", "done", "failed"] = "waits"
    why: str | None = None
    files: list[str] = []
    seconds: float | None = None
    delay_s: float | None = None


class Generations:
    """Jobs, and the thread that does them.

    Policies are only read from: other threads may use them meanwhile.

    Args:
        policies: who can listen, by name; the first one does where nobody is asked for.
        folder: of the jobs; None = one of this user's in the system's place for temporary files,
            which all processes on this machine share.
        limits: how much a job may be.
        head: that films show, and animations have; None = the built-in one.
        watches: whether faces are read off films where that is asked for.
        clock: seconds since 1970.

    Raises:
        RunError: somebody else could read the folder.
    """

    def __init__(
        self,
        policies: Mapping[str, Served],
        folder: Path | None = None,
        *,
        limits: Limits = Limits(),
        head: HeadConfig | None = None,
        watches: bool = False,
        clock: Clock = time.time,
    ) -> None:
        self.policies = policies
        self.limits = limits
        self.folder = _temporary() if folder is None else folder
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._head = head or HeadConfig()
        self._watches = watches
        self._clock = clock
        self._waiting: queue.Queue[_Handed | None] = queue.Queue(limits.waiting)
        self._own: set[str] = set()
        self._unended: set[str] = set()  # of those
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=does, name="generations", daemon=True)
            for does in (self._work, self._keep)
        ]

    def start(self) -> None:
        """Begin to do what was handed in."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop, and forget all that was handed in here."""
        self._closing.set()
        for id in list(self._own):
            with suppress(Refused):
                self.delete(id)
        while self.run_next(wait_s=0):
            pass  # nobody wants it any more
        self._waiting.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=10)

    def hand_in(
        self, upload: BinaryIO, name: str, config: ListenConfig, policy: str | None = None
    ) -> Generation:
        """A recording, which is copied, and a job for it.

        Args:
            upload: the recording.
            name: of its file, as its owner calls it.
            config: what is asked for; its policy, speaker and head are not read.
            policy: who shall listen; None = the first.

        Raises:
            Refused: nobody has that name, too much is asked for, or too many wait.
        """
        self._sweep()
        who = next(iter(self.policies)) if policy is None else policy
        if who not in self.policies:
            names = ", ".join(self.policies)
            raise _wrong("policy", f"nobody is called {who!r}: there are {names}")
        if config.watch and not self._watches:
            raise _wrong("watch", "this server reads no faces (serve.watch=true), leave it out")
        if config.samples > self.limits.samples:
            raise _wrong("samples", f"at most {self.limits.samples}")
        if self._closing.is_set() or self._waiting.full():
            raise self._full()
        job = Generation(id=secrets.token_hex(16), policy=who)
        self._own.add(job.id)
        self._unended.add(job.id)
        (self.folder / job.id).mkdir(mode=0o700)
        try:
            self._put(job)
            speaker = self._work_of(job.id) / "upload" / _file_name(name)
            speaker.parent.mkdir(mode=0o700, parents=True)
            self._copy(upload, speaker)
            asked = config.model_copy(update={"head": self._head})
            self._waiting.put_nowait(_Handed(job, asked, speaker))
        except queue.Full:
            self.delete(job.id)
            raise self._full() from None
        except BaseException:
            self.delete(job.id)
            raise
        return job

    def job(self, id: str) -> Generation:
        """How far a job is.

        Raises:
            Refused: there is none.
        """
        self._sweep()
        if not _ID.fullmatch(id):
            raise _unknown(id)
        try:
            return Generation.model_validate_json((self.folder / id / "job.json").read_bytes())
        except FileNotFoundError:
            raise _unknown(id) from None

    def file(self, id: str, name: str) -> Path:
        """A file of a job's result.

        Raises:
            Refused: there is no such job, or no such file of it.
        """
        job = self.job(id)
        if name not in job.files:
            there = ", ".join(job.files) or "none yet"
            raise Refused(404, "unknown", f"no file of that name; there are {there}", field="name")
        return self.folder / id / "files" / name

    def delete(self, id: str) -> None:
        """Forget a job and all that belongs to it; whoever works on it stops.

        Raises:
            Refused: there is none.
        """
        if not _ID.fullmatch(id):
            raise _unknown(id)
        self._own.discard(id)
        self._unended.discard(id)
        # At once, so that nobody meets half of a job.
        gone = self.folder / f"{id}.gone"
        try:
            (self.folder / id).rename(gone)
        except FileNotFoundError:
            raise _unknown(id) from None
        # Somebody may still write there, and removes it then.
        shutil.rmtree(self._work_of(id), ignore_errors=True)
        _remove(gone)

    def run_next(self, wait_s: float) -> bool:
        """Do the next job; False where none came within `wait_s`, or ever will."""
        try:
            handed = self._waiting.get(timeout=wait_s)
        except queue.Empty:
            return False
        if handed is None:
            return False
        try:
            ended = self._ended(handed)
        finally:
            _remove(self._work_of(handed.job.id))
        with suppress(_Gone):
            self._put(ended)
        self._unended.discard(handed.job.id)
        return True

    def _work(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while not self._closing.is_set():
            self.run_next(wait_s=SWEEP_S)

    def _keep(self) -> None:
        """Beside the work, as a single film may take hours."""
        while not self._closing.wait(SWEEP_S):
            self._sweep()

    def _ended(self, handed: _Handed) -> Generation:
        """A job as it is when it has ended, well or not."""
        try:
            return self._done(handed)
        except _Gone:
            why = "it was deleted"
        except explained_errors() as error:
            # Its owner knows the recording by its name.
            why = str(error).replace(f"{handed.speaker.parent}{os.sep}", "")
        except Exception:
            logger.exception(f"generation {handed.job.id} failed")
            why = "the server failed, and not because of the recording; its log says why"
        return handed.job.model_copy(update={"status": "failed", "why": why})

    def _done(self, handed: _Handed) -> Generation:
        job, config, speaker = handed

        def look() -> None:
            if not (self.folder / job.id).is_dir():
                raise _Gone

        look()
        self._put(job.model_copy(update={"status": "runs"}))
        self._require_small(speaker)
        served = self.policies.get(job.policy)
        if served is None:
            raise RunError(f"policy {job.policy} is served no longer: ask again with another one")
        policy = served.policy
        session = session_of(policy, job.policy, speaker, config)
        recording = session.recording
        if recording.seconds > 60 * self.limits.minutes:
            raise RecordingError(
                f"{speaker} lasts {recording.seconds / 60:.1f} minutes; at most "
                f"{self.limits.minutes:g} are listened to"
            )
        listening = _Interruptible(
            session.name, policy, session.listener, recording, session.watched, look=look
        )
        answered = answer(listening, begin(session, config), logger.debug, served.smoother)
        made = self._work_of(job.id) / "files"
        names = []
        for path in write_files(config, recording, answered.motions, made):
            look()
            names.append(path.name)
        try:
            made.rename(self.folder / job.id / "files")
        except FileNotFoundError:
            raise _Gone from None
        result = {"files": names, "seconds": recording.seconds, "delay_s": answered.delay}
        return job.model_copy(update={"status": "done", **result})

    def _require_small(self, speaker: Path) -> None:
        """Raise `RecordingError` for motion that says little and unpacks to a lot."""
        suffix = speaker.suffix.lower()
        if suffix not in MOTION_FILES:
            return
        if suffix != ".npz":
            raise RecordingError(f"{speaker}: motion comes as npz, as `Motion.save` writes it")
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(speaker) as arrays:
            size = sum(entry.file_size for entry in arrays.infolist())
            if size > self.limits.bytes:
                raise RecordingError(
                    f"{speaker} unpacks to {size} bytes; at most {self.limits.bytes} are read"
                )

    def _copy(self, upload: BinaryIO, path: Path) -> None:
        size = 0
        with path.open("xb") as file:
            while piece := upload.read(_COPIED):
                size += len(piece)
                if size > self.limits.bytes:
                    message = f"a recording has at most {self.limits.bytes} bytes"
                    raise Refused(413, "size", message, field="file")
                file.write(piece)

    def _put(self, job: Generation) -> None:
        """Write down how far a job is."""
        partial = self.folder / job.id / "job.tmp"
        try:
            partial.write_text(job.model_dump_json())
            partial.replace(self.folder / job.id / "job.json")
        except FileNotFoundError:
            raise _Gone from None

    def _work_of(self, id: str) -> Path:
        return self.folder / f"{id}.work"

    def _full(self) -> Refused:
        return full(f"{self.limits.waiting} recordings wait already: come again", wait_s=30)

    def _sweep(self) -> None:
        """Remove what ended an hour ago, also what a killed process left."""
        now = self._clock()
        for id in list(self._unended):
            for path in (self.folder / id, self._work_of(id)):
                with suppress(FileNotFoundError):
                    os.utime(path, (now, now))
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process sweeps too
                if now - path.stat().st_mtime <= KEPT_S:
                    continue
                if _ID.fullmatch(path.name):
                    with suppress(Refused):
                        self.delete(path.name)
                else:
                    _remove(path)


class _Handed(NamedTuple):
    """What waits.

    Args:
        job: as it is written down.
        config: what is asked for.
        speaker: the upload.
    """

    job: Generation
    config: ListenConfig
    speaker: Path


class _Gone(Exception):
    """The job was deleted."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Interruptible(Session):
    """A session during which somebody may change their mind.

    Args:
        look: raises `_Gone` where they did.
    """

    look: Callable[[], None]

    def chunks(self) -> Iterator[Chunk]:
        for chunk in super().chunks():
            self.look()
            yield chunk


def router(generations: Generations) -> APIRouter:
    """What HTTP makes of it."""
    routes = APIRouter(prefix=UPLOADS, tags=["generations"])

    @routes.post("", status_code=202)
    def hand_in(  # noqa: PLR0913, the fields of a form
        file: Annotated[UploadFile, File(description="a film, a sound, or motion (npz)")],
        formats: Annotated[str, Form(description="npz, parquet, csv, glb, mp4")] = "npz",
        samples: Annotated[int, Form(ge=1, description="listeners")] = 1,
        seed: Annotated[int, Form(ge=0, lt=1 << 63)] = 0,
        text: Annotated[str | None, Form(max_length=TEXT)] = None,
        policy: Annotated[str | None, Form()] = None,
        lead: Annotated[int | None, Form(description="AR-Flow alone: 0, 4, 8 or 12")] = None,
        watch: Annotated[bool, Form(description="read the face of a film's speaker")] = False,
    ) -> Generation:
        """Let somebody listen to a recording."""
        asked = {"formats": formats, "samples": samples, "seed": seed, "text": text}
        asked |= {"lead": lead, "watch": watch}
        return generations.hand_in(file.file, file.filename or "", _config(asked), policy)

    @routes.get("/{id}")
    def status(id: str) -> Generation:
        """How far a job is."""
        return generations.job(id)

    @routes.delete("/{id}", status_code=204)
    def delete(id: str) -> None:
        """Forget a job and all that belongs to it; a running one stops."""
        generations.delete(id)

    @routes.get("/{id}/files/{name}", response_class=FileResponse)
    def result(id: str, name: str) -> FileResponse:
        """A file of its result."""
        path = generations.file(id, name)
        return FileResponse(path, filename=name, headers={"Cache-Control": "no-store"})

    return routes


def _config(asked: dict[str, object]) -> ListenConfig:
    try:
        return ListenConfig.model_validate(asked)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _wrong(str(first["loc"][0]) if first["loc"] else "", first["msg"]) from None


def _wrong(field: str, message: str) -> Refused:
    return Refused(422, "field", f"{field}: {message}", field=field)


def _unknown(id: str) -> Refused:
    message = (
        f"no generation {id!r}: it was deleted, is older than an hour, or another server has it"
    )
    return Refused(404, "unknown", message, field="id")


def _file_name(name: str) -> str:
    """What somebody calls a file, as far as it can be no path."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^\w.-]", "_", last, flags=re.ASCII).lstrip(".-")[-80:] or "recording"


def _remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _temporary() -> Path:
    """The folder of this user, whom it must belong to: everybody may write beside it."""
    folder = Path(tempfile.gettempdir()) / f"rapport-generations-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    of = folder.lstat()
    if not stat.S_ISDIR(of.st_mode) or of.st_uid != os.getuid() or of.st_mode & 0o077:
        raise RunError(f"{folder} is not this user's alone: remove it")
    return folder
