"""The page, listening in a thread of this process, and the wait for enough ratings."""

from __future__ import annotations

import math
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import uvicorn

from rapport.files import write_atomic
from rapport.log import logger
from rapport.pipeline.ports import listening
from rapport.pipeline.rating.app import application, links
from rapport.pipeline.rating.offers import Offer
from rapport.pipeline.rating.quality import Opinions, agreement, matched, present_opinions
from rapport.pipeline.rating.settings import RateSection
from rapport.pipeline.rating.store import Store
from rapport.pipeline.rundir import RunError
from rapport.pipeline.serve.settings import TOKEN
from rapport.pipeline.storage import Mirror

ANSWERS = "ratings.db"
COPY_S = 5.0
START_S = 30.0
STOP_S = 10.0
LOOK_S = 2.0
SAY_S = 600.0


class Page:
    """What people rate on; a context manager.

    Args:
        folder: of answers and links, which is made where it is not there.
        config: of the page.
        seed: of all that is drawn.
        mirror: copy of the run directory, which soon has every answer, too; None = there is none.

    Raises:
        RunError: somebody listens at the address already.
    """

    def __init__(
        self, folder: Path, config: RateSection, seed: int, mirror: Mirror | None = None
    ) -> None:
        self.config = config
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # links and answers are nobody else's
        self._listens = listening(config.host, config.port, "rate.port")
        folder.chmod(0o700)  # one that came back from storage is as open as any
        self.store = Store(folder / ANSWERS, config, seed)
        self.token = os.environ.get(TOKEN) or self.store.secret("studio")
        self._server = uvicorn.Server(
            uvicorn.Config(
                application(self.store, self.token),
                access_log=False,
                log_config=None,
                log_level="error",
                lifespan="off",
                timeout_graceful_shutdown=3,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listens]}, daemon=True
        )
        self._mirror = mirror
        self._over = threading.Event()
        self._copies = threading.Thread(target=self._keep_copying, daemon=True)

    def __enter__(self) -> Self:
        write_atomic(
            self.folder / "links.csv",
            "".join(f"{name},{url}\n" for name, url in links(self.store).items()),
        )
        self.copy()
        self._copies.start()
        self._thread.start()
        until = time.monotonic() + START_S
        while not self._server.started:
            if time.monotonic() > until or not self._thread.is_alive():
                raise RunError(f"{self.config.url} does not answer after {START_S:g} s")
            time.sleep(0.01)
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(STOP_S)
        self._listens.close()
        self._over.set()
        self._copies.join()
        try:
            self.copy()
        finally:
            self.store.close()

    def copy(self) -> None:
        """Copy links and answers to the run's storage, where it has one.

        Raises:
            OSError: the storage does not take them.
        """
        if self._mirror is None:
            return
        self._mirror.push(self.folder / "links.csv")
        with tempfile.TemporaryDirectory() as scratch:
            copied = Path(scratch) / ANSWERS
            self.store.copy_to(copied)
            self._mirror.replace(copied, self.folder / ANSWERS)

    def _keep_copying(self) -> None:
        """Copy what is new every `COPY_S` seconds; what fails is tried again."""
        while not self._over.wait(COPY_S):
            if not self.store.changed.is_set():
                continue
            try:
                self.copy()
            except (OSError, sqlite3.Error) as error:
                self.store.changed.set()
                logger.warning(f"WARNING: answers are not copied to storage.uri: {error}")

    @property
    def studio(self) -> str:
        """The address of the studio's page, with the token where nobody was told it before."""
        told = "" if os.environ.get(TOKEN) else f"#{self.token}"
        return f"{self.config.url}/studio{told}"

    def open(self, offer: Offer) -> None:
        """Offer a round; the one before is over."""
        self.store.per_group = self.config.per_group
        self.store.offer = offer

    def rest(self, *, more: bool) -> None:
        """Nothing is offered; with `more`, raters are asked to come again for the next round."""
        self.store.rest(more=more)

    def said(self, offer: Offer) -> Opinions:
        """By raters who are not left out."""
        return present_opinions(self.store, offer)

    def matched(self, offer: Offer) -> dict[str, dict[str, float | None]]:
        """See `quality.matched`."""
        return matched(self.store.answers(offer.number), offer, self.store.left_out())

    def wait(
        self,
        offer: Offer,
        say: Callable[[str], None],
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> bool:
        """Wait until an offer is rated enough, or the deadline is over.

        Enough are `rate.per_group` raters of each group, and where their agreement is below
        `rate.alpha`, one more of each, as often as it takes and there are raters.

        Args:
            offer: is open.
            say: reports progress.
            sleep: seconds.
            clock: seconds since 1970.

        Returns:
            whether it was enough; False = the deadline is over, or nobody is left who could be
            asked.
        """
        deadline = self._deadline(offer, clock())
        told = -SAY_S
        while clock() < deadline:
            finished = self.store.finished()
            full = sum(finished[name] >= self.store.per_group for name in offer.groups)
            if full == len(offer.groups):
                alpha = agreement(self.said(offer), offer.weights)
                if self.config.alpha is None or (alpha or 0.0) >= self.config.alpha:
                    say(f"all {full} groups have {self.store.per_group} raters")
                    return True
                low = (
                    f"agreement is {alpha if alpha is not None else 'not known'}, below "
                    f"rate.alpha={self.config.alpha:g}"
                )
                if self.store.per_group >= self._most(offer):
                    logger.warning(
                        f"WARNING: {low}, and no link is left for one rater more of every group: "
                        f"round {offer.number} goes on with {self.store.per_group} (rate.raters, "
                        "rate.groups)"
                    )
                    return False
                self.store.per_group += 1
                say(f"{low}: one more rater for every group")
            if clock() - told > SAY_S:
                told = clock()
                left = (deadline - told) / 3600
                most = self._most(offer)
                short = f", and links are for {most:g} (rate.raters, rate.groups)"
                say(
                    f"{full} of {len(offer.groups)} groups have {self.store.per_group} raters"
                    f"{short if most < self.store.per_group else ''}; {left:.1f} h left; "
                    f"{self.studio}"
                )
            sleep(LOOK_S)
        logger.warning(
            f"WARNING: rate.hours={self.config.hours:g} are over before round {offer.number} was "
            "rated enough"
        )
        return False

    def _most(self, offer: Offer) -> float:
        """How many raters each group can have: of links, as many as rate so many groups."""
        if self.config.recruit == "prolific":
            return math.inf
        there = sum(not rater.left_out for rater in self.store.raters())
        groups = len(offer.groups)
        return there * min(self.config.groups or groups, groups) // groups

    def _deadline(self, offer: Offer, now: float) -> float:
        """When the round is over: a run that is resumed has no more time than another."""
        began = float(self.store.noted(f"round {offer.number}", str(now)))
        return began + 3600 * self.config.hours
