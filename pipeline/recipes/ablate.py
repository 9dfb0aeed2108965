"""`ablate`: what makes the difference (paper IV-E, Table IV): Full, Random-Prefer, SFT-Preferred,
SFT-Only.

All variants of a seed start from the same SFT policy and learn from the same candidates. They
differ in the labels and in the loss: Full is `dpo`; Random-Prefer is DPO on pairs whose labels a
coin decides; SFT-Preferred imitates the preferred reaction of every pair; SFT-Only stops before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rapport.actors.cluster import cluster
from rapport.pipeline.config import AblateConfig, SftConfig
from rapport.pipeline.data.store import Corpus
from rapport.pipeline.objectives.sft import SftTask
from rapport.pipeline.recipes.dpo import align, candidates, pair, rate
from rapport.pipeline.recipes.evaluate import Judge, report, reward_pool, sample_held_out
from rapport.pipeline.recipes.preflight import preflight
from rapport.pipeline.recipes.prepare import prepare
from rapport.pipeline.recipes.rollout import render_pool, start_fleet
from rapport.pipeline.recipes.sft import learn, train_sft
from rapport.pipeline.report.paper import ABLATION
from rapport.pipeline.rundir import Phase, Run, Workspace
from rapport.policies.tables import read_table, write_table
from rapport.policies.vla.loading import load_checkpoint
from rapport.policies.vla.training import PAIR_SCHEMA, SFT_SCHEMA

VARIANTS = ("Full", "Random-Prefer", "SFT-Preferred", "SFT-Only")
# On RealTalk: other data and another affect estimator, so compare the order, not the size.
PAPER = dict(zip(VARIANTS, ABLATION.rows.values(), strict=True))
COLUMNS = ("l2", "fd", "l2_affect", "truth_affect_error", "simulated_rating")


def run(config: AblateConfig, run: Run) -> None:
    with cluster(config.cluster.address, config.cluster.cpus) as where:
        print(f"  {where}", flush=True)
        if config.cluster.preflight:
            preflight(config, run)
        corpus = prepare(config.corpus, run)
        seeds = []
        for seed in range(config.seed, config.seed + config.ablation.seeds):
            seeded = config.model_copy(update={"seed": seed})
            with run.part(f"seed-{seed}", seeded) as part:
                seeds.append(one_seed(seeded, corpus, part))
    compare(seeds, run)


def one_seed(config: AblateConfig, corpus: Corpus, part: Workspace) -> dict[str, Any]:
    """Variant -> its row of held-out metrics."""
    sft = train_sft(config, corpus, part)
    policy = load_checkpoint(sft)
    with (
        start_fleet(config, sft, policy, corpus, part) as fleet,
        reward_pool(config) as rewards,
        render_pool(config) as renderers,
    ):
        judge = Judge.of(config, corpus, policy.actions.space.layout, rewards, part)
        rows = {
            "SFT-Only": judge(
                sample_held_out(config.evaluation, config.seed, corpus, policy, fleet)
            )
        }
        groups = candidates(config, corpus, policy, fleet, renderers, part, 1)
        ratings = rate(config, corpus, policy, groups, rewards, part, 1)
        pairs = pair(config, corpus, policy, groups, ratings, part, 1)
        for name in ("Full", "Random-Prefer", "SFT-Preferred"):
            with part.part(name.lower(), config) as variant:
                aligned = load_checkpoint(learn_variant(name, config, sft, pairs, variant))
                fleet.update(aligned.model)
                rows[name] = judge(
                    sample_held_out(config.evaluation, config.seed, corpus, aligned, fleet)
                )
    return report({name: rows[name] for name in VARIANTS}, part)


def learn_variant(name: str, config: AblateConfig, sft: Path, pairs: Path, part: Workspace) -> Path:
    if name == "Full":
        return align(config, sft, sft, pairs, part, 1)
    if name == "Random-Prefer":
        table = part.directory / "pairs.arrow"
        write_table(table, coin_labels(read_table(pairs), config.seed), PAIR_SCHEMA)
        return align(config, sft, sft, table, part, 1)
    return imitate_preferred(config, sft, pairs, part)


def coin_labels(pairs: Any, seed: int) -> Iterator[dict[str, Any]]:
    """The same pairs; which reaction is preferred, a coin decides."""
    heads = np.random.default_rng([seed, len(pairs)]).random(len(pairs)) < 0.5
    swap = {
        "chosen": "rejected",
        "rejected": "chosen",
        "chosen_score": "rejected_score",
        "rejected_score": "chosen_score",
    }
    for row, swapped in zip(pairs, heads, strict=True):
        yield {swap.get(name, name) if swapped else name: value for name, value in row.items()}


def imitate_preferred(config: AblateConfig, sft: Path, pairs: Path, part: Workspace) -> Path:
    """SFT on the chosen reactions: as many steps, of as many reactions, at the same rate as DPO."""

    def work(phase: Phase) -> dict[str, Any]:
        chosen = (
            {
                "prompt_id": row["prompt_id"],
                "prompt": row["prompt"],
                "frames": row["frames"],
                "actions": row["chosen"],
            }
            for row in read_table(pairs)
        )
        table = phase.directory / "preferred.arrow"
        rows = write_table(table, chosen, SFT_SCHEMA)
        c = config.dpo
        settings = SftConfig(
            **config.sft.model_dump()
            | {
                "steps": max(1, c.epochs * rows // c.batch_size),
                "batch_size": c.batch_size,
                "window_share": 0.0,
                "learning_rate": c.learning_rate,
                "weight_decay": c.weight_decay,
            }
        )
        return learn(
            SftTask(str(sft), str(table), config.policy, config.seed, settings),
            config.learner,
            phase,
        )

    return Path(part.once("sft-preferred", work)["policy"])


def compare(seeds: list[dict[str, Any]], run: Run) -> None:
    """Mean and spread (standard deviation over seeds) of every variant; in the summary and on the
    terminal.
    """
    table = Table(
        title=f"ablation, {len(seeds)} seeds: mean and standard deviation (simulated raters)"
    )
    table.add_column("variant")
    for column in COLUMNS:
        table.add_column(column.replace("_", " "), justify="right")
    table.add_column(f"paper: {', '.join(ABLATION.columns).replace('_', ' ')}", justify="right")
    found = {}
    for variant in VARIANTS:
        found[variant] = {
            column: spread([value(row[variant], column) for row in seeds]) for column in COLUMNS
        }
        cells = [
            "-" if s is None else f"{s['mean']:.4f} ± {s['std']:.4f}"
            for s in found[variant].values()
        ]
        table.add_row(variant, *cells, ", ".join(f"{v:.2f}" for v in PAPER[variant]))
        run.tracker.log(
            {
                f"{variant.lower()}/{name}": s["mean"]
                for name, s in found[variant].items()
                if s is not None
            }
        )
    Console(width=160).print(table)
    run.summary["metrics"]["ablation"] = found


def value(row: Mapping[str, Any], column: str) -> float | None:
    found = row[column]
    return found["mean"] if isinstance(found, dict) else found


def spread(values: list[float | None]) -> dict[str, float] | None:
    """Mean and sample standard deviation (0 for one seed); None where a seed has no value."""
    if any(v is None for v in values):
        return None
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
    }
