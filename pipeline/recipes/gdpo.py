"""`gdpo`: GDPO-Listener. Supervised AR-Flow, group reward-decoupled policy optimisation, judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rapport.actors.cluster import cluster
from rapport.actors.learner import Milestones
from rapport.pipeline.config import GdpoRecipeConfig
from rapport.pipeline.objectives.gdpo import GdpoTask
from rapport.pipeline.recipes.flow import (
    Imitation,
    as_trained,
    fleet_options,
    imitate,
    judge,
    show,
)
from rapport.pipeline.recipes.sft import learn
from rapport.pipeline.report.page import write_report
from rapport.pipeline.rundir import Phase, Run, RunError, Workspace
from rapport.policies.flow.training import from_bytes
from rapport.policies.motion import Motion
from rapport.policies.tables import read_table
from rapport.rewards.dynamics import motion_limits

ALIGNED = "GDPO"


def run(config: GdpoRecipeConfig, run: Run) -> None:
    config = as_trained(config)
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        print(f"  {where}", flush=True)
        made = imitate(config, run)
        aligned = post_train(config, made, run)
        show(config, made, ALIGNED, aligned, run)
    judge(config, made, ALIGNED, aligned, run)
    write_report(run)


def post_train(
    config: GdpoRecipeConfig, made: Imitation, run: Workspace, milestones: Milestones | None = None
) -> Path:
    """Stage 2: GDPO (section 3.3) in one long-lived group of learners, which has its own rollout
    fleet.
    """

    def work(phase: Phase) -> dict[str, Any]:
        table, layout = made.table_of("train"), made.corpus.layout
        limits = motion_limits(
            Motion(from_bytes(row["frames"], -1, layout.dim).numpy(), layout)
            for row in read_table(table).select_columns(["frames"])
        )
        task = GdpoTask(
            str(made.policy),
            str(table),
            str(made.vae),
            limits,
            config.seed,
            config.gdpo,
            config.reward,
            config.groups,
            fleet_options(config),
        )
        if not task.listened.any():
            raise RunError(
                f"nobody listens in {table}: GDPO rewards listening only, and there is no latent "
                "in which "
                "the partner speaks and the actor does not"
            )
        prompts = config.gdpo.iterations * config.gdpo.sync_every * config.gdpo.batch_size
        phase.say(
            f"{config.gdpo.iterations} iterations of {config.gdpo.sync_every} steps: {prompts} "
            "prompts "
            f"({len(task.prompts)} windows with listening) x {config.gdpo.group_size} rollouts"
        )
        result = learn(task, config.learner, phase, milestones)
        rollouts = {"rollouts": prompts * config.gdpo.group_size}
        return result | {"counts": result["counts"] | rollouts}

    result = run.once("gdpo", work)
    run.summary["metrics"]["gdpo"] = result["final"]
    return Path(result["policy"])
