"""The jury of a run: held-out prompts answered before and after, tables, videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from rapport.actors.fleet import Fleet
from rapport.actors.rater import RewardPool
from rapport.actors.renderer import RenderPool
from rapport.pipeline.data.reactions import (
    GROUND_TRUTH,
    REACTIONS,
    Groups,
    KeptReactions,
    answered,
    recorded,
)
from rapport.pipeline.report.videos import HELD_OUT, PAIR, WORSE, evenly_spaced, fallen
from rapport.pipeline.rundir import Phase, PhaseResult, Workspace, phase
from rapport.pipeline.settings import Judged, JudgedOfFlow, Preferences
from rapport.pipeline.steps import flow_studies
from rapport.pipeline.steps.checks import say_what_raters_miss
from rapport.pipeline.steps.flow_standards import deterministic
from rapport.pipeline.steps.imitation import begins_aligned
from rapport.pipeline.steps.imitation_vla import action_layout
from rapport.pipeline.steps.judging import (
    Judge,
    MethodRow,
    compare,
    fit_affect,
    tabulate,
)
from rapport.pipeline.steps.learning import Imitated, own_device
from rapport.pipeline.steps.movement import (
    OTHERS,
    HeldOut,
    MovementJudge,
    motions_of,
)
from rapport.pipeline.steps.movement_tables import show_movement, tabulate_movement
from rapport.pipeline.steps.showing import ReportVideo, compared, render_shown, report_video
from rapport.pipeline.steps.spread import of_several
from rapport.pipeline.tracking import by_method
from rapport.policies.flow.policy import FlowPolicy
from rapport.policies.motion import Layout, Motion
from rapport.policies.policy import Policy, Reaction
from rapport.policies.tables import read_table
from rapport.policies.vla.settings import ActionConfig
from rapport.rewards.dynamics import LEAST_FRAMES

EARLIER = {"aligned", "imitation", "candidates"}  # keys that say which policy a run begins with
ALIGNED_BEFORE = "aligned before"  # what a policy is called that is aligned further


@dataclass
class Jury:
    """Hears policies on held-out prompts, one after the other, and says what changed.

    Their answers are kept in `reactions.parquet`, beside the recorded listeners, so that others can
    judge them again.

    Args:
        run: takes tables, numbers and videos.
        config: of the recipe.
        imitated: corpus and imitating policy.
        held_out: the prompts.
        judge: of single reactions.
        baselines: whether methods that learn nothing stand in the table, and controls of a policy.
    """

    run: Workspace
    config: Judged
    imitated: Imitated
    held_out: HeldOut
    judge: Judge
    baselines: bool = False
    answers: dict[str, list[list[Motion]]] = field(default_factory=dict)
    kept: dict[str, Groups] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    rows: dict[str, MethodRow] = field(default_factory=dict)

    @classmethod
    def of_run(
        cls,
        run: Workspace,
        config: Judged,
        imitated: Imitated,
        raters: RewardPool,
        *,
        baselines: bool = True,
    ) -> Self:
        """The jury of a recipe.

        Args:
            run: the recipe's.
            config: of the recipe.
            imitated: corpus and imitating policy.
            raters: SIMULATED ones.
            baselines: whether methods that learn nothing stand in the table.
        """
        say_what_raters_miss(run, config.head, imitated.corpus.layout)
        held_out = HeldOut.from_corpus(config, imitated)
        judge = judge_of(run, config, imitated, held_out=held_out, raters=raters)
        jury = cls(run, config, imitated, held_out=held_out, judge=judge, baselines=baselines)
        if baselines:
            jury.rows |= judge.baselines()
        return jury

    def hear(
        self, policy: Policy, fleet: Fleet, *, round_index: int = 0, name: str | None = None
    ) -> MethodRow:
        """Ask a policy, keep what it answers, and judge that.

        Args:
            policy: who answers.
            fleet: engines that hold it, where they sample as it is judged.
            round_index: of the loop; 0 = before alignment.
            name: in the table; None = the policy's own word for this round.
        """
        name = name or self.name_of(policy, round_index)
        policy, asked = as_judged(policy, self.config, fleet)
        groups = self.held_out.ask(asked)
        answers = motions_of(policy, groups)
        by_clip = self.held_out.by_clip(answers)
        self.answers[name] = answers
        self.policies[name] = policy
        self.kept[name] = answered(self.held_out.by_clip(groups), by_clip)
        self._keep()
        self.rows[name] = self.judge(by_clip)
        if self.baselines and len(self.policies) == 1:
            self.rows |= self.judge.controls(name, by_clip)
        return self.rows[name]

    def _keep(self) -> None:
        """Write all answers so far."""
        listeners = {
            prompt_id: self.judge.clips[prompt_id].listener.window(0, len(group[0].motion))
            for prompt_id, group in next(iter(self.kept.values())).items()
        }
        file = self.run.directory / REACTIONS
        KeptReactions(
            corpus=self.imitated.corpus.digest,
            split=self.config.evaluation.split,
            compared=self.judge.layout,
            methods={GROUND_TRUTH: recorded(listeners)} | self.kept,
        ).write(file)
        self.run.leave({"reactions": file})

    def name_of(self, policy: Policy, round_index: int) -> str:
        """What a policy is called in tables."""
        if round_index == 0:
            further = begins_aligned(self.config.model_dump(include=EARLIER))
            return ALIGNED_BEFORE if further else policy.supervised
        if not isinstance(self.config, Preferences):
            return policy.aligned["gdpo"]
        return policy.aligned["dpo"]

    @property
    def compared(self) -> tuple[str, str]:
        """The first and the last policy that were heard."""
        names = list(self.policies)
        return names[0], names[-1]

    def conclude(self) -> None:
        """Both tables: how reactions were judged, and how they move."""
        before, after = self.compared
        bootstrap = self.config.evaluation.bootstrap
        compare(self.rows, self.run, before=before, after=after, bootstrap=bootstrap)
        movement = _movement(self.run, self)
        tabulate_movement(**movement.value, run=self.run, before=before, after=after)

    def move(self) -> None:
        """How all policies move, beside people; of one alone there is no change to tell."""
        show_movement(_moves(self.run, self).metrics, {})

    def show(self, renderers: RenderPool, pairs: Path | None = None) -> None:
        """Videos: held-out clips, those that got worse, and pairs that were learnt from.

        Args:
            renderers: draw them.
            pairs: the training table of the last round, where there were pairs.
        """
        if self.config.clips:
            _clips(self.run, self, renderers, pairs=pairs)

    def tabulate(self) -> dict[str, Any]:
        """The table of judged reactions only."""
        return tabulate(self.rows, self.run, bootstrap=self.config.evaluation.bootstrap)


def as_judged(policy: Policy, config: Judged, fleet: Fleet | None) -> tuple[Policy, Policy | Fleet]:
    """A policy as held-out reactions are asked of it, and who samples them.

    Args:
        policy: who answers.
        config: says how AR-Flow samples.
        fleet: engines that hold its weights; None = it samples in this process, as AR-Flow does
            in any case, whose judged answers come from the ODE and not from the engines' SDE.
    """
    if isinstance(config, JudgedOfFlow) and isinstance(policy, FlowPolicy):
        policy = policy.with_sampler(flow_studies.ode_sampler(config.judge))
        policy.to(own_device(config.learner))
        return policy, policy
    return policy, policy if fleet is None else fleet


def judge_of(
    run: Workspace, config: Judged, imitated: Imitated, *, held_out: HeldOut, raters: RewardPool
) -> Judge:
    """The judge of single reactions to held-out prompts.

    Args:
        run: the recipe's.
        config: of the recipe.
        imitated: corpus and imitating policy.
        held_out: the prompts.
        raters: SIMULATED ones.
    """
    return Judge.from_corpus(
        run,
        config,
        imitated.corpus,
        layout=compared_layout(imitated.policy, imitated.corpus.layout),
        clip_ids=[window.clip_id for window in held_out.of_listeners().windows],
        raters=raters,
    )


def compared_layout(policy: Policy, corpus: Layout) -> Layout:
    """The groups in which policies are compared: the VLA's own, and its default ones for others."""
    if isinstance(policy, FlowPolicy):
        return action_layout(ActionConfig(), corpus)
    return policy.layout


