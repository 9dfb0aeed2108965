"""Automatic rewards: who listens when, what a group of reactions is worth, who is better than whom.

GDPO-Listener, section 3.3 and Eq. 8-9, whatever the policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from rapport.pipeline.data.flow import SCENE_COLUMNS, scene_row, windows
from rapport.pipeline.objectives.gdpo import Rollouts
from rapport.pipeline.objectives.settings import GdpoConfig
from rapport.pipeline.rundir import Phase, RunError
from rapport.pipeline.settings import Rewarded
from rapport.pipeline.steps.learning import Imitated
from rapport.policies.flow.training import from_bytes
from rapport.policies.motion import Motion
from rapport.policies.policy import Policy, Prompt, Reaction
from rapport.policies.tables import batch_rows, read_table, write_table
from rapport.rewards.advantage import (
    advantage_moments,
    decoupled_advantages,
    grpo_advantages,
    has_preference,
    normalise_advantages,
)
from rapport.rewards.dynamics import (
    COMPONENTS,
    GroupWeightsConfig,
    Penalties,
    RewardConfig,
    group_rewards,
    missing_penalties,
    motion_limits,
    penalties,
)

RolloutGroups = Sequence[Sequence[Reaction]]  # one for each prompt of an iteration
PenaltyGroups = Sequence[Sequence[Penalties]]  # the same, measured


@dataclass(frozen=True, eq=False)
class Batch:
    """The prompts of an iteration.

    Args:
        rows: of each in the table of scenes.
        order: which of `prompts` stands at each place of the iteration.
        prompts: what is asked, once each where a prompt asked twice is answered alike.
        seeds: one for each of `prompts`.
    """

    rows: list[int]
    order: list[int]
    prompts: list[Prompt]
    seeds: list[int]


@dataclass(frozen=True, eq=False)
class Scenes:
    """Training prompts with what rewards compare with.

    Args:
        table: file of the policy's prompt columns and SCENE_COLUMNS.
        policy: whose prompts they are.
        initial: its folder.
        config: the loop's section.
        seed: of the choice of prompts.
    """

    table: Path
    policy: Policy
    initial: Path
    config: GdpoConfig
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """Of the FLAME groups that are rewarded."""
        return self.policy.layout.names

    @cached_property
    def rows(self) -> Dataset:
        """The table."""
        return read_table(self.table)

    @cached_property
    def recorded(self) -> Dataset:
        """Of the table what rewards compare with: the prompts are large."""
        return self.rows.select_columns(["recorded", "listening"])

    @cached_property
    def listened(self) -> np.ndarray:
        """(rows,) bool: whether the actor listens in some action, so that there is a reward."""
        masks = (self.policy.of_actions(np.array(mask)) for mask in self.rows["listening"])
        return np.array([bool(mask.any()) for mask in masks])

    @cached_property
    def prompts(self) -> list[int]:
        """Rows with a reward, and as many without as the config asks, in which speaking is held."""
        rewarded = np.flatnonzero(self.listened)
        others = np.flatnonzero(~self.listened)
        share = self.config.unrewarded_share
        anchors = others[: round(len(rewarded) * share / (1 - share))]
        return np.concatenate([rewarded, anchors]).tolist()

    @cached_property
    def limits(self) -> Motion:
        """Lowest and highest value of every channel."""
        recorded = self.rows.select_columns(["recorded"])
        return motion_limits(self._motion(row["recorded"]) for row in recorded)

    def of_iteration(self, index: int) -> Batch:
        """Whom iteration `index` asks: a function of the seed alone, so that it can be repeated."""
        count = self.config.sync_every * self.config.batch_size
        places = batch_rows(index, count, len(self.prompts), seed=self.seed).tolist()
        asked = sorted(set(places)) if self.policy.seed_per_prompt else places
        order = list(range(len(places)))
        if self.policy.seed_per_prompt:
            order = [asked.index(place) for place in places]
        return Batch(
            rows=[self.prompts[place] for place in places],
            order=order,
            prompts=[self.policy.prompt_of(self.rows[self.prompts[place]]) for place in asked],
            seeds=self.policy.seeds(
                "iteration", self.seed, index, prompt_ids=[str(i) for i in asked]
            ),
        )

    def measured(self, batch: Batch, groups: RolloutGroups) -> PenaltyGroups:
        """`measure` of all reactions of an iteration."""
        return [
            [self.measure(row, reaction) for reaction in group]
            for row, group in zip(batch.rows, groups, strict=True)
        ]

    def measure(self, row: int, reaction: Reaction) -> Penalties:
        """How a reaction moves beside the recorded listener; missing where its sampler failed."""
        if reaction.failed:
            return missing_penalties(self.policy.layout)
        scene = self.recorded[row]
        return penalties(
            self.policy.to_motion(reaction),
            self._motion(scene["recorded"]),
            np.array(scene["listening"]),
            limits=self.limits,
        )

    def metrics(self, batch: Batch, measured: PenaltyGroups, rewards: Tensor) -> dict[str, float]:
        """`reward_metrics` of the prompts in which somebody listens."""
        seen = [place for place, row in enumerate(batch.rows) if self.listened[row]]
        if not seen:
            return {}
        return reward_metrics([measured[place] for place in seen], rewards[seen], self.names)

    def _motion(self, values: bytes) -> Motion:
        layout = self.policy.layout
        return Motion(from_bytes(values, -1, layout.dim).numpy(), layout)


def scenes_of(step: Phase, config: Rewarded, imitated: Imitated) -> Scenes:
    """The scenes of the training split; written where prompts were not made in advance.

    Raises:
        RunError: nobody listens, so nothing would be rewarded.
    """
    policy = imitated.policy
    if imitated.windows is not None:
        table = imitated.windows / "train.arrow"
    else:
        table = step.directory / "scenes.arrow"
        schema = pa.schema(dict(policy.prompt_columns) | SCENE_COLUMNS)
        write_table(table, scene_rows(imitated), schema)
    scenes = Scenes(table, policy, imitated.policy_path, config=config.gdpo, seed=config.seed)
    if not scenes.listened.any():
        raise RunError(
            f"nobody listens in {table}: GDPO rewards listening only, and there is no action of a "
            "listener during which the partner speaks and the actor does not"
        )
    gdpo = config.gdpo
    step.say(
        f"{gdpo.iterations} iterations of {gdpo.sync_every} steps: {gdpo.answered} prompts "
        f"({len(scenes.prompts)} in the corpus) x {gdpo.group_size} reactions"
    )
    return scenes


def scene_rows(imitated: Imitated) -> Iterator[dict[str, Any]]:
    """A row for every training clip: its prompt, and the listener in the policy's layout."""
    policy = imitated.policy
    for clip in imitated.corpus.clips("train"):
        window = next(windows(clip, 1, both=False))
        recorded = clip.listener.subset(policy.layout)
        scene = scene_row(window) | {"recorded": recorded.values.astype(np.float32).tobytes()}
        yield policy.prompt_row(policy.encode(clip)) | scene


