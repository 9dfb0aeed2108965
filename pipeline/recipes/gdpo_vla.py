"""`gdpo policy=vla`: automatic dynamics rewards for the VLA. Imitate, policy gradient on tokens,
judge.

Rewards and advantages are those of `gdpo`; the policy, its fleet and its judge are those of `dpo`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rapport.actors.cluster import cluster
from rapport.pipeline.config import VlaGdpoRecipeConfig
from rapport.pipeline.data.flow import windows
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.data.vla import prompt_of, prompt_row
from rapport.pipeline.objectives.gdpo_vla import LISTENER_SCHEMA, VlaGdpoTask
from rapport.pipeline.recipes import flow_judge
from rapport.pipeline.recipes.evaluate import (
    Answers,
    Judge,
    report,
    reward_pool,
    sample_held_out,
    show,
)
from rapport.pipeline.recipes.prepare import prepare
from rapport.pipeline.recipes.rollout import fleet_options, start_fleet
from rapport.pipeline.recipes.sft import learn, train_sft
from rapport.pipeline.report.page import write_report
from rapport.pipeline.rundir import Phase, Run, RunError
from rapport.policies.flow.training import to_bytes
from rapport.policies.tables import write_table
from rapport.policies.vla.loading import Checkpoint, load_checkpoint
from rapport.rewards.dynamics import motion_limits
from rapport.rewards.metrics.measures import flame_groups


def run(config: VlaGdpoRecipeConfig, run: Run) -> None:
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        print(f"  {where}", flush=True)
        corpus = prepare(config.corpus, run)
        supervised = train_sft(config, corpus, run)
        aligned = post_train(config, corpus, supervised, run)
        judge(config, corpus, supervised, aligned, run)
    write_report(run)


def post_train(config: VlaGdpoRecipeConfig, corpus: Corpus, supervised: Path, run: Run) -> Path:
    """GDPO in one long-lived group of learners, which has its own fleet of engines."""

    def work(phase: Phase) -> dict[str, Any]:
        c, policy, table = (
            config.gdpo,
            load_checkpoint(supervised),
            phase.directory / "listeners.arrow",
        )
        layout = policy.actions.space.layout
        if not write_table(table, listener_rows(corpus, policy), LISTENER_SCHEMA):
            raise RunError(
                "nobody listens in this corpus: GDPO rewards listening only, and there is no "
                "clip in which "
                "the speaker speaks and the listener does not"
            )
        limits = motion_limits(listener.subset(layout) for _, listener in corpus.listeners("train"))
        task = VlaGdpoTask(
            str(supervised),
            str(table),
            config.policy,
            config.seed,
            c,
            config.reward,
            config.groups,
            limits,
            fleet_options(config.rollout),
            config.cluster.lost_workers,
        )
        prompts = c.iterations * c.sync_every * c.batch_size
        phase.say(
            f"{c.iterations} iterations of {c.sync_every} steps: {prompts} prompts "
            f"({len(task.rows)} clips) x "
            f"{c.group_size} answers"
        )
        result = learn(task, config.learner, phase)
        return result | {"counts": result["counts"] | {"rollouts": prompts * c.group_size}}

    result = run.once("gdpo", work)
    run.summary["metrics"]["gdpo"] = result["final"]
    return Path(result["policy"])


def listener_rows(corpus: Corpus, policy: Checkpoint) -> Iterator[dict[str, Any]]:
    """Rows of LISTENER_SCHEMA, of the training clips in which the listener listens."""
    for clip in corpus.clips("train"):
        window = next(windows(clip, 1, both=False))
        if window.listening.any():
            recorded = clip.listener.subset(policy.actions.space.layout)
            yield prompt_row(prompt_of(clip, policy)) | {
                "recorded": to_bytes(recorded.values),
                "listening": window.listening.tolist(),
            }


def judge(
    config: VlaGdpoRecipeConfig, corpus: Corpus, supervised: Path, aligned: Path, run: Run
) -> None:
    """Held-out clips by both policies: how they move, what `dpo` judges, what SIMULATED raters say."""
    policies = {"SFT": supervised, "GDPO": aligned}
    loaded = {name: load_checkpoint(path) for name, path in policies.items()}
    first = loaded["SFT"]
    with (
        start_fleet(config, supervised, first, corpus, run) as fleet,
        reward_pool(config) as rewards,
    ):
        judge = Judge.of(config, corpus, first.actions.space.layout, rewards, run)
        answers: dict[str, Answers] = {}
        for name, policy in loaded.items():
            fleet.update(policy.model)
            answers[name] = sample_held_out(config.evaluation, config.seed, corpus, policy, fleet)
        report({name: judge(given) for name, given in answers.items()}, run)
    show(config, corpus, answers, run)
    flow_judge.report(
        {name: dynamics(judge, given) for name, given in answers.items()}, "SFT", "GDPO", run
    )


def dynamics(judge: Judge, answers: Answers) -> dict[str, float]:
    """`listen/NAME/GROUP` of `flame_groups`, on the frames in which the listener listens."""
    flat = [(judge.clips[i], motion) for i, motions in answers.items() for motion in motions]
    layout = judge.layout
    partners = [None if clip.speaker is None else clip.speaker.subset(layout) for clip, _ in flat]
    parts = [next(windows(clip, 1, both=False)).listening for clip, _ in flat]
    scores = flame_groups.score(
        [motion for _, motion in flat],
        [clip.listener.subset(layout) for clip, _ in flat],
        partners,
        parts,
    )
    return {f"listen/{name}": value for name, value in scores.items()}
