"""What ran: engines, times, counts, versions, configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.tables import Table


def what_ran(facts: Facts) -> dict[str, object]:
    """Everything that is needed to run it again."""
    summary = facts.summary
    engines = [[_words(part), _engine(engine)] for part, engine in summary.engines.items()]
    seconds = [[phase, f"{value:.1f}"] for phase, value in summary.timings.items()]
    seconds.append(["all of these", f"{sum(summary.timings.values()):.1f}"])
    counts = [[_words(what), f"{count:,}"] for what, count in summary.counts.items()]
    changed = [[key, str(value)] for key, value in facts.changed.items()]
    versions = list(summary.versions.items())
    return {
        "engines": Table("Engines", ("part", "what ran"), engines, words=True),
        "time": Table("Time", ("phase", "seconds"), seconds),
        "changed": Table(
            "Keys that differ from their defaults", ("key", "value"), changed, words=True
        ),
        "counts": Table("Counts", ("what", "how many"), counts),
        "versions": Table("Versions", ("package", "version"), versions),
        "config": facts.config,
    }


def _engine(engine: Mapping[str, Any] | str) -> str:
    """The name of an engine, then its properties."""
    if isinstance(engine, str):
        return engine
    parts = []
    for key, value in engine.items():
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        parts.append(text if key == "name" else f"{_words(key)} {text}")
    return ", ".join(parts)


def _words(key: str) -> str:
    return key.replace("_", " ")