@phase("judge")
def _movement(step: Phase, jury: Jury) -> PhaseResult:
    """How the first and the last policy move, beside what tells how much is much."""
    before, after = jury.compared
    held_out = jury.held_out
    config = jury.config
    judge = MovementJudge.of_run(config, jury.imitated, held_out)
    answers = {name: held_out.flat(jury.answers[name]) for name in (before, after)}
    policies = {
        name: policy
        for name, policy in jury.policies.items()
        if name in (before, after) and isinstance(policy, FlowPolicy)
    }
    if isinstance(config, JudgedOfFlow):
        answers = methods_of_flow(config, jury, judge, answers=answers, policies=policies)
    movement = judge.score(answers)
    if isinstance(config, JudgedOfFlow):
        for name, values in _studied(step, config, jury, policies=policies).items():
            movement.rows[name].update(values)
        step.say(f"{config.judge.evaluations} evaluations, {config.judge.solver}")
    counts = {
        "judged_windows": len(held_out.windows),
        "judged_listeners": len(judge.listeners),
        "listeners_left_out": judge.left_out,
    }
    step.say(
        f"{counts['judged_windows']} windows, {counts['judged_listeners']} of listeners; "
        f"{judge.left_out} others listen for less than {LEAST_FRAMES} frames"
    )
    changes = movement.changes(before, after, config.evaluation.bootstrap)
    return PhaseResult(value={"rows": movement.rows, "changes": changes}, counts=counts)


