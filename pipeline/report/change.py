"""What alignment changed, in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping

from rapport.pipeline.report.facts import Facts
from rapport.pipeline.report.summary import IntervalValues, Summary
from rapport.pipeline.report.tables import PERCENT, number

# Metric with an interval of its change -> what it is called here.
METRICS = {
    "own_minus_another": "Rating beside the own speaker less that beside another",
    "independent_own_minus_another": "The same by the independent judge, in nats",
    "right": "Share of points answered with the right sign",
    "simulated_rating": "SIMULATED rating (1 to 5, higher is better)",
    "truth_affect_error": "Truth affect error (lower is better; nothing trains on it)",
}
COUNTED = {"right": "points"}
DISTANCES = {"l2": "L2", "fd": "FD"}


def in_short(facts: Facts) -> dict[str, object] | None:
    """The change of the rating and of what stands beside it; None where nothing was compared."""
    summary = facts.summary
    if summary.compared is None or not summary.change:
        return None
    changes = {metric: summary.change.get(f"{metric}_change") for metric in METRICS}
    sentences = [_sentence(summary, metric, change) for metric, change in changes.items() if change]
    distances = [
        f"{name} {summary.change[f'{metric}_change_percent']:+.1f}{PERCENT}"
        for metric, name in DISTANCES.items()
        if f"{metric}_change_percent" in summary.change
    ]
    if distances:
        sentences.append(f"Distance to the recorded listener: {', '.join(distances)}.")
    judged = any("truth_affect_error" in summary.evaluation.get(m, {}) for m in summary.compared)
    return {
        "compared": summary.compared,
        "sentences": sentences,
        "lacks_truth": judged and not changes["truth_affect_error"],
        "simulated": changes["simulated_rating"] is not None,
    }


def _sentence(summary: Summary, metric: str, change: IntervalValues) -> str:
    before, after = (_value(summary, method, metric) for method in summary.compared or ())
    text = (
        f"{METRICS[metric]}: {number(before, '.3f')} to {number(after, '.3f')}, "
        f"by {change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}] "
        f"(95{PERCENT}, {change['n']} {COUNTED.get(metric, 'prompts')})."
    )
    if change["low"] <= 0 <= change["high"]:
        text += " The interval holds 0, so it may be chance."
    return text


def _value(summary: Summary, method: str, metric: str) -> float | None:
    """A metric of a method; the mean where it has an interval."""
    value = summary.evaluation.get(method, {}).get(metric)
    return value["mean"] if isinstance(value, Mapping) else value
