"""What Prometheus sees of a run: few numbers, recorded where they arise, exported by the Ray agent
of each node.

`infra/grafana/dashboard.json` shows every one of them. MLflow keeps the curves of a run; these are
for whoever watches the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import ray
from ray.util.metrics import Counter, Gauge, Histogram

SECONDS = [
    0.01,
    0.03,
    0.1,
    0.3,
    1.0,
    3.0,
    10.0,
    30.0,
    100.0,
    300.0,
]  # bounds of the histogram's buckets


@dataclass(frozen=True)
class Metric:
    """A metric's name in the code, what it is, and the tags that `record` wants with it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    tags: tuple[str, ...]

    @property
    def exported(self) -> str:
        """Its name in Prometheus; a histogram's is followed by `_bucket`, `_sum` or `_count`."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


TOKENS = Metric(
    "rapport_tokens", "counter", "action tokens (VLA) or latents (AR-Flow) sampled", ("pool",)
)
QUEUE_DEPTH = Metric("rapport_queue_depth", "gauge", "calls that a pool has open", ("pool",))
CALL_SECONDS = Metric(
    "rapport_call_seconds", "histogram", "what a call took in its worker", ("kind", "method")
)
LOST_WORKERS = Metric("rapport_lost_workers", "counter", "workers lost and replaced", ("pool",))
WEIGHT_VERSION_LAG = Metric(
    "rapport_weight_version_lag",
    "gauge",
    "versions that what is sampled lies behind the newest weights",
    ("pool",),
)
LOG_PROB_GAP = Metric(
    "rapport_log_prob_gap_nats",
    "gauge",
    "largest difference between engine and learner on the canary",
    ("pool",),
)
LEARNER_IDLE = Metric(
    "rapport_learner_idle_fraction",
    "gauge",
    "share of a step in which the learner waits for data",
    ("phase",),
)
KL = Metric(
    "rapport_kl_nats",
    "gauge",
    "from the reference, per token (DPO) or denoise step (GDPO)",
    ("phase",),
)
METRICS = (
    TOKENS,
    QUEUE_DEPTH,
    CALL_SECONDS,
    LOST_WORKERS,
    WEIGHT_VERSION_LAG,
    LOG_PROB_GAP,
    LEARNER_IDLE,
    KL,
)


def record(metric: Metric, value: float, **tags: str) -> None:
    """Set a gauge, add to a counter or observe in a histogram: microseconds, and nothing outside
    Ray.
    """
    if not ray.is_initialized():
        return
    instrument = _instrument(metric)
    if metric.kind == "counter":
        instrument.inc(value, tags)
    elif metric.kind == "gauge":
        instrument.set(value, tags)
    else:
        instrument.observe(value, tags)


def record_step(
    phase: str, metrics: dict[str, float], working_s: float, since_last_s: float
) -> None:
    """An optimiser step of a learner: its KL, and how much of the time since the last one it did
    not work.

    Args:
        metrics: the task's; `kl` (GDPO) or `kl_per_token` (DPO) is the KL, imitation has none.
    """
    record(LEARNER_IDLE, 1 - working_s / since_last_s, phase=phase)
    kl = metrics.get("kl", metrics.get("kl_per_token"))
    if kl is not None:
        record(KL, kl, phase=phase)


@cache
def _instrument(metric: Metric) -> Counter | Gauge | Histogram:
    """Made at its first use: what is made before Ray has started is never exported."""
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.meaning, SECONDS, metric.tags)
    return (Counter if metric.kind == "counter" else Gauge)(
        metric.name, metric.meaning, metric.tags
    )
