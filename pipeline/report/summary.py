"""What sections read of a run's `summary.json`. They know metrics, never recipes or policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

IntervalValues = Mapping[str, float]  # mean, low, high, n
# Metric -> value, or an `IntervalValues`; None where it could not be computed.
MetricValues = Mapping[str, Any]
# Methods that runs compared before their summaries said which.
FORMERLY_COMPARED = ("SFT", "SFT + DPO")
PERCEPTIONS = {"perception": "imitating policy", "perception_after": "aligned policy"}


@dataclass(frozen=True)
class Summary:
    """A summary; what the run lacks is empty.

    Args:
        compared: the methods before and after alignment.
        evaluation: method -> metric -> value, against the recorded listeners.
        change: what alignment changed: `NAME_change` -> interval, `NAME_change_percent` -> value.
        judgement: method -> metric -> value: how listeners move.
        change_percent: metric of `judgement` -> how far the second method is from the first.
        judgement_change: metric of `judgement` that windows have -> interval of its change.
        curve: what the policy came to on validation prompts while it learnt.
        perception: imitating or aligned policy -> stream -> what a foreign one costs.
        study: what people think of results, as `steps.study` gives it.
        independent_judge: how far the judge that is not the raters can be trusted.
        reward_model: who rates -> how far that agrees with people, where a model rated groups.
        raters_understand_speech: None where no SIMULATED raters judged.
    """

    recipe: str
    seed: int
    versions: Mapping[str, str]
    engines: Mapping[str, Any]
    timings: Mapping[str, float]
    counts: Mapping[str, int]
    compared: tuple[str, str] | None = None
    evaluation: Mapping[str, MetricValues] = field(default_factory=dict)
    change: Mapping[str, Any] = field(default_factory=dict)
    judgement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    change_percent: Mapping[str, float] = field(default_factory=dict)
    judgement_change: Mapping[str, IntervalValues] = field(default_factory=dict)
    curve: Sequence[MetricValues] = ()
    perception: Mapping[str, MetricValues] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)
    independent_judge: Mapping[str, Any] = field(default_factory=dict)
    reward_model: Mapping[str, MetricValues] = field(default_factory=dict)
    raters_understand_speech: bool | None = None


def read_summary(values: Mapping[str, Any]) -> Summary:
    """The summary of a run, as its recipe wrote it."""
    metrics = values["metrics"]
    evaluation = metrics.get("evaluation", {})
    compared = metrics.get("compared")
    if compared is None and set(FORMERLY_COMPARED) <= evaluation.keys():
        compared = FORMERLY_COMPARED
    return Summary(
        recipe=values["recipe"],
        seed=values["seed"],
        versions=values["versions"],
        engines=values["engines"],
        timings=values["timings_s"],
        counts=values["counts"],
        compared=None if compared is None else (compared[0], compared[1]),
        evaluation=evaluation,
        change=metrics.get("change", {}),
        judgement=metrics.get("judgement", {}),
        change_percent=metrics.get("change_percent", {}),
        judgement_change=metrics.get("judgement_change", {}),
        curve=metrics.get("curve", ()),
        perception={
            name: metrics[key] for key, name in PERCEPTIONS.items() if metrics.get(key) is not None
        },
        study=metrics.get("study", {}),
        independent_judge=metrics.get("independent_judge") or {},
        reward_model=metrics.get("reward_model", {}).get("agreement", {}),
        raters_understand_speech=metrics.get("raters_understand_speech"),
    )
