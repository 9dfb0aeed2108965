"""What the VLA makes of what it sees, hears and reads."""

from __future__ import annotations

from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.tables import Table, interval

COLUMNS = (
    "policy",
    "stream",
    "a foreign one costs",
    "its own gains over none",
    "nats with its own",
)


def what_it_perceives(facts: Facts) -> dict[str, object] | None:
    """Stream by stream, before and after alignment; None where no policy was asked."""
    found = facts.summary.perception
    if not found:
        return None
    asked = [
        (policy, stream, metrics[stream])
        for policy, metrics in found.items()
        for stream in metrics["streams"]
    ]
    rows = [
        [policy, stream, interval(cost), interval(cost["gain"]), interval(cost["own"])]
        for policy, stream, cost in asked
    ]
    silent = [f"{stream} ({policy})" for policy, stream, cost in asked if cost["low"] <= 0]
    first = next(iter(found.values()))
    return {
        "table": Table("Nats a chunk, intervals over conversations", COLUMNS, rows),
        "silent": ", ".join(silent),
        "clips": first["clips"],
        "conversations": first["conversations"],
        "split": first["split"],
    }
