"""What a replica is made of: policies, the engine, sessions, and how many more fit."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from rapport.actors import telemetry
from rapport.log import logger
from rapport.pipeline.explained import explained_errors
from rapport.pipeline.rundir import RunError
from rapport.pipeline.serve.doors import Refused, Rules, Seats, Tickets, full
from rapport.pipeline.serve.engine import PICTURE_S, SIDE, Engine, Voice, in_silence
from rapport.pipeline.serve.generations import Generations, Limits
from rapport.pipeline.serve.record import require_folder
from rapport.pipeline.serve.session import Reserved, Session, SessionRequest
from rapport.pipeline.serve.settings import FORGOTTEN_S, ServeSection
from rapport.pipeline.serve.voices import SHIPPED, load_voice
from rapport.policies.head.asset import HeadAsset, load_head
from rapport.policies.head.settings import HeadConfig

if TYPE_CHECKING:
    from rapport.pipeline.serve.eyes import Eyes

STALE_S = 2.0  # an engine that has not stepped for so long, and has something to do
JUDGED_S = 10.0  # for which it is true what was found of the policies
ALIKE = 1e-4  # what a policy answers, and what it answered when it was loaded
RETRY_S = 10.0


class Server:
    """A replica.

    Args:
        config: of the server.
        head: that is animated.
        name: of the replica.
        secret: of tickets, the same in all replicas.
        token: that clients need; None = none.

    Raises:
        RunError: recordings cannot be kept where they shall be.
    """

    def __init__(
        self,
        config: ServeSection,
        head: HeadConfig,
        name: str,
        secret: bytes,
        token: str | None,
    ) -> None:
        require_folder(config.record)
        self.config = config
        self.name = name
        self.head: HeadAsset = load_head(head.path, head.topology)
        self.rules = Rules(
            token=token,
            origins=frozenset(config.origins),
            requests=config.limits.requests,
            upload=config.limits.upload_bytes,
        )
        self.tickets = Tickets(Reserved, secret)
        self.seats = Seats(config.limits.sessions)
        self.engine = Engine(self._observe)
        self.eyes = _eyes(self.head) if config.watch else None
        self.sessions: dict[str, Session] = {}
        self.voices: dict[str, Voice] = {}
        self._coming: list[Voice] = []  # of sessions whose sockets are being opened
        self.resumed = 0
        self.trouble: str | None = None  # with policies that should have been loaded
        self._canaries: dict[str, np.ndarray] = {}
        self._sources: dict[str, str | None] = {}
        self._looked_at: float | None = None
        self._loading = threading.Lock()
        self._judging = threading.Lock()
        self._judged = -math.inf  # when the policies were looked at
        self._changed: str | None = None  # the name of one that answers otherwise
        limits = Limits(
            config.limits.upload_bytes, config.limits.minutes, waiting=config.limits.jobs
        )
        self.generations = Generations(self.voices, limits=limits, head=head, watches=config.watch)

    # -- Policies --

    def load(self, policies: Mapping[str, str]) -> None:
        """Serve these policies from now on; sessions keep the one that they began with."""
        with self._loading:
            sources: dict[str, str | None] = dict(policies) or {SHIPPED: None}
            try:
                fresh = {
                    name: self._fresh(name, source)
                    for name, source in sources.items()
                    if name not in self.voices or self._sources[name] != source
                }
            finally:
                if self._looked_at is not None:
                    self.looked_at()  # Ray Serve did not, meanwhile
            for name, (voice, canary) in fresh.items():  # all of them can be served
                self.voices[name] = voice
                self._canaries[name] = canary
            self._sources = sources
            for name in self.voices.keys() - sources.keys():
                del self.voices[name]
            self._judged = -math.inf

    def _fresh(self, name: str, source: str | None) -> tuple[Voice, np.ndarray]:
        """A policy that can be served, and what it answers to its canary."""
        voice = load_voice(name, source, self.config, self.head)
        if voice.policy.takes_text:
            voice.policy.told("")  # its encoder loads here, before threads could meet
        canary = _canary(voice)
        _say(voice)
        self._say_of_faces(voice)
        return voice, canary

    def reload(self, policies: Mapping[str, str]) -> None:
        """The same, where the present ones are kept if one of these cannot be loaded."""
        if not self.voices:
            self.load(policies)
            return
        try:
            self.load(policies)
            self.trouble = None
        except explained_errors() as error:
            logger.error(f"the policies stay as they are: {error}")
            self.trouble = str(error)

    def voice(self, name: str | None) -> Voice:
        """The policy of that name; the first one where none is named.

        Raises:
            Refused: there is none.
        """
        name = name or next(iter(self.voices))
        if name not in self.voices:
            known = ", ".join(self.voices)
            raise Refused(404, "policy", f"no policy {name!r}; there are {known}", field="policy")
        return self.voices[name]

    # -- Sessions --

    def require_room(self, voice: Voice) -> None:
        """Raise `Refused` where one more session would keep all the others waiting."""
        if self.leaving:
            raise full("this replica goes away", 1)
        open_sessions = [each for each in self.sessions.values() if not each.ended]
        voices = [*(session.voice for session in open_sessions), *self._coming]
        load = sum(1 / each.sessions for each in voices)
        if load + 1 / voice.sessions > 1 + 1e-9 or len(voices) >= self.config.sessions:
            telemetry.record(telemetry.REFUSED, 1)
            raise full(f"{len(voices)} sessions, no more fit", RETRY_S)

    @contextmanager
    def place(self, voice: Voice) -> Iterator[None]:
        """A place for a session that is about to begin: others may ask meanwhile.

        Raises:
            Refused: there is none.
        """
        self.require_room(voice)
        self._coming.append(voice)
        try:
            yield
        finally:
            self._coming.remove(voice)

    def check(self, request: SessionRequest) -> Voice:
        """The policy that a session is asked for with.

        Raises:
            Refused: it cannot do what is asked.
        """
        voice = self.voice(request.policy)
        if request.text is not None and not voice.policy.takes_text:
            raise Refused(422, "text", f"{voice.name} takes no text", field="text")
        if request.lead not in voice.delay:
            raise Refused(422, "lead", "lead is for AR-Flow, leave it out", field="lead")
        wanted = {*request.outputs} - {"act"}
        if wanted == {"arkit"} and voice.rig is None:
            raise Refused(
                422,
                "outputs",
                f"{voice.name} moves another head than the one that is served: no ARKit weights",
                field="outputs",
            )
        return voice

    def eyes_for(self, voice: Voice) -> Eyes | None:
        """Who reads the faces of those who talk to a policy; None where nobody does."""
        perceives = "speaker" in voice.policy.reads
        same_head = voice.policy.layout.topology == self.head.topology
        return self.eyes if perceives and same_head else None

    def _say_of_faces(self, voice: Voice) -> None:
        """Who is not watched, though the server does."""
        if self.eyes and "speaker" in voice.policy.reads and not self.eyes_for(voice):
            logger.warning(
                f"  {voice.name}: no faces are read for it, as it perceives motion of "
                f"{voice.policy.layout.topology}; those of {self.head.topology} are (head.path)"
            )

    def camera(self, voice: Voice) -> dict[str, Any] | None:
        """What a policy wants of a camera: how large, how often; None = nothing.

        `reads` says who looks at the pictures: the policy itself ("pictures"), or this server,
        which reads a face off them ("face").
        """
        if "speaker_frames" in voice.policy.reads:
            return {"reads": "pictures", "side": SIDE, "every_s": PICTURE_S}
        if self.eyes_for(voice) is not None:
            return {"reads": "face", "side": 256, "every_s": 0.08}
        return None

    def close(self) -> None:
        """End all threads."""
        self.generations.close()
        self.engine.stop()
        if self.eyes is not None:
            self.eyes.stop()

    def wait(self, voice: Voice) -> float:
        """Seconds until the next beat: sessions that keep it share their steps."""
        return -self.engine.clock() % voice.listener.chunk

    def opened(self, session: Session) -> None:
        """A session began."""
        self.sessions[session.name] = session
        self.resumed += session.request.number > 0
        telemetry.record(telemetry.SESSIONS, len(self.sessions))
        if session.request.number:
            telemetry.record(telemetry.RESUMED, 1)

    def closed(self, session: Session) -> None:
        """A session ended."""
        session.leave()
        self.sessions.pop(session.name, None)
        telemetry.record(telemetry.SESSIONS, len(self.sessions))

    def reserved(self, request: SessionRequest) -> Reserved:
        """A session that was asked for; its id ends its name, wherever it begins."""
        return Reserved(id=secrets.token_hex(6), request=request)

    def name_of(self, reserved: Reserved) -> str:
        """Of a session that begins here; it stands in every line of the log about it."""
        return f"{self.name}.{reserved.id}"

    # -- Health --

    def looked_at(self) -> None:
        """Ray Serve looks at the replicas that stay, and at no others."""
        self._looked_at = time.monotonic()

    @property
    def leaving(self) -> bool:
        """Whether the replica is on its way out.

        While it loads policies, Ray Serve does not look at it either.
        """
        looked_at = self._looked_at
        if looked_at is None or self._loading.locked():
            return False
        return time.monotonic() - looked_at > FORGOTTEN_S

    def require_alive(self) -> None:
        """Raise `RuntimeError` unless the engine steps what it has."""
        counts = self.engine.counts
        since = self.engine.clock() - max(counts.last_step, counts.idle_until)
        if self.engine.waiting() and self.engine.counts.steps and since > STALE_S:
            raise RuntimeError(f"the engine has not stepped for {since:.1f} s")

    def require_ready(self) -> None:
        """Raise `RuntimeError` unless every policy answers as it did when it was loaded."""
        self.require_alive()
        if self.trouble is not None:
            raise RuntimeError(self.trouble)
        with self._judging:  # whoever asks, and however often, steps are for sessions
            if time.monotonic() - self._judged > JUDGED_S:
                self._changed = self._otherwise()
                self._judged = time.monotonic()
        if self._changed is not None:
            raise RuntimeError(f"policy {self._changed} answers otherwise than when it was loaded")

    def _otherwise(self) -> str | None:
        """The name of a policy that does not answer as when it was loaded; None where all do."""
        for name, voice in list(self.voices.items()):
            if not np.allclose(_canary(voice), self._canaries[name], rtol=0, atol=ALIKE):
                return name  # as well where it is no number
        return None

    def status(self) -> dict[str, float]:
        """Numbers of this replica."""
        counts = self.engine.counts
        sessions = list(self.sessions.values())
        eyes = self.eyes
        looked_at = {} if eyes is None else {"pictures": eyes.looked, "skipped": eyes.skipped}
        return looked_at | {
            "sessions": len(sessions),
            "waiting": self.engine.waiting(),
            "steps": counts.steps,
            "answers": counts.stepped,
            "missed": counts.missed,
            "failed": counts.failed,
            "longest_step_seconds": counts.longest_s,
            "late": sum(session.late for session in sessions),
            "dropped": sum(session.dropped for session in sessions),
            "resumed": self.resumed,
        }

    def _observe(self, policy: str, batch: int, seconds: float) -> None:
        telemetry.record(telemetry.STEP_SECONDS, seconds, policy=policy, batch=str(batch))


def _eyes(head: HeadAsset) -> Eyes:
    from rapport.pipeline.serve.eyes import Eyes  # not for replicas that see nobody

    return Eyes(head)


def as_prometheus(status: Mapping[str, float]) -> str:
    """Numbers in Prometheus' text format."""
    return "".join(f"rapport_{name} {value:g}\n" for name, value in status.items())


def _canary(voice: Voice) -> np.ndarray:
    """What a policy does in silence, three chunks long: (frames, dim)."""
    steps = in_silence(voice.listener, voice.start(0), 3)
    return np.concatenate([motion.values for motion, *_ in steps])


def _say(voice: Voice) -> None:
    """What a policy costs, and how many sessions fit."""
    costs = ", ".join(f"{count}: {1000 * cost:.0f}" for count, cost in voice.costs.items())
    logger.info(f"  {voice.name}: {voice.sessions} sessions fit; ms a step, by sessions: {costs}")
    if voice.costs[1] > voice.listener.chunk:
        raise RunError(
            f"{voice.name} takes {voice.costs[1]:.2f} s for a chunk of {voice.listener.chunk:g} s, "
            "so nobody can talk to it here: more serve.cpus, a GPU (serve.gpus), or a smaller one"
        )
