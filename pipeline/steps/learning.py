"""What imitation leaves, and how a phase trains."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from rapport.actors.learner import Milestones, Objective, fit
from rapport.actors.settings import LearnerConfig
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.rundir import Phase, PhaseResult
from rapport.policies.policy import Policy, load_policy
from rapport.policies.tables import read_table

# Share of what adapters learnt below which a phase says that rounding took the rest.
LEAST_ARRIVED = 0.8


@dataclass(frozen=True)
class Imitated:
    """What imitation leaves.

    Args:
        corpus: whose listeners are imitated.
        policy_path: folder of the policy.
        windows: folder with a table of encoded windows for each split, where prompts are made in
            advance (AR-Flow); None = they are made of a clip when they are needed.
    """

    corpus: Corpus
    policy_path: Path
    windows: Path | None = None

    @cached_property
    def policy(self) -> Policy:
        """The imitating policy, loaded."""
        return load_policy(self.policy_path)

    def encoded(self, split: str) -> Dataset | None:
        """The encoded windows of a split, where there are any."""
        return None if self.windows is None else read_table(self.windows / f"{split}.arrow")


def own_device(config: LearnerConfig) -> str:
    """Where this process computes: on a GPU where learners do, and where it sees one."""
    return "cuda" if config.gpus and torch.cuda.is_available() else "cpu"


def learn(
    objective: Objective, config: LearnerConfig, step: Phase, milestones: Milestones | None = None
) -> PhaseResult:
    """Train an objective on the learners; returns the phase's result."""
    result = fit(
        objective, config, step.directory, log=step.logger.log, say=step.say, milestones=milestones
    )
    arrived = result["final"].get("adapters/arrived", 1.0)
    if arrived < LEAST_ARRIVED:
        step.say(
            f"only {arrived:.0%} of what the adapters learnt is in the saved weights, the rest was "
            f"rounded away: raise {step.name}.learning_rate, or learn with vla.dtype=float32"
        )
    return learnt(result, step)


def learnt(result: dict[str, Any], step: Phase, **counts: int) -> PhaseResult:
    """What learners left, as a phase's result: NAME_policy is the folder.

    Args:
        result: of the learners.
        step: the phase.
        counts: of what was done besides.
    """
    policy = step.directory / "policy"
    return PhaseResult(
        artifacts={f"{step.name}_policy": policy},
        counts={f"{step.name}_steps": result["steps"], **counts},
        engines={f"{step.name}_learner": result["engine"]},
        metrics=result["final"],
        value={"seconds_per_step": result["seconds_per_step"]},
    )
