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
from rapport.pipeline.objectives.gdpo import Rollouts, recorded_of, rewarded_frames
from rapport.pipeline.objectives.settings import GdpoConfig
from rapport.pipeline.rundir import Phase, RunError
from rapport.pipeline.settings import Rewarded
from rapport.pipeline.steps.learning import Imitated
from rapport.policies.flow.training import from_bytes
from rapport.policies.motion import Motion
from rapport.policies.policy import Policy, Prompt, Reaction
from rapport.policies.tables import batch_rows, read_table, write_table
from rapport.rewards.advantage import (
    decoupled_advantages,
    grpo_advantages,
    has_preference,
    reward_scales,
)
from rapport.rewards.dynamics import Recorded, group_rewards, motion_limits
from rapport.rewards.settings import GroupWeightsConfig, RewardConfig

RolloutGroups = Sequence[Sequence[Reaction]]  # one for each prompt of an iteration


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
        """(rows,) bool: whether the actor listens for long enough, so that there is a reward."""
        scenes = ({"listening": mask} for mask in self.rows["listening"])
        masks = (self.policy.of_actions(rewarded_frames(scene)) for scene in scenes)
        return np.array([bool((mask >= 0.5).any()) for mask in masks])

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

    def rewards(self, batch: Batch, groups: RolloutGroups, config: RewardConfig) -> Tensor:
        """Of all reactions of an iteration, see `group_rewards`.

        (prompts, group_size, frames, components, FLAME groups), NaN where missing.
        """
        frames = self._frames([reaction for group in groups for reaction in group])
        samples = frames.split([len(group) for group in groups])
        return torch.stack(
            [
                group_rewards(own, self.recording(row), config)
                for row, own in zip(batch.rows, samples, strict=True)
            ]
        )

    def recording(self, row: int) -> Recorded:
        """What the reactions to the prompt in a row are compared with."""
        return recorded_of(self.recorded[row], self.policy.layout, self.limits)

    def metrics(self, batch: Batch, rewards: Tensor, config: RewardConfig) -> dict[str, float]:
        """`reward_metrics` of the prompts in which somebody listens."""
        seen = [place for place, row in enumerate(batch.rows) if self.listened[row]]
        if not seen:
            return {}
        return reward_metrics(rewards[seen], config, self.names)

    def _frames(self, reactions: Sequence[Reaction]) -> Tensor:
        """(reactions, frames, dim); NaN where a sampler failed."""
        sound = [reaction for reaction in reactions if not reaction.failed]
        motions = iter(self.policy.to_motions(sound))
        missing = np.full(self.frame_shape, np.nan)
        values = [missing if reaction.failed else next(motions).values for reaction in reactions]
        return torch.from_numpy(np.stack(values)).double()

    @cached_property
    def frame_shape(self) -> tuple[int, int]:
        """Of a recorded listener: frames, channels."""
        values: tuple[int, int] = self._motion(self.recorded[0]["recorded"]).values.shape
        return values

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
    if not reward_weights(config.reward, config.groups, scenes.names).any():
        raise RunError(
            f"groups: this motion has {', '.join(scenes.names)}, and the weights of all of them "
            "are 0, so nothing is rewarded"
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


def advantages_of(
    rewards: Tensor,
    config: Rewarded,
    names: Sequence[str],
) -> Tensor:
    """A^j of Eq. 8-9, (prompts, group_size, frames): every component of every group for itself.

    Args:
        rewards: (prompts, group_size, frames, components, FLAME groups).
        config: which estimator, the weights of components, and lambda_i of the groups.
        names: of the FLAME groups.
    """
    estimate = grpo_advantages if config.gdpo.estimator == "grpo" else decoupled_advantages
    weights = reward_weights(config.reward, config.groups, names)
    return estimate(rewards.flatten(3), weights, config.gdpo.scale)


def reward_weights(
    reward: RewardConfig, groups: GroupWeightsConfig, names: Sequence[str]
) -> Tensor:
    """(components x FLAME groups,) the weight of each reward."""
    components = torch.tensor(list(reward.weights.values()), dtype=torch.float64)
    lambdas = torch.tensor([getattr(groups, name) for name in names], dtype=torch.float64)
    return torch.outer(components, lambdas).flatten()


def rollouts_of(
    batch: Batch, groups: RolloutGroups, rewards: Tensor, config: Rewarded, names: Sequence[str]
) -> list[Rollouts]:
    """What learners replay of an iteration."""
    advantages = advantages_of(rewards, config, names)
    scales = reward_scales(rewards.flatten(3), config.gdpo.scale)
    return [
        Rollouts(row, group, own, scale)
        for row, group, own, scale in zip(batch.rows, groups, advantages, scales, strict=True)
    ]


def reward_metrics(rewards: Tensor, config: RewardConfig, names: Sequence[str]) -> dict[str, float]:
    """Means over samples and frames; a mean of nothing is left out.

    `reward/COMPONENT/GROUP`, and `reward/GROUP`, their weighted sum; `zero_std/GROUP`, the share of
    prompts and components in which a reward teaches nothing; `failed`, the share of samples
    without any.
    """
    components = list(config.weights)
    weights = list(config.weights.values())
    means = rewards.flatten(0, 2).nanmean(0)
    values = {
        f"reward/{component}/{name}": float(means[i, j])
        for i, component in enumerate(components)
        for j, name in enumerate(names)
    }
    whole = torch.tensor(weights, dtype=means.dtype) @ means
    values |= {f"reward/{name}": float(value) for name, value in zip(names, whole, strict=True)}
    silent = 1 - has_preference(rewards.flatten(3)).double().mean(0)
    shares = torch.unflatten(silent, 0, (len(components), -1)).mean(0)
    values |= {f"zero_std/{name}": float(share) for name, share in zip(names, shares, strict=True)}
    values["failed"] = float(rewards.isnan().flatten(2).all(2).double().mean())
    return {name: value for name, value in values.items() if np.isfinite(value)}
