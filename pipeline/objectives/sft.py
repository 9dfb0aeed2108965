"""Imitation by the VLA: L_SFT over recorded listeners (paper Eq. 7-9)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rapport.pipeline.objectives.objective import Forward, Loss, PolicyObjective
from rapport.pipeline.objectives.settings import SftConfig
from rapport.policies.tables import batch_rows, rank_share
from rapport.policies.vla.loss import sft_loss
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.sequence import (
    STREAMS,
    later,
    pose_before,
    seen_in,
    seen_of,
    without,
)
from rapport.policies.vla.training import prompt_of_row

TREMBLE = 1.0  # bins; of a face that does not move at all


class Draws(NamedTuple):
    """What is drawn for the rows of a step, all of them on every rank.

    Args:
        rows: (rows,) of the table.
        starts: (rows,) chunk of the clip with which a row's context begins.
        absent: stream -> (rows,) bool.
        forgotten: (rows, pose + actions) bool: what of the pose before the context, and which of
            the actions in it, are not seen by what follows.
    """

    rows: np.ndarray
    starts: np.ndarray
    absent: dict[str, np.ndarray]
    forgotten: np.ndarray


class Sft(PolicyObjective):
    """L_SFT over the examples in `table`.

    It is of SFT_SCHEMA; without windows IMITATION_SCHEMA will do. A row is a context that begins
    with some chunk of a clip, as a policy would begin it there.
    """

    config: SftConfig
    policy: VlaPolicy

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Whole contexts; before them, in the first `window_share` of the steps, short windows.

        Past actions predict most of a clip, so the policy can ignore the speaker (the copycat
        problem of imitation): some rows do not see them, and windows in which the face is far from
        rest are drawn more often (keyframes, Wen et al., ICML 2021). Whole contexts then tell how
        often it is. A batch of windows holds more rows, so that both hold about as many
        tokens.
        """
        sizes = self.policy.model.config
        count = min(sizes.context_chunks, sizes.chunks) * sizes.chunk_tokens
        batch_size = self.config.batch_size
        windows = step < self.config.window_share * self.config.steps
        if windows:
            whole = sizes.context_length
            count = min(self.config.window_steps * sizes.action_dims, count)
            short = sizes.head_length + sizes.observation_length + count
            batch_size *= max(1, whole // short)
        draws = self.draws(step, batch_size, count, lively=self.config.lively if windows else 0)
        share = slice(rank, None, world_size)
        rows = [self.rows[index] for index in rank_share(draws.rows, rank, world_size).tolist()]
        contexts = [
            self._context(row, int(start), count)
            for row, start in zip(rows, draws.starts[share], strict=True)
        ]
        batch = {name: torch.cat([row[name] for row in contexts]) for name in contexts[0]}
        actions = batch.pop("actions")
        absent = {name: torch.from_numpy(values[share]) for name, values in draws.absent.items()}
        seen = without(sizes, batch, absent)
        forgotten = torch.from_numpy(draws.forgotten[share])
        before, within = forgotten.tensor_split([len(sizes.pose_dims)], dim=1)
        seen["own"] = torch.where(before, sizes.blank_token_id, seen["own"])
        # Of whom nothing is known, that is told as for a clip without a past.
        seen["own"][before.all(dim=1)] = sizes.absent_token_id
        inputs = torch.where(within, sizes.blank_token_id, actions)
        return seen | {"actions": actions, "inputs": inputs}

    def draws(self, step: int, rows: int, count: int, lively: float = 0.0) -> Draws:
        """A function of seed and step.

        Args:
            step: of the optimiser.
            rows: of the whole batch.
            count: actions of a row.
            lively: how much more often contexts are drawn whose listener moves; 0 = every row
                comes once in an epoch.
        """
        sizes = self.policy.model.config
        rng = np.random.default_rng([self.seed, step])
        last = sizes.chunks - -(-count // sizes.chunk_tokens)
        starts = rng.integers(last + 1, size=rows)
        if lively:
            chances = self._moves[:, : last + 1].flatten() ** lively
            upto = np.cumsum(chances)
            places = np.searchsorted(upto, rng.random(rows) * upto[-1])
            drawn, starts = np.divmod(places, last + 1)
        else:
            drawn = batch_rows(step, rows, len(self.rows), seed=self.seed)
        absent = {name: rng.random(rows) < self.config.absent for name in STREAMS}
        kind = rng.random(rows)[:, None]
        every_other = rng.random((rows, len(sizes.pose_dims) + count)) < 0.5
        all_of_it = kind < self.config.forget
        forgotten = all_of_it | ((kind < 1.5 * self.config.forget) & every_other)
        return Draws(drawn, starts, absent, forgotten)

    @cached_property
    def _moves(self) -> np.ndarray:
        """How far the face is from rest in each chunk, (rows, chunks) bins."""
        return np.array(self.rows["moves"], np.float64) + TREMBLE

    def _context(self, row: Mapping[str, Any], start: int, count: int) -> dict[str, Tensor]:
        """The tensors of a row from chunk `start` on, (1, ...) each, and its `actions`."""
        sizes = self.policy.model.config
        seen = seen_of(sizes, [prompt_of_row(row, sizes)])
        actions = torch.tensor(row["actions"])[None]
        first = start * sizes.chunk_tokens
        if start:
            seen = later(seen, start, pose_before(sizes, actions[:, :first]))
        chunks = -(-count // sizes.chunk_tokens)
        lengths = {"heard": chunks, "said": chunks}
        for name in ("frames", "voice", "present"):
            lengths[name] = sizes.history + chunks
        for name, length in lengths.items():
            seen[name] = seen[name][:, :length]
        return seen | {"actions": actions[:, first : first + count]}

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """Cross-entropy by group of tokens, temporal coherence and identity."""
        logits = forward(seen_in(batch), batch["actions"], batch["inputs"])
        return sft_loss(
            logits,
            batch["actions"],
            self.policy.actions,
            lambda_exp=self.config.lambda_exp,
            lambda_pose=self.config.lambda_pose,
            lambda_reg=self.config.lambda_reg,
        )
