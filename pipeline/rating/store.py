"""Raters, their groups and their answers, in an SQLite file: every answer once, none lost.

An answer is written in one transaction, with what follows from it, before the rater is told so. It
is kept under its place, so that one that is sent twice is one answer. The file is in WAL mode and
synced at every commit: a server that is killed finds it as it was.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapport.pipeline.rating.offers import Offer
from rapport.pipeline.rating.plan import Item, items_of, order_of_groups
from rapport.pipeline.rating.settings import RateSection

SCHEMA = """
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS raters (
  number INTEGER PRIMARY KEY,      -- from 1, in the order of their coming
  key TEXT NOT NULL UNIQUE,        -- of their address
  outside TEXT UNIQUE,             -- what Prolific calls them
  consented REAL,                  -- when
  offered REAL,                    -- when the present item was shown first
  left_out INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS assignments (
  rater INTEGER NOT NULL REFERENCES raters,
  round INTEGER NOT NULL,
  place INTEGER NOT NULL,          -- among the groups of this rater in this round
  name TEXT NOT NULL,              -- of the group
  until REAL NOT NULL,             -- when somebody else may have it
  done REAL,                       -- when its last item was answered
  PRIMARY KEY (rater, round, place),
  UNIQUE (rater, round, name)
) STRICT;
CREATE TABLE IF NOT EXISTS answers (
  rater INTEGER NOT NULL REFERENCES raters,
  round INTEGER NOT NULL,
  place INTEGER NOT NULL,
  number INTEGER NOT NULL,         -- of the item in its group
  item TEXT NOT NULL,
  answer TEXT NOT NULL,
  seconds REAL NOT NULL,           -- since the item was shown first
  given REAL NOT NULL,             -- when
  PRIMARY KEY (rater, round, place, number)
) STRICT;
"""


class StoreError(RuntimeError):
    """What was asked for cannot be; the message says why.

    Args:
        message: for the rater.
        status: of HTTP.
    """

    def __init__(self, message: str, status: int = 409) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Rater:
    """Somebody who may rate.

    Args:
        number: from 1.
        key: of their address, which nobody else knows.
        outside: what Prolific calls them.
        consented: when they agreed, seconds since 1970; None = not yet.
        left_out: whether the studio leaves their answers out.
    """

    number: int
    key: str
    outside: str | None
    consented: float | None
    left_out: bool

    @property
    def name(self) -> str:
        """That tells nothing about them."""
        return f"rater-{self.number}"


@dataclass(frozen=True)
class Place:
    """Where an item stands for a rater: round, group and number within it."""

    round: int
    place: int
    number: int

    def __str__(self) -> str:
        return f"{self.round}-{self.place}-{self.number}"

    @classmethod
    def of(cls, text: str) -> Place:
        """Of its text.

        Raises:
            StoreError: it is no place.
        """
        parts = text.split("-")
        if len(parts) != 3 or not all(part.isascii() and part.isdecimal() for part in parts):
            raise StoreError(f"{text[:40]!r} is no item", 404)
        numbers = [min(int(part[:9]), 2**31) for part in parts]
        return cls(*numbers)


@dataclass(frozen=True)
class Answered:
    """An answer as it is kept.

    Args:
        rater: their number.
        place: of the item.
        item: what was shown.
        answer: criterion -> grade or None, or `preferred` -> side.
        seconds: from the first sight of the item to the answer.
        given: when, seconds since 1970.
    """

    rater: int
    place: Place
    item: Item
    answer: dict[str, Any]
    seconds: float
    given: float


@dataclass(frozen=True)
class Turn:
    """What a rater does next.

    Args:
        place: of the item.
        item: what is shown; None = nothing.
        ahead: the item after it, to be fetched meanwhile, and its place.
        items: of the group.
        groups: that the rater has finished in this round.
        waits: whether more will be offered later.
    """

    place: Place | None
    item: Item | None
    ahead: tuple[Place, Item] | None
    items: int
    groups: int
    waits: bool


class Store:
    """Who rates what, and what they said; used by many threads.

    Args:
        path: of the SQLite file, which is made where it is not there.
        config: of the page.
        seed: of all that is drawn.
        clock: seconds since 1970.
    """

    def __init__(
        self, path: Path, config: RateSection, seed: int, clock: Callable[[], float] = time.time
    ) -> None:
        self.config = config
        self.seed = seed
        self.per_group = config.per_group
        self.offer: Offer | None = None
        self.more = True  # will be offered, where nothing is
        self.changed = threading.Event()
        self._clock = clock
        self._lock = threading.RLock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(SCHEMA)
        if config.recruit == "links":
            self._make_links()

    def copy_to(self, path: Path) -> None:
        """Copy all that is kept into a new file, while others go on."""
        self.changed.clear()
        with closing(sqlite3.connect(path)) as copy, self._lock:
            self._database.backup(copy)

    def close(self) -> None:
        """Nothing can be asked after it."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            before = self._database.total_changes
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
            if self._database.total_changes != before:
                self.changed.set()

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(query, values).fetchall()

    def rest(self, *, more: bool) -> None:
        """Nothing is offered; the present round, if there is one, is over.

        Args:
            more: whether another round will be offered.
        """
        if self.offer is not None:
            self.noted(f"over {self.offer.number}", "yes")
        self.more = more
        self.offer = None

    # -- Who --

    def secret(self, name: str) -> str:
        """A word that is drawn when it is first asked for, and then stays."""
        return self.noted(name, secrets.token_urlsafe(16))

    def noted(self, name: str, value: str) -> str:
        """What was noted under a name when it was first asked for: then, and always, `value`."""
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO notes VALUES (?, ?)", (name, value))
            row = database.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return str(row["value"])

    def _make_links(self) -> None:
        with self._transaction() as database:
            (there,) = database.execute("SELECT COUNT(*) FROM raters").fetchone()
            keys = [(secrets.token_urlsafe(16),) for _ in range(self.config.raters - there)]
            database.executemany("INSERT INTO raters (key) VALUES (?)", keys)

    def raters(self) -> list[Rater]:
        """All of them, by number."""
        return [_rater(row) for row in self._rows("SELECT * FROM raters ORDER BY number")]

    def left_out(self) -> set[int]:
        """Numbers of the raters whose answers do not count."""
        return {rater.number for rater in self.raters() if rater.left_out}

    def rater(self, key: str) -> Rater:
        """The rater of a key.

        Raises:
            StoreError: nobody has it.
        """
        rows = self._rows("SELECT * FROM raters WHERE key = ?", key)
        if not rows:
            raise StoreError("this link is not known here; please use the one you were sent", 404)
        return _rater(rows[0])

    def from_outside(self, outside: str) -> Rater:
        """The rater whom Prolific calls so, new where they have not come before."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO raters (key, outside) VALUES (?, ?)",
                (secrets.token_urlsafe(16), outside),
            )
        return _rater(self._rows("SELECT * FROM raters WHERE outside = ?", outside)[0])

    def consent(self, rater: Rater) -> None:
        """They agree; the first time counts."""
        with self._transaction() as database:
            database.execute(
                "UPDATE raters SET consented = ? WHERE number = ? AND consented IS NULL",
                (self._clock(), rater.number),
            )

    def leave_out(self, number: int, left_out: bool) -> None:
        """Leave a rater's answers out of what is exported and counted, or take them in again.

        Raises:
            StoreError: there is no such rater.
        """
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE raters SET left_out = ? WHERE number = ?", (int(left_out), number)
            )
            if not changed.rowcount:
                raise StoreError(f"there is no rater-{number}", 404)

    # -- What --

    def turn(self, rater: Rater) -> Turn:
        """What a rater is shown now; the same again until it is answered.

        Raises:
            StoreError: they have not agreed yet.
        """
        with self._transaction() as database:
            return self._turn(database, rater)

    def answer(self, rater: Rater, place: Place, answer: Mapping[str, Any]) -> Turn:
        """Keep an answer, once; what they are shown next.

        Args:
            rater: who answers.
            place: of the item.
            answer: checked.

        Raises:
            StoreError: the item is not the one that is shown, or was answered in another way.
        """
        said = json.dumps(answer, sort_keys=True)
        now = self._clock()
        with self._transaction() as database:
            key = (rater.number, place.round, place.place, place.number)
            kept = database.execute(
                "SELECT answer FROM answers WHERE rater = ? AND round = ? AND place = ? "
                "AND number = ?",
                key,
            ).fetchone()
            if kept is not None:
                if kept["answer"] != said:
                    raise StoreError("this one was answered before, in another way")
                return self._turn(database, rater)
            items = self._items(database, rater, place)
            if place.number != self._answered(database, rater, place):
                raise StoreError("this one is not your present clip; please reload the page")
            offered = database.execute(
                "SELECT offered FROM raters WHERE number = ?", (rater.number,)
            ).fetchone()["offered"]
            item = json.dumps(asdict(items[place.number]))
            database.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*key, item, said, now - (offered or now), now),
            )
            done = now if place.number + 1 == len(items) else None
            database.execute(
                "UPDATE assignments SET until = ?, done = ? "
                "WHERE rater = ? AND round = ? AND place = ?",
                (self._lease(now), done, *key[:3]),
            )
            database.execute("UPDATE raters SET offered = ? WHERE number = ?", (now, rater.number))
            return self._turn(database, rater)

    def give_up(self, rater: Rater) -> None:
        """Their unfinished groups may go to others at once; what they answered stays."""
        with self._transaction() as database:
            database.execute(
                "UPDATE assignments SET until = 0 WHERE rater = ? AND done IS NULL",
                (rater.number,),
            )

    def item(self, rater: Rater, place: Place) -> Item:
        """What stands at a place of a rater.

        Raises:
            StoreError: nothing.
        """
        with self._lock:
            items = self._items(self._database, rater, place)
        if place.number >= len(items):
            raise StoreError("there is no such item", 404)
        return items[place.number]

    def answers(self, number: int | None = None) -> list[Answered]:
        """All that were given, or those of a round; in the order in which they were given."""
        where, values = ("", ()) if number is None else (" WHERE round = ?", (number,))
        rows = self._rows(f"SELECT * FROM answers{where} ORDER BY given, rowid", *values)
        return [
            Answered(
                row["rater"],
                Place(row["round"], row["place"], row["number"]),
                _item(row["item"]),
                json.loads(row["answer"]),
                row["seconds"],
                row["given"],
            )
            for row in rows
        ]

    def finished(self) -> Counter[str]:
        """How many raters who are not left out finished each group of the present offer."""
        rows = self._rows(
            "SELECT name, COUNT(*) AS count FROM assignments JOIN raters ON number = rater "
            "WHERE round = ? AND done IS NOT NULL AND NOT left_out GROUP BY name",
            self._present().number,
        )
        return Counter({row["name"]: row["count"] for row in rows})

    def begun(self) -> int:
        """How many groups somebody is at now."""
        (row,) = self._rows(
            "SELECT COUNT(*) AS count FROM assignments "
            "WHERE round = ? AND done IS NULL AND until > ?",
            self._present().number,
            self._clock(),
        )
        return int(row["count"])

    def groups_by_rater(self, number: int) -> Counter[int]:
        """Rater's number -> groups that they finished in a round."""
        rows = self._rows(
            "SELECT rater, COUNT(*) AS count FROM assignments "
            "WHERE round = ? AND done IS NOT NULL GROUP BY rater",
            number,
        )
        return Counter({row["rater"]: row["count"] for row in rows})

    # -- Within a transaction --

    def _present(self) -> Offer:
        if self.offer is None:
            raise StoreError("nothing is offered now", 404)
        return self.offer

    def _turn(self, database: sqlite3.Connection, rater: Rater) -> Turn:
        if rater.consented is None:
            raise StoreError("please read and agree first", 403)
        groups = self._finished_by(database, rater)
        place = None if self.offer is None else self._group(database, rater, ahead=False)
        if place is None:
            waits = self.offer is None and self.more
            database.execute("UPDATE raters SET offered = NULL WHERE number = ?", (rater.number,))
            return Turn(None, None, None, items=0, groups=groups, waits=waits)
        now = self._clock()
        database.execute(
            "UPDATE raters SET offered = COALESCE(offered, ?) WHERE number = ?",
            (now, rater.number),
        )
        items = self._items(database, rater, place)
        number = self._answered(database, rater, place)
        here = Place(place.round, place.place, number)
        ahead: tuple[Place, Item] | None = None
        if number + 1 < len(items):
            ahead = Place(place.round, place.place, number + 1), items[number + 1]
        elif (following := self._group(database, rater, ahead=True)) is not None:
            ahead = following, self._items(database, rater, following)[0]
        return Turn(here, items[number], ahead, items=len(items), groups=groups, waits=False)

    def _group(self, database: sqlite3.Connection, rater: Rater, *, ahead: bool) -> Place | None:
        """A group that the rater has or is given now; with `ahead`, the one after the present.

        Its lease begins anew.
        """
        offer = self._present()
        now = self._clock()
        own = database.execute(
            "SELECT * FROM assignments WHERE rater = ? AND round = ? ORDER BY place",
            (rater.number, offer.number),
        ).fetchall()
        wanted = self._wanted(database, rater)
        known = [row for row in own if row["name"] in offer.groups]
        begun = [
            row
            for row in known
            if row["done"] is None and (row["until"] > now or row["name"] in wanted)
        ]
        if len(begun) > ahead:
            place = begun[int(ahead)]["place"]
            if not ahead:
                database.execute(
                    "UPDATE assignments SET until = ? WHERE rater = ? AND round = ? AND place = ?",
                    (self._lease(now), rater.number, offer.number, place),
                )
            return Place(offer.number, place, 0)
        had = {row["name"] for row in own}
        taken = sum(row["done"] is not None for row in own) + len(begun)
        if self.config.groups is not None and taken >= self.config.groups:
            return None
        order = [name for name in order_of_groups(offer, rater.number, self.seed) if name in wanted]
        free = [name for name in order if name not in had]
        if not free:
            return None
        name = min(free, key=lambda each: wanted[each])  # the first of those that have fewest
        database.execute(
            "INSERT INTO assignments VALUES (?, ?, ?, ?, ?, NULL)",
            (rater.number, offer.number, len(own), name, self._lease(now)),
        )
        return Place(offer.number, len(own), 0)

    def _wanted(self, database: sqlite3.Connection, rater: Rater) -> dict[str, int]:
        """Groups with room for one more rater -> how many others have or had them."""
        offer = self._present()
        rows = database.execute(
            "SELECT name, COUNT(*) AS count FROM assignments JOIN raters ON number = rater "
            "WHERE round = ? AND rater != ? AND NOT left_out AND (done IS NOT NULL OR until > ?) "
            "GROUP BY name",
            (offer.number, rater.number, self._clock()),
        ).fetchall()
        counts = {row["name"]: row["count"] for row in rows}
        return {
            name: counts.get(name, 0)
            for name in offer.groups
            if counts.get(name, 0) < self.per_group
        }

    def _items(self, database: sqlite3.Connection, rater: Rater, place: Place) -> list[Item]:
        """The items of a rater's group."""
        offer = self.offer
        if offer is None and not self._is_over(database, place.round):
            # A server that was started again: the answer is asked for again, and not lost.
            raise StoreError("one moment, the clips are being put out", 503)
        if offer is None or place.round != offer.number:
            raise StoreError("these clips are no longer offered; please reload the page", 410)
        rows = database.execute(
            "SELECT name FROM assignments WHERE rater = ? AND round = ? AND place <= ? "
            "ORDER BY place",
            (rater.number, place.round, place.place),
        ).fetchall()
        if len(rows) != place.place + 1:
            raise StoreError("there is no such item", 404)
        groups = [row["name"] for row in rows]
        return items_of(offer, self.config, rater.number, groups=groups, seed=self.seed)

    def _is_over(self, database: sqlite3.Connection, number: int) -> bool:
        row = database.execute("SELECT 1 FROM notes WHERE name = ?", (f"over {number}",))
        return row.fetchone() is not None

    def _answered(self, database: sqlite3.Connection, rater: Rater, place: Place) -> int:
        """How many items of a group were answered, which are its first ones."""
        (count,) = database.execute(
            "SELECT COUNT(*) FROM answers WHERE rater = ? AND round = ? AND place = ?",
            (rater.number, place.round, place.place),
        ).fetchone()
        return int(count)

    def _finished_by(self, database: sqlite3.Connection, rater: Rater) -> int:
        """How many groups a rater has finished in this round."""
        if self.offer is None:
            return 0
        (count,) = database.execute(
            "SELECT COUNT(*) FROM assignments WHERE rater = ? AND round = ? AND done IS NOT NULL",
            (rater.number, self.offer.number),
        ).fetchone()
        return int(count)

    def _lease(self, now: float) -> float:
        return now + 60 * self.config.lease_minutes


def _rater(row: sqlite3.Row) -> Rater:
    return Rater(row["number"], row["key"], row["outside"], row["consented"], bool(row["left_out"]))


def _item(text: str) -> Item:
    fields = json.loads(text)
    return Item(**(fields | {"videos": tuple(fields["videos"])}))
