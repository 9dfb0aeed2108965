"""From candidates that were watched to ratings and pairs, whatever the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from rapport.actors.rater import Group, RewardPool
from rapport.pipeline.config import ScoreConfig
from rapport.pipeline.rundir import Phase, RunError
from rapport.rewards.ratings.pairs import Pair, make_pairs
from rapport.rewards.ratings.raters import RaterScales
from rapport.rewards.ratings.ratings import Rating, write_ratings
from rapport.rewards.ratings.scores import score_candidates


def simulated_ratings(groups: Iterable[Group], rewards: RewardPool, seed: int) -> list[Rating]:
    """Of SIMULATED raters, who watch every candidate on the neutral head."""
    return [rating for _, rated in rewards.rate(groups, seed) for rating in rated]


def keep_ratings(ratings: list[Rating], source: str, phase: Phase) -> dict[str, Any]:
    """Write them in the phase's folder; returns its record.

    Args:
        source: who rated.
    """
    file = phase.directory / "ratings.parquet"
    write_ratings(file, sorted(ratings, key=lambda r: (r.prompt_id, r.candidate_id, r.rater)))
    phase.say(f"{len(ratings)} ratings by {source}")
    return {"artifacts": {"ratings": str(file)}, "engines": {"raters": source}}


def pairs_of(
    ratings: list[Rating],
    members: Mapping[str, list[str]],
    config: ScoreConfig,
    batch_size: int,
    recorded: Callable[[Pair], bool],
    phase: Phase,
    scales: RaterScales | None = None,
) -> tuple[list[Pair], dict[str, Any]]:
    """Score every candidate (Eq. 10 of the VLA + DPO paper); best and worst of a group make a pair.

    Args:
        members: prompt id -> candidate ids.
        batch_size: fewer pairs are an error.
        recorded: whether the chosen one is the recorded listener.
        scales: of the raters, where each rater's scale is taken into account.

    Returns:
        the pairs, and counts of what was scored and paired.
    """
    scores, scored = score_candidates(ratings, config.weights, members, scales)
    pairs, paired = make_pairs(scores, config.minimum_margin)
    if len(pairs) < batch_size:
        raise RunError(
            f"{len(pairs)} pairs are fewer than one batch (dpo.batch_size={batch_size}): "
            f"{asdict(paired)}"
        )
    share = float(np.mean([recorded(pair) for pair in pairs]))
    phase.say(
        f"{len(pairs)} pairs, mean margin {np.mean([p.margin for p in pairs]):.3f}, recorded "
        "listener chosen in "
        f"{share:.0%}"
    )
    phase.logger.log({"pairs": len(pairs), "ground_truth_chosen": share})
    return pairs, asdict(scored) | asdict(paired)
