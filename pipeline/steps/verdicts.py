"""How the policies of a sweep are judged: each comes to a row of numbers, and no table is written.

Raters watch what preferences or the VLA's paper align (VLA + DPO, IV); movement is measured of what
rewards of dynamics or AR-Flow's paper align (GDPO-Listener, supplement). So `dpo policy=flow` and
`gdpo policy=vla` get both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import numpy as np

from rapport.actors.fleet import Fleet
from rapport.actors.learner import whole_lines
from rapport.actors.rater import RewardPool
from rapport.actors.telemetry import KL_TO_REFERENCE
from rapport.pipeline.rundir import Workspace
from rapport.pipeline.settings import Judged, JudgedOfFlow, Rewarded
from rapport.pipeline.steps.judging import Judge, mean_of
from rapport.pipeline.steps.jury import as_judged, judge_of
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.movement import HeldOut, MovementJudge, motions_of
from rapport.policies.motion import Motion
from rapport.policies.policy import Policy, Reaction, load_policy
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.vla_prompt import VlaPrompt
from rapport.rewards.metrics.statistics import mean_interval, prompt_means

# What a sweep may be decided by, under a name of its own -> metric of movement that windows have.
INTERVALS = {"FDD": "listen/unils/FDD_lids_apart", "MSE": "listen/MSE"}


@dataclass(frozen=True, eq=False)
class Verdict:
    """Judges policies, one after the other; called with the folder of one, it gives its numbers.

    A metric with an interval has NAME/low and NAME/high beside it. What this corpus and head do not
    give is left out.

    Args:
        config: of the recipe.
        imitated: the policy that all start from.
        held_out: the prompts.
        fleet: engines that hold one policy after the other; None = policies sample here.
        judge: of reactions that raters watch; None = nobody watches them.
        movement: says how they move; None = that is not measured.
    """

    config: Judged
    imitated: Imitated
    held_out: HeldOut
    fleet: Fleet | None = None
    judge: Judge | None = None
    movement: MovementJudge | None = None

    @classmethod
    def of_run(
        cls,
        run: Workspace,
        config: Judged,
        imitated: Imitated,
        *,
        fleet: Fleet | None = None,
        raters: RewardPool | None = None,
    ) -> Self:
        """The judge of a sweep.

        Args:
            run: the sweep's.
            config: of the recipe.
            imitated: the policy that all start from.
            fleet: engines to answer with.
            raters: SIMULATED ones, where they shall watch.
        """
        held_out = HeldOut.from_corpus(config, imitated)
        judge = None
        if raters is not None:
            judge = judge_of(run, config, imitated, held_out=held_out, raters=raters)
        movement = None
        if isinstance(config, JudgedOfFlow | Rewarded):
            movement = MovementJudge.of_run(config, imitated, held_out)
        return cls(config, imitated, held_out, fleet=fleet, judge=judge, movement=movement)

    def __call__(self, path: Path) -> dict[str, float]:
        """The numbers of the policy in a folder."""
        policy = load_policy(path)
        if self.fleet is not None:
            self.fleet.update(policy.weights(), policy)
        policy, asked = as_judged(policy, self.config, self.fleet)
        groups = self.held_out.ask(asked)
        answers = motions_of(policy, groups)
        values: dict[str, float] = {}
        if self.judge is not None:
            values |= self._rated(self.judge, answers)
        if self.movement is not None:
            values |= self._moved(self.movement, self.held_out.flat(answers))
        at_start = path == self.imitated.policy_path
        if isinstance(self.config, Rewarded):
            # The start has no steps, and no distance to itself.
            return values | {"kl": 0.0 if at_start else training_kl(path.parent / "steps.jsonl")}
        return values | self._divergence(policy, groups, at_start=at_start)

    def _rated(self, judge: Judge, answers: Sequence[list[Motion]]) -> dict[str, float]:
        row = judge(self.held_out.by_clip(answers))
        values = row.metrics | {"truth_affect_error": mean_of(row.truth_errors.values())}
        present = {name: float(value) for name, value in values.items() if value is not None}
        judged = {"simulated_rating": row.scores, **row.yardsticks}
        for name, by_prompt in judged.items():
            present |= with_interval(
                name, by_prompt, self.config.evaluation.bootstrap, row.conversations or None
            )
        return present

    def _moved(self, judge: MovementJudge, motions: Sequence[Motion]) -> dict[str, float]:
        movement = judge.score({"": motions})
        values = dict(movement.rows[""])
        apart = [value for name, value in values.items() if name.startswith("likeness/")]
        if apart:
            values["likeness"] = float(np.mean(apart))
        for name, metric in INTERVALS.items():
            by_window = movement.by_window[""].get(metric, {})
            values |= with_interval(
                name, by_window, self.config.evaluation.bootstrap, movement.conversations
            )
        return values

    def _divergence(
        self, policy: Policy, groups: Sequence[Sequence[Reaction]], *, at_start: bool
    ) -> dict[str, float]:
        """KL(policy || start) of whole reactions, nats, where the policy has a likelihood.

        Of the first reaction to each prompt: prompts differ more than reactions to one of them.
        """
        start = self.imitated.policy
        if not (isinstance(policy, VlaPolicy) and isinstance(start, VlaPolicy)):
            return {}
        if at_start:
            return {"kl": 0.0, "kl/low": 0.0, "kl/high": 0.0}
        by_prompt = prompt_means(
            (window.clip_id, policy.divergence(start, cast(VlaPrompt, prompt), group[:1]))
            for window, prompt, group in zip(
                self.held_out.windows, self.held_out.prompts, groups, strict=True
            )
        )
        conversations = {w.clip_id: w.conversation for w in self.held_out.windows}
        return with_interval("kl", by_prompt, self.config.evaluation.bootstrap, conversations)


def with_interval(
    name: str,
    by_prompt: Mapping[str, float],
    bootstrap: int,
    groups: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """NAME, NAME/low, NAME/high; no bounds of a single prompt, nothing of none.

    Args:
        name: of the metric.
        by_prompt: prompt id -> value.
        bootstrap: resamples of the interval.
        groups: prompt id -> what is resampled, where prompts are not independent.
    """
    if not by_prompt:
        return {}
    if len(by_prompt) == 1:
        return {name: float(np.mean(list(by_prompt.values())))}
    interval = mean_interval(by_prompt, resamples=bootstrap, groups=groups)
    return {name: interval.mean, f"{name}/low": interval.low, f"{name}/high": interval.high}


def training_kl(steps: Path) -> float:
    """KL(policy || start) of an action where the actor listens, over the last tenth of the steps.

    In nats, as learners logged it. Of AR-Flow an action is a denoise step of the trial's own SDE,
    so a larger sigma makes it smaller (`rapport.policies.flow.rollouts.step_kl`).

    Args:
        steps: the learners' file of metrics; its last line may be half written.
    """
    rows = [json.loads(line) for line in whole_lines(steps)]
    last = rows[-max(1, len(rows) // 10) :]
    return float(np.mean([row[KL_TO_REFERENCE] for row in last]))
