"""What a run directory holds, as the plain data that a report is made of."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapport.files import visible
from rapport.pipeline.config import RecipeConfig, flatten, to_yaml
from rapport.pipeline.report.summary import Summary, read_summary
from rapport.pipeline.report.videos import Shown, read_shown
from rapport.rewards.ratings.raters import survey
from rapport.rewards.ratings.ratings import read_ratings

# Phases that learn, in the order in which the page shows them; others come after them.
LEARNING = ("pretraining", "sft", "vae", "flow", "expect", "imitate", "dpo", "gdpo")
LABEL = re.compile(r"[a-z_]+(-\d+)?")  # a phase, and which round of it after the first


@dataclass(frozen=True)
class Facts:
    """All that a report says; what the run lacks is empty.

    Args:
        name: of the run directory.
        config: as YAML.
        changed: keys that differ from their defaults -> value.
        steps: learning phase (sft, dpo, dpo-2, gdpo, ...) -> rows of its `steps.jsonl`.
        surveys: rating phase (rate, rate-2, ...) -> `rapport.rewards.ratings.raters.Survey` and its
            warnings.
        prompts: method -> "scores" and "truth_errors" -> prompt id -> value.
        videos: what a video shows, and the file's bytes.
    """

    name: str
    summary: Summary
    config: str
    changed: Mapping[str, Any]
    steps: Mapping[str, list[dict[str, float]]]
    surveys: Mapping[str, Mapping[str, Any]]
    prompts: Mapping[str, Mapping[str, Mapping[str, float]]]
    videos: list[tuple[Shown, bytes]]


def read_facts(directory: Path, summary: Mapping[str, Any], config: RecipeConfig) -> Facts:
    """Read what the phases left in a run directory."""
    prompts = directory / "evaluation_prompts.json"
    clips = directory / "clips"
    return Facts(
        name=directory.name,
        summary=read_summary(summary),
        config=to_yaml(config),
        changed=changed_keys(config),
        steps={
            label: _rows(directory / label / "steps.jsonl")
            for label in _labels(directory, "steps.jsonl")
        },
        surveys=_surveys(directory, summary),
        prompts=json.loads(prompts.read_text()) if prompts.is_file() else {},
        videos=[(shown, (clips / shown.file).read_bytes()) for shown in read_shown(clips)],
    )


def changed_keys(config: RecipeConfig) -> dict[str, Any]:
    """Keys whose value is not the default."""
    values = flatten(config.model_dump(mode="json"))
    fields = type(config).model_fields.items()
    required = {name: getattr(config, name) for name, field in fields if field.is_required()}
    defaults = flatten(type(config).model_validate(required).model_dump(mode="json"))
    return {key: value for key, value in values.items() if value != defaults[key]}


def phase_of(label: str) -> str:
    """The phase of which `label` is a round: dpo of dpo-2."""
    return label.partition("-")[0]


def _labels(directory: Path, file: str) -> list[str]:
    """Phases that left `file`, round by round: sft, dpo, dpo-2, ..., dpo-10."""

    def place(label: str) -> tuple[int, str, int]:
        phase, _, round_index = label.partition("-")
        order = LEARNING.index(phase) if phase in LEARNING else len(LEARNING)
        return order, phase, int(round_index or 1)

    names = [path.parent.name for path in visible(directory, f"*/{file}")]
    return sorted(filter(LABEL.fullmatch, names), key=place)


def _rows(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _surveys(directory: Path, summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """How far raters agree, by round. People's ratings were surveyed when they were read."""
    if "surveys" in summary:  # people on a page, round by round
        return dict(summary["surveys"])
    if "survey" in summary:
        return {"rate": summary["survey"]}
    surveys: dict[str, Mapping[str, Any]] = {}
    for label in _labels(directory, "ratings.parquet"):
        ratings = read_ratings(directory / label / "ratings.parquet")
        # Simulated raters rate every candidate there is.
        members: dict[str, set[str]] = defaultdict(set)
        for rating in ratings:
            members[rating.prompt_id].add(rating.candidate_id)
        surveyed = survey(ratings, members)
        surveys[label] = asdict(surveyed) | {"warnings": surveyed.warnings}
    return surveys
