"""A sweep of `gdpo`: what its trials share, what each does by itself, how all of them are judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rapport.actors.learner import Milestones
from rapport.pipeline.config import GdpoRecipeConfig
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.recipes.flow import Imitation, as_trained, imitate, judge_of
from rapport.pipeline.recipes.flow_judge import FlowJudge
from rapport.pipeline.recipes.gdpo import post_train
from rapport.pipeline.recipes.tune_dpo import with_interval
from rapport.pipeline.rundir import Run, Workspace
from rapport.policies.motion import Motion
from rapport.rewards.metrics.measures.distance import mse
from rapport.rewards.metrics.measures.flame_groups import FEWEST

COST = "MSE"  # what natural dynamics should not be bought with
BOOTSTRAP = 2000


@dataclass(frozen=True)
class GdpoTrials:
    """All that a trial needs of what was done before. Picklable."""

    corpus: Path
    vae: Path
    tables: Path
    start: Path  # the supervised AR-Flow, also the reference

    def learn(self, config: GdpoRecipeConfig, part: Workspace, milestones: Milestones) -> Path:
        return post_train(
            config,
            Imitation(Corpus(self.corpus), self.vae, self.tables, self.start),
            part,
            milestones,
        )

    @staticmethod
    def demand(config: GdpoRecipeConfig) -> dict[str, float]:
        """Resources of a trial that learns, its rollout fleet with it."""
        learner, rollout = config.learner, config.rollout
        return {
            "CPU": learner.world_size * learner.cpus + rollout.workers * rollout.cpus,
            "GPU": learner.world_size * learner.gpus + rollout.workers * rollout.gpus,
        }


@contextmanager
def shared(
    config: GdpoRecipeConfig, run: Run
) -> Iterator[tuple[GdpoTrials, Callable[[Path], dict[str, float]]]]:
    """Corpus, motion VAE, encoded tables and supervised AR-Flow, once; and a judge."""
    config = as_trained(config)
    made = imitate(config, run)
    judge = judge_of(config, made)

    def verdict(path: Path) -> dict[str, float]:
        motions = judge.generate(path)
        on_vertices = {} if judge.faces is None else judge.on_vertices({"": motions})[""]
        means = {name: float(np.mean(list(given.values()))) for name, given in on_vertices.items()}
        fdd = on_vertices.get("listen/unils/FDD", {})
        return (
            judge.by_group(motions)
            | means
            | with_interval("FDD", fdd, BOOTSTRAP)
            | with_interval("MSE", listening_mse(judge, motions), BOOTSTRAP)
            | {"kl": 0.0 if path == made.policy else training_kl(path.parent / "steps.jsonl")}
        )

    yield GdpoTrials(made.corpus.path.absolute(), made.vae, made.tables, made.policy), verdict


def listening_mse(judge: FlowJudge, motions: list[Motion]) -> dict[str, float]:
    """Window -> mean squared error over all channels, on frames in which the actor listens."""
    return {
        window.clip_id: mse(motion.values[window.listening], window.motion.values[window.listening])
        for motion, window in zip(motions, judge.windows, strict=True)
        if np.count_nonzero(window.listening) >= FEWEST
    }


def training_kl(steps: Path) -> float:
    """KL(policy || supervised) of a denoise step where the actor listens, nats, over the last tenth
    of the steps.

    It is that of the trial's own SDE, so a larger sigma makes it smaller
    (`rapport.policies.flow.sde.step_kl`)."""
    rows = [json.loads(line) for line in steps.read_text().rpartition("\n")[0].splitlines()]
    return float(np.mean([row["kl"] for row in rows[-max(1, len(rows) // 10) :]]))
