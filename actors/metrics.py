"""The REACT protocols on many processes.

Workers score some speakers each; the scores are put together as in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from rapport.actors.cluster import worker_environment
from rapport.actors.pool import Pool
from rapport.actors.timeline import Worker
from rapport.log import logger
from rapport.rewards.metrics.protocols.protocol import Variant, require_variant
from rapport.rewards.metrics.protocols.react import (
    SETTINGS,
    ReactClips,
    Setting,
    prepare,
    score_speakers,
    summarise,
)


class MetricWorker(Worker):
    """Scores some speakers at a time; the clips are read where the object store keeps them."""

    def __init__(self, setting: Setting, clips: ReactClips, variant: Variant):
        self.setting = setting
        self.clips = clips
        self.variant = variant

    def score(self, speakers: range) -> list[dict[str, np.ndarray]]:
        return score_speakers(self.setting, self.clips, speakers, variant=self.variant)


@dataclass(frozen=True)
class MetricWorkers:
    """How many processes share the work, and what each takes.

    Args:
        count: processes, at most one for each chunk.
        cpus: of Ray's, that each process takes.
        chunk: speakers a call.
        timeout_s: longest time without any chunk done.
        losses: lost workers that are replaced.
        report: is told how far the work is, about twenty times.
    """

    count: int
    cpus: float = 1.0
    chunk: int = 8
    timeout_s: float = 600.0
    losses: int = 2
    report: Callable[[str], None] = logger.info


def evaluate_react(
    protocol: str,
    pred: Any,
    target: Any,
    partner: Any = None,
    *,
    neighbours: Any = None,
    variant: Variant = "reference",
    workers: MetricWorkers,
) -> dict[str, float]:
    """`rapport.rewards.metrics.evaluate` for the REACT protocols, on many processes.

    Equals it but for the last bit of matrix products.

    Args:
        protocol: react2023, react2024 or reactface.
        pred: as `evaluate` takes it, and so are `target`, `partner`, `neighbours` and `variant`.
        target: recorded listeners.
        partner: their speakers.
        neighbours: speakers whose recorded listeners are appropriate, too.
        variant: "reference" or "corrected".
        workers: the processes.
    """
    if protocol not in SETTINGS:
        raise ValueError(f"{protocol!r} is not scored on many processes, only {sorted(SETTINGS)}")
    require_variant(variant)
    setting = SETTINGS[protocol]
    clips = prepare(setting, pred, target, partner=partner, neighbours=neighbours)
    speakers = len(clips.pred)
    starts = range(0, speakers, workers.chunk)
    chunks = [range(start, min(start + workers.chunk, speakers)) for start in starts]
    stored = ray.put(clips)  # once for all workers
    actor = ray.remote(MetricWorker).options(
        num_cpus=workers.cpus, runtime_env={"env_vars": worker_environment(1)}
    )
    pool = Pool(
        name="metric pool",
        kind="metrics",
        start=lambda _: actor.remote(setting, stored, variant),
        workers=min(workers.count, len(chunks)),
        in_flight=2,
        timeout_s=workers.timeout_s,
        losses=workers.losses,
    )
    scores: list[dict[str, np.ndarray]] = [{}] * speakers
    done = 0
    reports = 0
    start_s = time.monotonic()
    with pool:
        for chunk, chunk_scores in pool.stream("score", chunks):
            scores[chunk.start : chunk.stop] = chunk_scores
            done += len(chunk)
            if done * 20 // speakers > reports:
                reports = done * 20 // speakers
                elapsed = time.monotonic() - start_s
                workers.report(
                    f"{protocol}: {done} of {speakers} speakers, {elapsed:.0f} s, "
                    f"about {elapsed * (speakers - done) / done:.0f} s to go"
                )
    return summarise(setting, clips, scores, variant=variant)
