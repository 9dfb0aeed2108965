"""What Prometheus sees of a run.

A few numbers, recorded where they arise and exported by the Ray agent of each node.
`infra/grafana/dashboard.json` shows every one of them. MLflow keeps the curves of a run; these are
for those who watch the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import ray
from ray.util.metrics import Counter, Gauge, Histogram

# Upper bounds of the histogram's buckets.
SECONDS = [0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
# What a loss calls its KL to the reference policy, whatever the algorithm; a KL to anything else,
# such as the motion VAE's to N(0, I), has another name.
KL_TO_REFERENCE = "kl/reference"


@dataclass(frozen=True)
class Metric:
    """One exported number.

    Args:
        name: in Ray, which puts `ray_` before it.
        kind: of Prometheus's.
        meaning: the help text of the export.
        tags: that `record` wants with each value.
    """

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
    "KL to the reference, per token (DPO) or denoise step (GDPO)",
    ("phase",),
)
SESSIONS = Metric("rapport_sessions", "gauge", "live sessions of a replica", ())
STEP_SECONDS = Metric(
    "rapport_step_seconds", "histogram", "a step of live sessions", ("policy", "batch")
)
ANSWER_SECONDS = Metric(
    "rapport_answer_seconds",
    "histogram",
    "from the last sound of a chunk to the answer that is sent",
    ("policy",),
)
LOOK_SECONDS = Metric(
    "rapport_look_seconds", "histogram", "to read a speaker's face off a picture", ()
)
SKIPPED = Metric("rapport_skipped", "counter", "pictures not looked at, as too many came", ())
MISSED = Metric("rapport_missed", "counter", "answers that came after a chunk's time", ("policy",))
FAILED = Metric("rapport_failed", "counter", "chunks in which a policy failed", ("policy",))
LATE = Metric("rapport_late", "counter", "chunks whose sound was late, heard as silence", ())
DROPPED = Metric("rapport_dropped", "counter", "answers not sent, as the client lags", ())
RESUMED = Metric("rapport_resumed", "counter", "sessions that began elsewhere", ())
REFUSED = Metric("rapport_refused", "counter", "sessions refused, as no more fit", ())
METRICS = (
    TOKENS,
    QUEUE_DEPTH,
    CALL_SECONDS,
    LOST_WORKERS,
    WEIGHT_VERSION_LAG,
    LOG_PROB_GAP,
    LEARNER_IDLE,
    KL,
    SESSIONS,
    STEP_SECONDS,
    ANSWER_SECONDS,
    LOOK_SECONDS,
    SKIPPED,
    MISSED,
    FAILED,
    LATE,
    DROPPED,
    RESUMED,
    REFUSED,
)


def record(metric: Metric, value: float, **tags: str) -> None:
    """Set a gauge, add to a counter or observe in a histogram.

    Takes microseconds, and does nothing in a process without Ray.
    """
    if not ray.is_initialized():
        return
    instrument = _instrument(metric)
    if isinstance(instrument, Counter):
        instrument.inc(value, tags)
    elif isinstance(instrument, Gauge):
        instrument.set(value, tags)
    else:
        instrument.observe(value, tags)


def record_step(
    phase: str, metrics: dict[str, float], working_s: float, since_last_s: float
) -> None:
    """Record what an optimiser step of a learner tells about the cluster and the policy.

    Args:
        phase: with the number of its round.
        metrics: of the loss; only `KL_TO_REFERENCE` is read, which imitation does not have.
        working_s: time that the step took.
        since_last_s: time since the end of the step before; the rest of it the learner waited.
    """
    record(LEARNER_IDLE, 1 - working_s / since_last_s, phase=phase)
    if KL_TO_REFERENCE in metrics:
        record(KL, metrics[KL_TO_REFERENCE], phase=phase)


@cache
def _instrument(metric: Metric) -> Counter | Gauge | Histogram:
    """Ray's instrument, made at its first use: one made before Ray starts is never exported."""
    if metric.kind == "histogram":
        return Histogram(metric.name, metric.meaning, boundaries=SECONDS, tag_keys=metric.tags)
    if metric.kind == "counter":
        return Counter(metric.name, metric.meaning, tag_keys=metric.tags)
    return Gauge(metric.name, metric.meaning, tag_keys=metric.tags)
