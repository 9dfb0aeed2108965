"""`ablate`: what makes the difference (paper IV-E, Table IV), whatever the policy.

All variants of a seed start from the same imitating policy and learn from the same candidates. They
differ in the labels and in the loss: Full is `dpo`; Random-Prefer is DPO on pairs whose labels a
coin decides; SFT-Preferred imitates the preferred reaction of every pair; SFT-Only stops before.
Where some pairs are no rater's, there are variants that learn from one kind alone; where the loss
imitates beside, one that does not.
"""

from __future__ import annotations

from typing import Any

from rapport.pipeline.rundir import Run, Workspace
from rapport.pipeline.settings import AblateOfFlow, AblateOfVla, OfFlow
from rapport.pipeline.steps.ablation import (
    VARIANTS,
    compare_variants,
    config_of,
    full_less,
    learn_variant,
    learnt_variants,
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

Config = AblateOfVla | AblateOfFlow


def run(config: Config, run: Run) -> None:
    """All variants over several seeds."""
    config = as_trained(config)
    with cluster_of(config):
        preflight(run, config)
        config = on_one_corpus(run, config)
        seeds = []
        for seed in range(config.seed, config.seed + config.ablation.seeds):
            seeded = config.model_copy(update={"seed": seed})
            with run.part(f"seed-{seed}", seeded) as part:
                seeds.append(one_seed(part, seeded))
    compare_variants(run, seeds)


def on_one_corpus(run: Run, config: Config) -> Config:
    """The config with a corpus that is prepared here, once, and read by every seed."""
    if isinstance(config, OfFlow) and config.imitation is not None:
        return config  # that run has brought its own
    corpus = prepare(run, config)
    prepared = config.corpus.model_copy(update={"kind": "parquet", "root": corpus.path})
    return config.model_copy(update={"corpus": prepared})


def one_seed(part: Workspace, config: Config) -> dict[str, Any]:
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