def rewards_of(measured: PenaltyGroups, config: RewardConfig) -> Tensor:
    """(prompts, group_size, FLAME groups) float64, NaN where missing (supplement, section 1)."""
    values = [
        [list(group_rewards(sample, config).values()) for sample in samples] for samples in measured
    ]
    return torch.tensor(values, dtype=torch.float64)


def advantages_of(
    rewards: Tensor, groups: GroupWeightsConfig, names: Sequence[str], config: GdpoConfig
) -> Tensor:
    """A^j of Eq. 8-9, (prompts, group_size), over a whole iteration at once.

    Args:
        rewards: as `rewards_of` returns them, one for each of the FLAME groups.
        groups: lambda_i of Eq. 9.
        names: of the FLAME groups.
        config: which estimator.
    """
    weights = [getattr(groups, name) for name in names]
    estimate = decoupled_advantages if config.estimator == "gdpo" else grpo_advantages
    advantages = estimate(rewards, weights)
    if config.batch_norm:
        moments = advantage_moments(advantages, rewards)
        return normalise_advantages(advantages, rewards, moments)
    return advantages


def rollouts_of(batch: Batch, groups: RolloutGroups, advantages: Tensor) -> list[Rollouts]:
    """What learners replay of an iteration."""
    return [
        Rollouts(row, group, own)
        for row, group, own in zip(batch.rows, groups, advantages, strict=True)
    ]


def reward_metrics(
    measured: PenaltyGroups, rewards: Tensor, names: Sequence[str]
) -> dict[str, float]:
    """Means over samples; a mean of nothing is left out.

    `reward/GROUP`, `penalty/COMPONENT/GROUP`; `zero_std/GROUP`, the share of prompts in which a
    reward teaches nothing; `missing`, the share of rewards that are.
    """
    flat = rewards.flatten(0, 1)
    values = {f"reward/{name}": float(flat[:, i].nanmean()) for i, name in enumerate(names)}
    samples = [sample for group in measured for sample in group]
    for component in COMPONENTS:
        for name in names:
            penalty = torch.tensor([sample[component][name] for sample in samples])
            values[f"penalty/{component}/{name}"] = float(penalty.nanmean())
    silent = 1 - has_preference(rewards).double().mean(0)
    values |= {f"zero_std/{name}": float(share) for name, share in zip(names, silent, strict=True)}
    values["reward"] = float(flat.nanmean())
    values["missing"] = float(flat.isnan().double().mean())
    return {name: value for name, value in values.items() if np.isfinite(value)}
