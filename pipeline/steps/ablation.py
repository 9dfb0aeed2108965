"""The variants of the ablation: which labels, which loss (paper IV-E, Table IV)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rapport.pipeline.objectives.dpo import pair_schema
from rapport.pipeline.objectives.flow import RectifiedFlow
from rapport.pipeline.objectives.sft import Sft
from rapport.pipeline.report.paper import ABLATION
from rapport.pipeline.rundir import Phase, PhaseResult, Run, Workspace, phase
from rapport.pipeline.settings import AblateOfFlow, AblateOfVla
from rapport.pipeline.steps.alignment import align
from rapport.pipeline.steps.judging import YARDSTICKS, MethodRow
from rapport.pipeline.steps.learning import Imitated, learn
from rapport.pipeline.tracking import metric_key
from rapport.policies.flow.training import FLOW_SCHEMA, to_bytes
from rapport.policies.tables import read_table, write_table
from rapport.policies.vla.training import IMITATION_SCHEMA

VARIANTS = ("Full", "Random-Prefer", "SFT-Preferred", "SFT-Only")  # the paper's
# On RealTalk: other data and another affect estimator, so compare the order, not the size.
PAPER = dict(zip(VARIANTS, ABLATION.rows.values(), strict=True))
# Which of what Full learns from did it, where it is more than the paper's.
RATED = "Rated pairs alone"
CONTRAST = "Contrast pairs alone"
LOSS = "Without imitation"
COLUMNS = (
    "l2",
    "fd",
    "l2_affect",
    "truth_affect_error",
    "simulated_rating",
    "own_minus_another",
    "matched",
    "right",
    "independent_own_minus_another",
)
COINS = {
    "chosen": "rejected",
    "rejected": "chosen",
    "chosen_score": "rejected_score",
    "rejected_score": "chosen_score",
}


def learn_variant(
    part: Workspace,
    config: AblateOfVla | AblateOfFlow,
    name: str,
    *,
    imitated: Imitated,
    pairs: Path,
) -> Path:
    """One of `learnt_variants`; returns the policy's folder.

    Args:
        part: of the variant.
        config: of the variant.
        name: of the variant.
        imitated: the policy that all start from.
        pairs: that all learn from.
    """
    start = imitated.policy_path
    if name == "SFT-Preferred":
        preferred = imitate_preferred(part, config, initial=start, pairs=pairs)
        return preferred.artifacts["sft-preferred_policy"]
    if name == "Random-Prefer":
        table = part.directory / "pairs.arrow"
        labels = coin_labels(read_table(pairs), config.seed)
        write_table(table, labels, pair_schema(imitated.policy))
        pairs = table
    elif name in (RATED, CONTRAST):
        table = part.directory / "pairs.arrow"
        write_table(table, _of_kind(read_table(pairs), name), pair_schema(imitated.policy))
        pairs = table
    aligned = align(part, config, initial=start, reference=start, pairs=pairs)
    return aligned.artifacts["dpo_policy"]


def learnt_variants(config: AblateOfVla | AblateOfFlow, pairs: Path) -> list[str]:
    """Those of the paper that learn, and those that say what else did it.

    Args:
        config: of the recipe.
        pairs: that all learn from.
    """
    rated = [row["made_for"] is None for row in read_table(pairs)]
    others = [RATED, CONTRAST] if any(rated) and not all(rated) else []
    if config.dpo.chosen_nll:
        others.append(LOSS)
    return [VARIANTS[0], *others, *VARIANTS[1:3]]


def config_of(
    config: AblateOfVla | AblateOfFlow, name: str, pairs: Path
) -> AblateOfVla | AblateOfFlow:
    """The config of a variant.

    Pairs of one kind alone are learnt from for as many steps as all of them.

    Args:
        config: of the recipe.
        name: of the variant.
        pairs: that all learn from.
    """
    changes: dict[str, Any] = {}
    if name in (RATED, CONTRAST):
        rows = read_table(pairs)
        kept = sum(1 for _ in _of_kind(rows, name))
        changes = {"epochs": round(config.dpo.epochs * len(rows) / kept)}
    elif name == LOSS:
        changes = {"chosen_nll": 0.0}
    return config.model_copy(update={"dpo": config.dpo.model_copy(update=changes)})


def _of_kind(pairs: Iterable[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """Those that raters made, or those that no rater made."""
    return (row for row in pairs if (row["made_for"] is None) == (name == RATED))


def coin_labels(pairs: Sequence[Mapping[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """The same pairs; which reaction is preferred, a coin decides."""
    heads = np.random.default_rng([seed, len(pairs)]).random(len(pairs)) < 0.5
    for row, swapped in zip(pairs, heads, strict=True):
        yield {COINS.get(name, name) if swapped else name: value for name, value in row.items()}


@phase("sft-preferred")
def imitate_preferred(
    step: Phase, config: AblateOfVla | AblateOfFlow, initial: Path, pairs: Path
) -> PhaseResult:
    """Imitate the chosen reactions: as many steps, of as many reactions, at the same rate as DPO.

    Args:
        step: the phase.
        config: of the recipe.
        initial: folder of the policy that all variants start from.
        pairs: whose chosen reactions are imitated.
    """
    table = step.directory / "preferred.arrow"
    chosen = preferred_rows(read_table(pairs), config)
    rows = write_table(
        table, chosen, IMITATION_SCHEMA if isinstance(config, AblateOfVla) else FLOW_SCHEMA
    )
    dpo = config.dpo
    as_dpo = {
        "steps": max(1, dpo.epochs * rows // dpo.batch_size),
        "batch_size": dpo.batch_size,
        "learning_rate": dpo.learning_rate,
        "weight_decay": dpo.weight_decay,
    }
    objective: Sft | RectifiedFlow
    if isinstance(config, AblateOfVla):
        sft = config.sft.model_copy(update=as_dpo | {"window_share": 0.0})
        objective = Sft(initial, table, sft, seed=config.seed, policy_config=config.vla)
    else:
        flow = config.flow.model_copy(update=as_dpo)
        objective = RectifiedFlow(initial, table, flow, seed=config.seed)
    return learn(objective, config.learner, step)


def preferred_rows(
    pairs: Iterable[Mapping[str, Any]], config: AblateOfVla | AblateOfFlow
) -> Iterator[dict[str, Any]]:
    """The prompt of every pair with its chosen reaction, as the policy's imitation wants it.

    Rows of IMITATION_SCHEMA with action tokens, or of FLOW_SCHEMA with latents as bytes.
    """
    for row in pairs:
        if isinstance(config, AblateOfVla):
            prompt = {name: row[name] for name in IMITATION_SCHEMA.names if name in row}
            yield prompt | {"actions": row["chosen"]}
        else:
            prompt = {name: row[name] for name in FLOW_SCHEMA.names if name in row}
            yield prompt | {"latents": to_bytes(np.array(row["chosen"], np.float32))}


def full_less(
    table: Mapping[str, MethodRow], bootstrap: int, more: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """By how much Full is above each other variant on the same prompts, by rating and yardstick.

    Args:
        table: variant -> its row.
        bootstrap: resamples of the intervals.
        more: yardsticks that these rows have beside those of all.
    """
    full = table[VARIANTS[0]]
    return {
        name: {key: full.change(row, key, bootstrap) for key in ("scores", *YARDSTICKS, *more)}
        for name, row in table.items()
        if row is not full
    }


def compare_variants(
    run: Run,
    seeds: Sequence[Mapping[str, Mapping[str, Any]]],
    columns: Sequence[str] = COLUMNS,
    paper: Mapping[str, Sequence[float | None]] | None = PAPER,
) -> None:
    """Mean and standard deviation over seeds of every variant.

    They go to the terminal, into the summary and to MLflow.

    Args:
        run: the recipe's.
        seeds: variant -> its row of held-out metrics, for each seed.
        columns: metrics that are shown.
        paper: variant -> what is published of it; None = nothing that could stand beside.
    """
    table = Table(
        title=f"ablation, {len(seeds)} seeds: mean and standard deviation (simulated raters)"
    )
    table.add_column("variant")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    if paper is not None:
        names = ", ".join(ABLATION.columns).replace("_", " ")
        table.add_column(f"paper: {names}", justify="right")
    by_variant = {}
    for variant in seeds[0]:
        metrics = {
            column: over_seeds([value(rows[variant], column) for rows in seeds])
            for column in columns
        }
        by_variant[variant] = metrics
        cells = [
            "-" if each is None else f"{each['mean']:.3f} ± {each['std']:.3f}"
            for each in metrics.values()
        ]
        if paper is not None:
            cells.append(", ".join(f"{n:.2f}" for n in paper.get(variant, ())))
        table.add_row(variant, *cells)
        known = {name: each["mean"] for name, each in metrics.items() if each is not None}
        run.tracker.log({f"{metric_key(variant)}/{name}": mean for name, mean in known.items()})
    Console(width=200).print(table)
    run.summary["metrics"]["ablation"] = by_variant


def value(row: Mapping[str, Any], column: str) -> float | None:
    """A metric of a row, of one with an interval its mean."""
    metric = row[column]
    return metric["mean"] if isinstance(metric, dict) else metric


def over_seeds(values: Iterable[float | None]) -> dict[str, float] | None:
    """Mean and sample standard deviation (0 for one seed); None where a seed has no value."""
    present = []
    for each in values:
        if each is None:
            return None
        present.append(each)
    std = float(np.std(present, ddof=1)) if len(present) > 1 else 0.0
    return {"mean": float(np.mean(present)), "std": std}
