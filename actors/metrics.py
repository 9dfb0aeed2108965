"""The REACT protocols on many processes: speakers are scored apart, and their numbers put together
as in one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from rapport.actors.cluster import worker_environment
from rapport.actors.pool import Pool
from rapport.actors.timeline import Worker
from rapport.rewards.metrics.protocols.protocol import Variant, require_variant
from rapport.rewards.metrics.protocols.react import (
    SETTINGS,
    Clips,
    Setting,
    prepare,
    score_speakers,
    summarise,
)


@ray.remote
class MetricWorker(Worker):
    """Scores some speakers at a time; the clips are read where the object store keeps them."""

    def __init__(self, setting: Setting, clips: Clips, variant: Variant):
        self.setting, self.clips, self.variant = setting, clips, variant

    def score(self, speakers: range) -> list[dict[str, np.ndarray]]:
        return score_speakers(self.setting, self.clips, speakers, self.variant)


def evaluate_react(
    protocol: str,
    pred: Any,
    target: Any,
    partner: Any = None,
    *,
    neighbours: Any = None,
    variant: Variant = "reference",
    workers: int,
    cpus: float = 1.0,
    chunk: int = 8,
    timeout_s: float = 600.0,
    losses: int = 2,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """What `rapport.rewards.metrics.evaluate` gives for react2023, react2024 and reactface, but for
    the last bit of matrix products.

    Args:
        workers, cpus: processes, and the CPUs of Ray's that each takes.
        chunk: speakers a call.
        timeout_s: longest time without any chunk done.
        losses: lost workers that are replaced.
        say: told how far it is, about twenty times.
    """
    if protocol not in SETTINGS:
        raise ValueError(f"{protocol!r} is not scored on many processes, only {sorted(SETTINGS)}")
    require_variant(variant)
    setting = SETTINGS[protocol]
    clips = prepare(setting, pred, target, partner, neighbours)
    speakers = len(clips.pred)
    chunks = [range(start, min(start + chunk, speakers)) for start in range(0, speakers, chunk)]
    stored = ray.put(clips)  # once for all workers
    worker = MetricWorker.options(num_cpus=cpus, runtime_env={"env_vars": worker_environment(1)})
    scores: list[dict[str, np.ndarray]] = [{}] * speakers
    done, told, start_s = 0, 0, time.monotonic()
    workers = min(workers, len(chunks))
    pool = Pool(
        "metric pool",
        "metrics",
        lambda _: worker.remote(setting, stored, variant),
        workers,
        2,
        timeout_s,
        losses,
    )
    with pool:
        for which, answer in pool.stream("score", chunks):
            scores[which.start : which.stop] = answer
            done += len(which)
            if done * 20 // speakers > told:
                told = done * 20 // speakers
                elapsed = time.monotonic() - start_s
                say(
                    f"{protocol}: {done} of {speakers} speakers, {elapsed:.0f} s, "
                    f"about {elapsed * (speakers - done) / done:.0f} s to go"
                )
    return summarise(setting, clips, scores, variant)
