"""Imitation by likelihood: the recorded listener's actions become likely.

For policies that have no objective of their own; the VLA has `sft`, AR-Flow `flow`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rapport.pipeline.objectives.objective import Forward, Loss, PolicyObjective
from rapport.policies.tables import generator_of


class Imitation(PolicyObjective):
    """- log pi of the column `actions`, mean over a batch."""

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Prompts and recorded reactions."""
        rows = [self.rows[index] for index in self.share(step, rank, world_size)]
        draws = self.policy.draws(self.config.batch_size, generator_of(self.seed, step))
        shared = {name: value[rank::world_size] for name, value in draws.items()}
        actions = self.policy.collate_actions(rows, ["actions"])
        return self.policy.collate(rows) | shared | {"actions": actions}

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """Mean negative log-likelihood, nats."""
        return -self.policy.log_likelihood(forward, batch).mean(), {}
