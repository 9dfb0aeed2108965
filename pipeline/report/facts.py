"""What a run directory holds, as the plain data that a report is made of."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapport.pipeline.config import RecipeConfig, flatten, to_yaml
from rapport.pipeline.report.videos import Shown, read_shown
from rapport.rewards.ratings.raters import survey
from rapport.rewards.ratings.ratings import read_ratings

LEARNING = ("sft", "vae", "flow", "dpo", "gdpo")


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
        prompts: row of the table -> "scores" and "truth_errors" -> prompt id -> value.
        videos: what is shown, and the file's bytes.
    """

    name: str
    summary: Mapping[str, Any]
    config: str
    changed: Mapping[str, Any]
    steps: Mapping[str, list[dict[str, float]]]
    surveys: Mapping[str, Mapping[str, Any]]
    prompts: Mapping[str, Mapping[str, Mapping[str, float]]]
    videos: list[tuple[Shown, bytes]]


def read_facts(directory: Path, summary: Mapping[str, Any], config: RecipeConfig) -> Facts:
    """Read what the phases left in a run directory."""
    prompts = directory / "evaluation_prompts.json"
    folder = directory / "clips"
    return Facts(
        name=directory.name,
        summary=summary,
        config=to_yaml(config),
        changed=changed_keys(config),
        steps={
            label: _rows(directory / label / "steps.jsonl")
            for phase in LEARNING
            for label in _rounds(directory, phase, "steps.jsonl")
        },
        surveys=_surveys(directory, summary),
        prompts=json.loads(prompts.read_text()) if prompts.is_file() else {},
        videos=[(shown, (folder / shown.file).read_bytes()) for shown in read_shown(folder)],
    )


def changed_keys(config: RecipeConfig) -> dict[str, Any]:
    """Keys whose value is not the default."""
    values, defaults = (flatten(c.model_dump(mode="json")) for c in (config, type(config)()))
    return {key: value for key, value in values.items() if value != defaults[key]}


def _rounds(directory: Path, phase: str, file: str) -> list[str]:
    """Labels of the rounds of a phase that left `file`: sft, dpo, dpo-2, ..., dpo-10."""
    found = (folder.name for folder in directory.glob(f"{phase}*") if (folder / file).is_file())
    name = re.compile(rf"{phase}(?:-(\d+))?")
    numbered = ((int(match[1] or 1), label) for label in found if (match := name.fullmatch(label)))
    return [label for _, label in sorted(numbered)]


def _rows(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _surveys(directory: Path, summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """How far raters agree, by round. People's ratings were surveyed when they were read."""
    if "survey" in summary:
        return {"rate": summary["survey"]}
    found = {}
    for label in _rounds(directory, "rate", "ratings.parquet"):
        ratings = read_ratings(directory / label / "ratings.parquet")
        members: dict[str, set[str]] = defaultdict(
            set
        )  # simulated raters rate every candidate there is
        for rating in ratings:
            members[rating.prompt_id].add(rating.candidate_id)
        surveyed = survey(ratings, members)
        found[label] = asdict(surveyed) | {"warnings": surveyed.warnings}
    return found
