"""`dpo policy=flow`: human-score DPO for AR-Flow. Imitate, answer, rate, pair, align with Flow-DPO,
judge.

Ratings, scores and pairs are those of `dpo`; the policy, its candidates and its judge are those of
`gdpo`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rapport.actors.cluster import cluster
from rapport.actors.flow_rollout import FlowFleet, Sampling
from rapport.actors.rater import Group, RewardPool
from rapport.pipeline.config import FlowDpoRecipeConfig
from rapport.pipeline.data.candidates import GROUND_TRUTH
from rapport.pipeline.data.flow import LISTENER
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.objectives.flow_dpo import FLOW_PAIR_SCHEMA, FlowDpoTask
from rapport.pipeline.recipes.evaluate import JUDGES, group_of, interval_json, reward_pool
from rapport.pipeline.recipes.flow import (
    SUPERVISED,
    Imitation,
    as_trained,
    fleet_options,
    imitate,
    judge,
    judge_of,
    show,
)
from rapport.pipeline.recipes.preferences import keep_ratings, pairs_of, simulated_ratings
from rapport.pipeline.recipes.sft import learn
from rapport.pipeline.report.page import write_report
from rapport.pipeline.rundir import Phase, Run
from rapport.policies.flow import checkpoint
from rapport.policies.flow.training import CONDITION_COLUMNS, from_bytes, to_bytes
from rapport.policies.motion import Motion
from rapport.policies.tables import read_table, write_table
from rapport.rewards.metrics.statistics import mean_interval, paired_interval, prompt_means
from rapport.rewards.ratings.pairs import Pair
from rapport.rewards.ratings.ratings import Rating, read_ratings
from rapport.rewards.ratings.scores import overall

ALIGNED = "Flow-DPO"
CANDIDATE_SCHEMA = pa.schema(
    {"clip_id": pa.string(), "candidate_id": pa.string(), "latents": pa.binary()}
)


def run(config: FlowDpoRecipeConfig, run: Run) -> None:
    config = as_trained(config)
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        print(f"  {where}", flush=True)
        made = imitate(config, run)
        with reward_pool(config) as rewards:
            answers = candidates(config, made, run)
            ratings = rate(config, made, answers, rewards, run)
            pairs = pair(config, made, answers, ratings, run)
            aligned = align(config, made, pairs, run)
            compare(config, made, aligned, rewards, run)
        show(config, made, ALIGNED, aligned, run)
    judge(config, made, ALIGNED, aligned, run)
    write_report(run)


def candidates(config: FlowDpoRecipeConfig, made: Imitation, run: Run) -> Path:
    """The recorded listener and K samples by the ODE for each of `rollout.prompts` training clips,
    as latents.
    """

    def work(phase: Phase) -> dict[str, Any]:
        c, table = config.rollout, read_table(made.table_of("train"))
        listeners = [i for i, name in enumerate(table["clip_id"]) if name.endswith(LISTENER)]
        order = np.random.default_rng(config.seed).permutation(len(listeners))[: c.prompts]
        rows = sorted(listeners[i] for i in order)
        seeds = np.random.SeedSequence([config.seed, len(rows)]).generate_state(len(rows)).tolist()
        limits = Motion(
            np.zeros((2, made.corpus.layout.dim)), made.corpus.layout
        )  # nothing is rewarded here
        sampling = Sampling(
            c.samples, c.steps, sigma=0.0, reduction="sum", corrected=False, shared_start=False
        )
        file = phase.directory / "candidates.arrow"
        with FlowFleet(
            made.policy, made.vae, made.table_of("train"), limits, sampling, fleet_options(config)
        ) as fleet:
            groups = fleet.roll_out(rows, seeds)

        def found() -> Iterator[dict[str, Any]]:
            for group in groups:
                row = table[group.row]
                clip_id = row["clip_id"].removesuffix(LISTENER)
                yield {"clip_id": clip_id, "candidate_id": GROUND_TRUTH, "latents": row["latents"]}
                for k, latents in enumerate(group.states[..., -1, :]):
                    yield {"clip_id": clip_id, "candidate_id": str(k), "latents": to_bytes(latents)}

        count = write_table(file, found(), CANDIDATE_SCHEMA)
        phase.say(f"{len(rows)} prompts x {c.samples} samples, and the recorded listeners")
        return {
            "counts": {"rollout_prompts": len(rows), "candidates": count},
            "artifacts": {"candidates": str(file)},
        }

    return Path(run.once("rollout", work)["artifacts"]["candidates"])


def read_groups(file: Path) -> dict[str, dict[str, bytes]]:
    """Clip id -> candidate id -> latents."""
    groups: dict[str, dict[str, bytes]] = {}
    for row in read_table(file):
        groups.setdefault(row["clip_id"], {})[row["candidate_id"]] = row["latents"]
    return groups


def rate(
    config: FlowDpoRecipeConfig, made: Imitation, answers: Path, rewards: RewardPool, run: Run
) -> list[Rating]:
    """Ratings by SIMULATED raters, who watch every candidate on the neutral head."""

    def work(phase: Phase) -> dict[str, Any]:
        vae = checkpoint.load_vae(made.vae)

        def motions(group: dict[str, bytes]) -> dict[str, Motion]:
            return {
                i: vae.to_motion(from_bytes(x, -1, vae.config.latent_dim)) for i, x in group.items()
            }

        watched = (
            shown(made.corpus, i, motions(group)) for i, group in read_groups(answers).items()
        )
        ratings = simulated_ratings(watched, rewards, config.seed)
        return keep_ratings(ratings, f"{config.raters.count} SIMULATED raters", phase)

    return read_ratings(run.once("rate", work)["artifacts"]["ratings"])


def shown(corpus: Corpus, clip_id: str, candidates: Mapping[str, Motion]) -> Group:
    """Candidates with what raters see and hear of the speaker, for as long as whole latents last."""
    clip, frames = corpus.clip(clip_id), len(next(iter(candidates.values())))
    return group_of(
        replace(clip, speaker=None if clip.speaker is None else clip.speaker.window(0, frames)),
        candidates,
    )


def pair(
    config: FlowDpoRecipeConfig, made: Imitation, answers: Path, ratings: list[Rating], run: Run
) -> Path:
    """Score every candidate (Eq. 10 of the VLA + DPO paper); best and worst of a group make a pair."""

    def work(phase: Phase) -> dict[str, Any]:
        groups = read_groups(answers)
        pairs, counts = pairs_of(
            ratings,
            {i: list(group) for i, group in groups.items()},
            config.score,
            config.dpo.batch_size,
            lambda p: p.chosen_id == GROUND_TRUTH,
            phase,
        )
        table = phase.directory / "pairs.arrow"
        windows = {row["clip_id"]: row for row in read_table(made.table_of("train"))}
        write_table(table, pair_rows(pairs, groups, windows), FLOW_PAIR_SCHEMA)
        return {"counts": counts, "artifacts": {"pairs": str(table)}}

    return Path(run.once("pair", work)["artifacts"]["pairs"])


def pair_rows(
    pairs: list[Pair],
    groups: Mapping[str, Mapping[str, bytes]],
    windows: Mapping[str, Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    for p in pairs:
        window, group = windows[p.prompt_id + LISTENER], groups[p.prompt_id]
        yield {name: window[name] for name in CONDITION_COLUMNS} | {
            "chosen": group[p.chosen_id],
            "rejected": group[p.rejected_id],
            "chosen_score": p.chosen_score,
            "rejected_score": p.rejected_score,
        }


def align(config: FlowDpoRecipeConfig, made: Imitation, pairs: Path, run: Run) -> Path:
    def work(phase: Phase) -> dict[str, Any]:
        task = FlowDpoTask(str(made.policy), str(pairs), config.seed, config.dpo)
        phase.say(f"{len(task.rows)} pairs, {task.steps} steps, beta {config.dpo.beta:g}")
        return learn(task, config.learner, phase)

    result = run.once("dpo", work)
    run.summary["metrics"]["dpo"] = result["final"]
    return Path(result["policy"])


def compare(
    config: FlowDpoRecipeConfig, made: Imitation, aligned: Path, rewards: RewardPool, run: Run
) -> None:
    """Held-out listeners by both policies, with the same noise, before other simulated raters."""

    def work(phase: Phase) -> dict[str, Any]:
        judge = judge_of(config, made).of_listeners()
        rated = {}
        for name, policy in ((SUPERVISED, made.policy), (ALIGNED, aligned)):
            answers = {
                w.clip_id.removesuffix(LISTENER): m
                for w, m in zip(judge.windows, judge.generate(policy), strict=True)
            }
            groups = (
                shown(made.corpus, clip_id, {clip_id: motion})
                for clip_id, motion in answers.items()
            )
            ratings = simulated_ratings(groups, rewards, config.seed + JUDGES)
            rated[name] = prompt_means(
                (r.prompt_id, overall(r, config.score.weights)) for r in ratings
            )
        change = paired_interval(rated[SUPERVISED], rated[ALIGNED])
        means = {name: interval_json(mean_interval(scores)) for name, scores in rated.items()}
        phase.say(
            f"simulated raters: {change.mean:+.2f} of 5, 95 % interval [{change.low:+.2f}, "
            f"{change.high:+.2f}]; "
            + ", ".join(f"{name} {given['mean']:.2f}" for name, given in means.items())
        )
        phase.logger.log({"simulated_rating_change": change.mean})
        return {"simulated_rating": means | {"change": interval_json(change)}}

    run.summary["metrics"]["simulated_rating"] = run.once("compare", work)["simulated_rating"]
