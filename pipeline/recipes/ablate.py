"""`ablate`: what makes the difference (paper IV-E, Table IV), whatever the policy.

All variants of a seed start from the same imitating policy and learn from the same candidates. They
differ in the labels and in the loss: Full is `dpo`; Random-Prefer is DPO on pairs whose labels a
coin decides; SFT-Preferred imitates the preferred reaction of every pair; SFT-Only stops before.
Where some pairs are no rater's, there are variants that learn from one kind alone; where the loss
imitates beside, one that does not.

Of ReactFace the parts are asked about: each variant imitates anew, without one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rapport.pipeline.rundir import Run, Workspace
from rapport.pipeline.settings import AblateOfFlow, AblateOfReactFace, AblateOfVla, OfFlow
from rapport.pipeline.steps.ablation import (
    VARIANTS,
    compare_variants,
    config_of,
    full_less,
    learn_variant,
    learnt_variants,
)
from rapport.pipeline.steps.ablation_parts import (
    FULL,
    JUDGED_BY,
    MOVES,
    check_assigned,
    left_out,
    with_moves,
)
from rapport.pipeline.steps.checks import cluster_of, preflight
from rapport.pipeline.steps.corpus import prepare
from rapport.pipeline.steps.imitation import as_trained, imitate
from rapport.pipeline.steps.judging import tabulate
from rapport.pipeline.steps.jury import Jury
from rapport.pipeline.steps.preferences import pair, rate, reward_pool
from rapport.pipeline.steps.sampling import candidates, fleet_of
from rapport.pipeline.steps.showing import render_pool
from rapport.policies.policy import load_policy

Aligned = AblateOfVla | AblateOfFlow
Config = Aligned | AblateOfReactFace


def run(config: Config, run: Run) -> None:
    """All variants over several seeds."""
    config = as_trained(config)
    if isinstance(config, AblateOfReactFace):
        left_out(config)  # which refuses what needs no run
    with cluster_of(config):
        if isinstance(config, AblateOfReactFace):
            seeds = each_seed(run, config, parts_left_out)
            compare_variants(run, seeds, JUDGED_BY, paper=None)
        else:
            preflight(run, config)
            compare_variants(run, each_seed(run, config, labels_and_losses))


def each_seed(
    run: Run, config: Config, one: Callable[[Workspace, Any], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Variant -> its row of held-out metrics, for each seed, on one corpus."""
    config = on_one_corpus(run, config)
    seeds = []
    for seed in range(config.seed, config.seed + config.ablation.seeds):
        seeded = config.model_copy(update={"seed": seed})
        with run.part(f"seed-{seed}", seeded) as part:
            seeds.append(one(part, seeded))
    return seeds


def on_one_corpus(run: Run, config: Config) -> Config:
    """The config with a corpus that is prepared here, once, and read by every seed."""
    if isinstance(config, OfFlow) and config.imitation is not None:
        return config  # that run has brought its own
    corpus = prepare(run, config)
    if isinstance(config, AblateOfReactFace):
        check_assigned(config, corpus)
    prepared = config.corpus.model_copy(update={"kind": "parquet", "root": corpus.path})
    return config.model_copy(update={"corpus": prepared})


def parts_left_out(part: Workspace, config: AblateOfReactFace) -> dict[str, Any]:
    """Variant -> its row of held-out metrics."""
    imitated = {}
    for name, varied in left_out(config).items():
        with part.part(name.lower().replace(" ", "-"), varied) as variant:
            imitated[name] = imitate(variant, varied)
    table = {}
    with reward_pool(config) as raters:
        jury = Jury.of_run(part, config, imitated[FULL], raters, baselines=False)
        recorded = {clip_id: clip.listener for clip_id, clip in jury.judge.clips.items()}
        for name, each in imitated.items():
            with fleet_of(part, config, each) as fleet:
                row = jury.hear(each.policy, fleet, name=name)
            table[name] = with_moves(row, jury.held_out.by_clip(jury.answers[name]), recorded)
    bootstrap = config.evaluation.bootstrap
    part.summary["metrics"]["full_less"] = full_less(table, bootstrap, MOVES)
    judged = tabulate(table, part, bootstrap=bootstrap)
    return {
        name: judged[name] | {move: row.interval(move, bootstrap) for move in MOVES}
        for name, row in table.items()
    }


def labels_and_losses(part: Workspace, config: Aligned) -> dict[str, Any]:
    """Variant -> its row of held-out metrics."""
    imitated = imitate(part, config)
    with (
        fleet_of(part, config, imitated) as fleet,
        reward_pool(config) as raters,
        render_pool(config) as renderers,
    ):
        jury = Jury.of_run(part, config, imitated, raters=raters, baselines=False)
        jury.hear(imitated.policy, fleet, name="SFT-Only")
        groups = candidates(part, config, imitated, fleet=fleet, renderers=renderers)
        ratings = rate(part, config, imitated, groups=groups, raters=raters)
        pairs = pair(part, config, imitated, groups=groups, ratings=ratings)
        names = learnt_variants(config, pairs)
        for name in names:
            varied = config_of(config, name, pairs)
            with part.part(name.lower().replace(" ", "-"), varied) as variant:
                path = learn_variant(variant, varied, name, imitated=imitated, pairs=pairs)
                policy = load_policy(path)
                fleet.update(policy.weights(), policy)
                jury.hear(policy, fleet, name=name)
    table = {name: jury.rows[name] for name in [*names, VARIANTS[-1]]}
    part.summary["metrics"]["full_less"] = full_less(table, config.evaluation.bootstrap)
    return tabulate(table, part, bootstrap=config.evaluation.bootstrap)