@phase("movement")
def _moves(step: Phase, jury: Jury) -> PhaseResult:
    """Methods as of `MovementJudge.score`, and the recorded motion of others."""
    judge = MovementJudge.of_run(jury.config, jury.imitated, jury.held_out)
    answers = {name: jury.held_out.flat(motions) for name, motions in jury.answers.items()}
    rows = dict(judge.score(answers | {OTHERS: judge.others()}).rows)
    by_clip = {name: jury.held_out.by_clip(given) for name, given in jury.answers.items()}
    for name, found in of_several(jury.judge, by_clip).items():
        rows[name] = rows.get(name, {}) | found
    step.logger.log(by_method(rows))
    return PhaseResult(metrics=rows)


def methods_of_flow(
    config: JudgedOfFlow,
    jury: Jury,
    judge: MovementJudge,
    *,
    answers: Mapping[str, list[Motion]],
    policies: Mapping[str, FlowPolicy],
) -> dict[str, list[Motion]]:
    """The methods of AR-Flow's table in its order: standards, policies, ways to sample them.

    Args:
        config: of the recipe.
        jury: that heard the policies.
        judge: of the same windows.
        answers: of both policies, a motion of each window.
        policies: both, by name.
    """
    held_out = jury.held_out
    supervised = next(iter(policies.values()))
    methods = {
        "VAE": flow_studies.coded(held_out, supervised),
        OTHERS: judge.others(),
        **deterministic(config, jury.imitated.corpus, held_out.windows),
        **answers,
        f"{next(iter(policies))} by Euler": flow_studies.by_euler(held_out, supervised),
    }
    if config.judge.ablations:
        methods |= flow_studies.ways(held_out, policies)
    return methods


