"""What a policy makes of what it sees, hears and reads."""

from __future__ import annotations

from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.tables import Table, interval

COLUMNS = (
    "policy",
    "stream",
    "a foreign one costs",
    "its own gains over none",
    "with its own",
)

# What the units of `Policy.perception` mean, and digits after the point.
UNITS = {
    "nats_per_chunk": ("Asked of the first action of every chunk, in nats.", 2),
    "flow_error": (
        "Asked of every latent as if it were the first, without the own past, in squared errors of "
        "the velocity (Eq. 4 of GDPO-Listener).",
        4,
    ),
}


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
    first = next(iter(found.values()))
    meaning, digits = UNITS.get(first["unit"], ("How unlikely the reactions are to it.", 3))
    rows = [
        [policy, stream, *(interval(value, digits) for value in (cost, cost["gain"], cost["own"]))]
        for policy, stream, cost in asked
    ]
    silent = [f"{stream} ({policy})" for policy, stream, cost in asked if cost["low"] <= 0]
    return {
        "table": Table(f"{first['unit']}, intervals over conversations", COLUMNS, rows),
        "silent": ", ".join(silent),
        "asked": meaning,
        "clips": first["clips"],
        "conversations": first["conversations"],
        "split": first["split"],
    }
