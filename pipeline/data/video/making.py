"""Shards of all recordings, by processes of a Ray cluster or by this one.

The house's own pool hands out recordings: it gives those of a lost process to the others, asks for
the next one only where there is room, and waits for no one for ever. Ray Data would do the first
two, on rows: its own checkpoint loses what lies in an unwritten block, and a row that kills its
process is tried for ever. Here a shard on the disk is what is done.
"""

from __future__ import annotations

import csv
import io
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ray

from rapport.actors.cluster import some_cluster, worker_environment
from rapport.actors.pool import Pool
from rapport.actors.timeline import Worker
from rapport.files import write_atomic
from rapport.log import logger
from rapport.pipeline.data.readers.transcripts import Transcripts
from rapport.pipeline.data.store import CorpusError
from rapport.pipeline.data.video.landmarks import Landmarker
from rapport.pipeline.data.video.quality import Gauge
from rapport.pipeline.data.video.regressor import Regressor
from rapport.pipeline.data.video.shards import RECORD, Plan, is_made, key_of, write_shard
from rapport.pipeline.data.video.sides import Eyes, Side, read_sides
from rapport.pipeline.data.video.table import Recorded
from rapport.pipeline.data.video.voices import ear_of
from rapport.policies.head.asset import load_head
from rapport.policies.head.settings import HeadConfig
from rapport.wording import first_line

REJECTED = "rejected.csv"
TIMEOUT_S = 6 * 3600.0  # without an answer of any process: some recordings take hours
_TRIES = 2  # a recording whose process dies twice is rejected
_LINE = 300  # characters of a reason


@dataclass(frozen=True, eq=False)
class Tools:
    """What recordings are read with.

    Args:
        head: whose coefficients are told, and which is drawn.
        voices: name of the detector of `ear_of`.
        landmarker: weights; None = those of the extra.
        regressor: None where all tracks are brought.
        transcriber: "module:Class", or None.
        transcripts: folder of its answers.
    """

    head: HeadConfig
    voices: str
    landmarker: Path | None
    regressor: Regressor | None
    transcriber: str | None
    transcripts: Path

    @property
    def about(self) -> dict[str, Any]:
        """What a shard depends on."""
        learnt = None if self.regressor is None else self.regressor.about
        return {
            "head": self.head.model_dump(mode="json"),
            "voices": self.voices,
            "regressor": learnt,
            "transcriber": self.transcriber,
        }


class Tracker(Worker):
    """Makes shards, on one core.

    Args:
        folder: of all shards.
        plan: how they are cut.
        tools: what they are read with.
    """

    def __init__(self, folder: Path, plan: Plan, tools: Tools) -> None:
        self.folder = folder
        self.plan = plan
        self.tools = tools
        self._opened = ExitStack()

    def close(self) -> None:
        """Free what MediaPipe holds."""
        self._opened.close()

    @cached_property
    def _read(self) -> Callable[[Recorded], dict[str, Side]]:
        """`read_sides` with the tools.

        Raises:
            CorpusError: one of them is not on this machine.
        """
        tools = self.tools
        try:
            landmarker = transcripts = None
            if tools.regressor is not None:
                landmarker = self._opened.enter_context(Landmarker(tools.landmarker))
            if tools.transcriber is not None:
                transcripts = Transcripts(tools.transcriber, tools.transcripts)
            ear = ear_of(tools.voices)
        except CorpusError as error:
            raise CorpusError(f"on {platform.node()}: {error}") from error
        eyes = Eyes(landmarker, tools.regressor)
        return lambda recorded: read_sides(recorded, self.plan.fps, eyes, ear, transcripts)

    @cached_property
    def _gauge(self) -> Gauge:
        return Gauge(load_head(self.tools.head.path, self.tools.head.topology))

    def make(self, recorded: Recorded) -> dict[str, Any]:
        """The record of a shard that was made, or `rejected`, why there is none.

        Raises:
            CorpusError: this machine cannot read any recording.
        """
        read, gauge = self._read, self._gauge
        tries = self.folder / ".tries" / recorded.name
        before = len(tries.read_text()) if tries.is_file() else 0
        if before >= _TRIES:
            return {"rejected": f"the process that read it died {before} times"}
        write_atomic(tries, "x" * (before + 1))
        began = time.monotonic()
        used = time.process_time()
        try:
            return write_shard(
                self.folder / recorded.name,
                recorded,
                read(recorded),
                plan=self.plan,
                gauge=gauge,
                key=key_of(recorded, self.plan, self.tools.about),
                cost=lambda: {
                    "wall_s": time.monotonic() - began,
                    "cpu_s": time.process_time() - used,
                },
            )
        except OSError as error:
            if error.errno is not None and not isinstance(error, FileNotFoundError):
                raise  # a full disk is no fault of the recording
            return {"rejected": first_line(error)[:_LINE]}
        except Exception as error:  # decoders raise nearly anything; the next recording may be good
            known = isinstance(error, ValueError)
            what = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
            return {"rejected": what[:_LINE]}