def _studied(
    step: Phase, config: JudgedOfFlow, jury: Jury, *, policies: Mapping[str, FlowPolicy]
) -> dict[str, dict[str, float]]:
    """What prompts, guidance and length do to each policy; {} where nobody listens long enough."""
    listeners = jury.held_out.listeners()
    if not listeners.windows:
        step.say(
            "nobody listens for half of a held-out window: prompts, guidance, long sequences are "
            "not judged"
        )
        return {}
    judge = config.judge
    corpus = jury.imitated.corpus
    affect = fit_affect(corpus, corpus.layout)
    texts = flow_studies.text_features(next(iter(policies.values())))
    return {
        name: flow_studies.controls(listeners, policy, texts, affect=affect, omegas=judge.omegas)
        | flow_studies.endless(listeners, policy, judge.long_frames)
        for name, policy in policies.items()
    }


@phase("clips")
def _clips(step: Phase, jury: Jury, renderers: RenderPool, pairs: Path | None) -> PhaseResult:
    """`clips` videos of each kind."""
    count = jury.config.clips
    before, after = jury.compared
    held_out = jury.held_out.of_listeners()
    if isinstance(jury.config, JudgedOfFlow):
        first = [window.clip_id for window in held_out.some(count).windows]
    else:
        first = [window.clip_id for window in held_out.windows[:count]]
    answers = {
        name: jury.held_out.by_clip(motions)
        for name, motions in jury.answers.items()
        if name in (before, after)
    }
    kinds = [(clip_id, f"{clip_id}.mp4", HELD_OUT) for clip_id in first]
    if pairs is not None:
        worse = fallen(jury.rows[before].scores, jury.rows[after].scores)
        kinds += [(clip_id, f"worse/{clip_id}.mp4", WORSE) for clip_id in worse[:count]]
    videos = []
    for clip_id, file, kind in kinds:
        motions = {name: by_clip[clip_id][0] for name, by_clip in answers.items()}
        several = answers[after][clip_id]
        if before == after and len(several) > 1:  # what else it might have done
            motions = {f"{after}, {n}": motion for n, motion in enumerate(several, start=1)}
        videos.append(compared(jury.imitated.corpus.clip(clip_id), file, kind, answers=motions))
    if pairs is not None:
        shown = ("prompt_id", "chosen", "rejected", "chosen_score", "rejected_score")
        columns = [*shown, "made_for", "learnt"]
        table = sorted(read_table(pairs).select_columns(columns), key=_by_margin)
        videos += [_pair_video(jury.imitated, row) for row in evenly_spaced(table, count)]
    return render_shown(jury.config.render, videos, renderers, step=step)


def _by_margin(row: Mapping[str, Any]) -> tuple[bool, bool, float, str]:
    """Rated pairs first, the widest margin at their head; learnt ones, and those nobody rated."""
    unrated = row["made_for"] is not None
    margin = 0.0 if unrated else row["chosen_score"] - row["rejected_score"]
    return unrated, bool(row["learnt"]), -margin, row["prompt_id"]


def _pair_video(imitated: Imitated, row: Mapping[str, Any]) -> ReportVideo:
    """A row of the training table: speaker, chosen, rejected."""
    clip = imitated.corpus.clip(row["prompt_id"])
    captions = {"chosen": "chosen", "rejected": "rejected"}
    if row["learnt"]:
        captions = {name: f"{name}, learnt" for name in captions}
    if row["made_for"] is not None:
        captions["rejected"] = "made for another"
    policy = imitated.policy
    rest = policy.rest_of(clip)
    motions = {}
    scores = {}
    for name, caption in captions.items():
        actions = np.array(row[name])
        motions[caption] = policy.to_motion(Reaction(clip.clip_id, 0, actions, rest=rest))
        if row["made_for"] is None:
            scores[caption] = row[f"{name}_score"]
    file = "-".join(filter(None, (f"pairs/{clip.clip_id}", row["made_for"]))) + ".mp4"
    return report_video(clip, file, PAIR, listeners=motions, scores=scores)
