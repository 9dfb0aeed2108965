"""What `distil` says: a teacher's answers, reflow, and what is kept with few evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapport.pipeline.objectives.reflow import Reflow
from rapport.pipeline.rundir import Phase, PhaseResult, phase
from rapport.pipeline.settings import DistilConfig
from rapport.pipeline.steps.learning import Imitated, learn, own_device
from rapport.pipeline.steps.listening import policy_folder
from rapport.pipeline.steps.solvers import Answers, answers_by
from rapport.policies.flow.conditions import MODALITIES, draw_leads
from rapport.policies.flow.policy import BATCH, FlowPolicy, Sampler
from rapport.policies.flow.sampling import window_noise
from rapport.policies.flow.training import ANSWER_SCHEMA, CONDITION_COLUMNS, to_bytes
from rapport.policies.tables import write_table

COMPARED = 256  # validation windows
ASKED = (2, 4)  # evaluations by which both are compared with the teacher's many


def teacher_of(config: DistilConfig, imitated: Imitated) -> Path:
    """The policy that the named run ended with, or that was just made."""
    return imitated.policy_path if config.imitation is None else policy_folder(config.imitation)


@phase("answers")
def answers(step: Phase, config: DistilConfig, imitated: Imitated, teacher: Path) -> PhaseResult:
    """Training windows as the teacher answers them, some with less to see and hear."""
    policy = FlowPolicy.load(teacher).to(own_device(config.learner))
    table = step.directory / "answers.arrow"
    rows = _answered(policy, imitated.encoded("train"), config)
    count = write_table(table, rows, ANSWER_SCHEMA)
    step.say(f"{count} windows, {config.distil.taught} evaluations a latent")
    return PhaseResult(artifacts={"answers_table": table}, counts={"answers": count})


def _answered(policy: FlowPolicy, windows: Any, config: DistilConfig) -> Iterator[dict[str, Any]]:
    given = config.distil
    rng = np.random.default_rng(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    chosen = rng.permutation(len(windows))[: given.windows]
    sizes = policy.flow.config
    for first in range(0, len(chosen), BATCH):
        numbers = chosen[first : first + BATCH].tolist()
        [lead] = draw_leads(1, whole_share=0, generator=generator).tolist()
        rows = [_with_less(windows[number], given.drop_each, rng) for number in numbers]
        seeds = rng.integers(2**31, size=len(rows)).tolist()
        asked = policy.with_sampler(Sampler(evaluations=given.taught, lead=lead))
        groups = asked.sample([policy.prompt_of(row) for row in rows], 1, seeds)
        noise = window_noise(seeds, 1, sizes.window, sizes.latent_dim)[:, 0]
        for row, [reaction], start in zip(rows, groups, noise, strict=True):
            yield {name: row[name] for name in CONDITION_COLUMNS} | {
                "latents": to_bytes(reaction.actions),
                "noise": to_bytes(start),
                "lead": lead,
            }


def _with_less(row: dict[str, Any], drop_each: float, rng: np.random.Generator) -> dict[str, Any]:
    """The window without some modalities: who is talked to live has no partner's motion."""
    lost = dict(zip(MODALITIES, rng.random(len(MODALITIES)) < drop_each, strict=True))
    return {name: None if lost.get(name) else value for name, value in row.items()}


@phase("distil")
def distil(step: Phase, config: DistilConfig, teacher: Path, answered: PhaseResult) -> PhaseResult:
    """A copy of the teacher learns the straight way; it is saved with how few steps it takes."""
    initial = step.directory / "initial"
    policy = FlowPolicy.load(teacher)
    policy.flow.config = replace(policy.flow.config, evaluations=config.distil.evaluations)
    policy.save(initial)
    table = answered.artifacts["answers_table"]
    step.say(f"{config.distil.steps} steps, for {config.distil.evaluations} evaluations a latent")
    return learn(Reflow(initial, table, config.distil, seed=config.seed), config.learner, step)


@phase("compare")
def compare(
    step: Phase, config: DistilConfig, imitated: Imitated, teacher: Path, distilled: PhaseResult
) -> PhaseResult:
    """Spread kept and answers met with few evaluations, teacher and student, on validation."""
    device = own_device(config.learner)
    windows = imitated.encoded("validation")
    assert windows is not None
    rows = [windows[i] for i in range(min(COMPARED, len(windows)))]
    policies = {
        "teacher": FlowPolicy.load(teacher).to(device),
        "distilled": FlowPolicy.load(distilled.artifacts["distil_policy"]).to(device),
    }
    well = answers_by(policies["teacher"], rows, "midpoint", config.distil.taught)
    found: dict[str, dict[str, float]] = {}
    for evaluations in sorted({*ASKED, config.distil.evaluations}):
        for name, policy in policies.items():
            given = answers_by(policy, rows, "midpoint", evaluations)
            found[f"{name}, {evaluations} evaluations"] = _against(given, well)
    for name, values in found.items():
        kept = ", ".join(f"{group} {value:.2f}" for group, value in values.items())
        step.say(f"{name}: {kept}")
    return PhaseResult(metrics=found, counts={"compared": len(rows)})


def _against(given: Answers, well: Answers) -> dict[str, float]:
    """Variance by group over the teacher's, and the correlation of latents from the same noise."""
    alike = np.corrcoef(given.latents.ravel(), well.latents.ravel())[0, 1]
    return given.kept(well) | {"same noise, r": float(alike)}
