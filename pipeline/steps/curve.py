"""What a policy comes to while it learns, on validation prompts.

A reward that is optimised goes up whether or not what it stands for does (Gao et al. 2023, arXiv
2210.10760). So every point has the rating that was optimised beside numbers that nothing trained
on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rapport.actors.fleet import Fleet
from rapport.actors.rater import RewardPool
from rapport.pipeline.rundir import Phase, PhaseResult, Workspace, phase
from rapport.pipeline.settings import JudgedOfFlow, Preferences
from rapport.pipeline.steps.learning import Imitated
from rapport.pipeline.steps.settings import CurveConfig
from rapport.pipeline.steps.verdicts import Verdict

Row = dict[str, float]


def judged_at(
    policies: Iterable[tuple[int, Path]], judge: Callable[[Path], Mapping[str, float]]
) -> list[Row]:
    """A row of numbers for each policy.

    Args:
        policies: steps that it has learnt, and its folder.
        judge: gives the numbers of the policy in a folder.
    """
    return [{"step": step, **judge(folder)} for step, folder in policies]


def follow(
    run: Workspace,
    config: Preferences,
    imitated: Imitated,
    aligned: PhaseResult,
    *,
    fleet: Fleet,
    raters: RewardPool,
    round_index: int,
) -> None:
    """Judge a round's policies on the validation split: `summary["metrics"]["curve"]`.

    Args:
        run: takes the rows.
        config: of the recipe.
        imitated: corpus and imitating policy, the first point.
        aligned: what `align` left: the policies on the way and the last one.
        fleet: engines to answer with; they then hold another policy.
        raters: SIMULATED ones.
        round_index: of the loop.
    """
    if not config.curve.points:
        return
    judged_by = on_validation(config, config.curve)
    verdict = Verdict.of_run(run, judged_by, imitated, fleet=fleet, raters=raters)
    # The summary adds up the rounds, and has this one already.
    before = int(run.summary["counts"]["dpo_steps"] - aligned.counts["dpo_steps"])
    judged = _curve(run, imitated.policy_path, aligned, verdict, before, round_index=round_index)
    run.summary["metrics"].setdefault("curve", []).extend(judged.value)


@phase("curve")
def _curve(
    step: Phase,
    start: Path,
    aligned: PhaseResult,
    verdict: Verdict,
    before: int,
    *,
    round_index: int,
) -> PhaseResult:
    last = aligned.artifacts["dpo_policy"]
    steps = int(aligned.counts["dpo_steps"])
    on_the_way = aligned.value["milestones"].items()
    policies = [(before + int(count), last.parent / name) for count, name in on_the_way]
    policies.append((before + steps, last))
    if round_index == 1:
        policies.insert(0, (0, start))
    rows = judged_at(policies, verdict)
    for row in rows:
        numbers = {name: value for name, value in row.items() if name != "step"}
        step.logger.log(numbers, int(row["step"]))
    ratings = ", ".join(f"{row['simulated_rating']:.2f}" for row in rows)
    step.say(f"simulated rating on validation prompts: {ratings}")
    return PhaseResult(value=[row | {"round": round_index} for row in rows])


def on_validation(config: Preferences, curve: CurveConfig) -> Preferences:
    """The config with which a point of the curve is judged."""
    held_out = {"split": "validation"}
    update = {"evaluation": config.evaluation.model_copy(update=held_out)}
    if isinstance(config, JudgedOfFlow):
        update["judge"] = config.judge.model_copy(update={"windows": curve.prompts})
    else:
        update["evaluation"] = config.evaluation.model_copy(
            update=held_out | {"prompts": curve.prompts, "samples": curve.samples}
        )
    return config.model_copy(update=update)
