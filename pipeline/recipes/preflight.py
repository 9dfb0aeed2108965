"""`preflight`: would this run fit this cluster? Asked by `dpo` before it starts anything expensive.

With `--plan` the cluster is an imaginary one, and the answer has the time that a round would take
on it.
"""

from __future__ import annotations

from rapport.pipeline.rundir import Run
from rapport.pipeline.settings import PreflightConfig
from rapport.pipeline.steps.checks import cluster_of, look_at_cluster
from rapport.pipeline.steps.planning import plan


def run(config: PreflightConfig, run: Run) -> None:
    """Look at the cluster, or plan one."""
    if config.plan.nodes is not None:
        plan(run, config)
        return
    with cluster_of(config):
        look_at_cluster(run, config)