def make_shards(
    folder: Path, recordings: Sequence[Recorded], plan: Plan, tools: Tools, workers: int | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Make the shards that are missing.

    Args:
        folder: of all shards; `rejected.csv` is written there, too.
        recordings: all of them.
        plan: how they are cut.
        tools: what they are read with.
        workers: processes; None = as many as the cluster has processors, 0 = this process.

    Returns:
        Records of all shards in the order of the recordings, and why others have none, by name.

    Raises:
        CorpusError: a machine of the cluster lacks what recordings are read with.
    """
    shutil.rmtree(folder / ".tries", ignore_errors=True)
    keys = {recorded.name: key_of(recorded, plan, tools.about) for recorded in recordings}
    missing = [
        recorded
        for recorded in recordings
        if not is_made(folder / recorded.name, keys[recorded.name])
    ]
    if len(missing) < len(recordings):
        logger.info(f"  {len(recordings) - len(missing)} of {len(recordings)} recordings were done")
    rejected: dict[str, str] = {}
    done = len(recordings) - len(missing)
    for recorded, record in _made(folder, missing, plan, tools, workers):
        done += 1
        if "rejected" in record:
            rejected[recorded.name] = record["rejected"]
            logger.warning(f"  [{done}/{len(recordings)}] {recorded.name}: {record['rejected']}")
            _write_rejected(folder / REJECTED, rejected)
        else:
            logger.info(f"  [{done}/{len(recordings)}] {recorded.name}: {_in_short(record)}")
    _write_rejected(folder / REJECTED, rejected)
    shutil.rmtree(folder / ".tries", ignore_errors=True)
    records = [
        json.loads((folder / recorded.name / RECORD).read_text())
        for recorded in recordings
        if recorded.name not in rejected
    ]
    return records, rejected


def _made(
    folder: Path, missing: Sequence[Recorded], plan: Plan, tools: Tools, workers: int | None
) -> Iterator[tuple[Recorded, dict[str, Any]]]:
    if not missing:
        return
    if workers == 0:
        with closing(Tracker(folder, plan, tools)) as tracker:
            for recorded in missing:
                yield recorded, tracker.make(recorded)
        return
    with some_cluster():
        there = int(ray.cluster_resources().get("CPU", 1))
        actor = ray.remote(Tracker).options(
            num_cpus=1, runtime_env={"env_vars": worker_environment(1)}
        )
        content = ray.put(tools)
        pool = Pool(
            "trackers",
            "track",
            lambda _: actor.remote(folder, plan, content),
            workers=min(workers or there, len(missing)),
            in_flight=1,
            timeout_s=TIMEOUT_S,
            losses=_TRIES * len(missing),
        )
        with pool:
            yield from pool.stream("make", missing)


def _in_short(record: Mapping[str, Any]) -> str:
    people = record["people"].values()
    tracked = ", ".join(f"{person['tracked']:.1%}" for person in people)
    speed = record["seconds"] / max(record["cpu_s"], 1e-6)
    return (
        f"{record['seconds']:.0f} s, {record['clips']} clips, tracked {tracked}, "
        f"{speed:.1f} x real time a core"
    )


def _write_rejected(path: Path, rejected: Mapping[str, str]) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["recording", "reason"])
    rows.writerows(rejected.items())
    write_atomic(path, text.getvalue())
