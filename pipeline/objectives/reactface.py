"""Imitation by ReactFace: it learns to listen, and then to react, free running (Eq. 18)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor

from rapport.pipeline.objectives.objective import Forward, Loss, PolicyObjective
from rapport.pipeline.objectives.settings import ReactFaceTraining
from rapport.policies.flow.training import from_bytes
from rapport.policies.reactface import loss
from rapport.policies.reactface.model import FACE, Read
from rapport.policies.reactface.policy import ReactFacePolicy, scene_of
from rapport.policies.tables import generator_of

# Beside the prompt: the listener's frames as float32 bytes, the rows whose listeners fit, and, of
# who is seen in pictures, how their face moves.
EXAMPLE_COLUMNS = {"listener": pa.binary(), "fitting": pa.list_(pa.int32()), "face": pa.binary()}


class _Imitating(PolicyObjective):
    """Of speakers and the listeners that fit them, in `table` (prompt columns, EXAMPLE_COLUMNS)."""

    config: ReactFaceTraining
    policy: ReactFacePolicy

    @cached_property
    def listeners(self) -> Dataset:
        """Of the table what labels are made of: prompts are large."""
        return self.rows.select_columns(["listener"])

    def _clips(
        self, rows: Sequence[Mapping[str, Any]], lost: Tensor, order: Tensor
    ) -> dict[str, Tensor]:
        """Speakers, some without a stream, of whose face it is known how it moves, and `_labels`.

        Args:
            rows: of the table.
            lost: (rows, 2) in [0, 1), which streams are lost.
            order: (rows, rows of the table) in [0, 1), which labels come first.
        """
        scene = self.policy.collate(rows)
        labels, there = self._labels(rows, order)
        kept = _kept(lost, self.config.absent)
        present = scene["present"] & kept.to(scene["present"].device)
        told = present[:, FACE]
        if self.policy.model.sizes.sees == "frames":
            scene["motion"], moves = self.policy.padded(rows, "face", self.policy.layout.dim)
            told = told & moves
        return scene | {"present": present, "told": told, "labels": labels, "there": there}

    def _labels(self, rows: Sequence[Mapping[str, Any]], order: Tensor) -> tuple[Tensor, Tensor]:
        """(share, labels, frames, dim), and (share, labels) bool which of them there are.

        With `recorded` the clip's own alone; else up to `neighbours` of those that fit, the first
        in an order that is drawn anew in every step.
        """
        config = self.config
        dim = self.policy.layout.dim
        chosen = []
        for row, places in zip(rows, order, strict=True):
            if config.assign == "recorded":
                chosen.append([row["listener"]])
                continue
            fitting = sorted(row["fitting"], key=lambda index: float(places[index]))
            found = self.listeners[fitting[: config.neighbours]]
            chosen.append(found["listener"])
        frames = rows[0]["frames"]
        count = max(map(len, chosen))
        labels = torch.zeros(len(rows), count, frames, dim)
        there = torch.zeros(len(rows), count, dtype=torch.bool)
        for i, listeners in enumerate(chosen):
            for k, listener in enumerate(listeners):
                labels[i, k] = from_bytes(listener, frames, dim)
                there[i, k] = True
        return labels, there

    def _speaker_loss(self, read: Read, batch: Mapping[str, Any]) -> Tensor:
        """L_s (Eq. 19)."""
        frames = batch["labels"].shape[2]
        speaker = self.policy.model.speaker(batch["motion"][:, :frames])
        told = batch["told"]
        return loss.speaker_loss(read.motion[:, :frames], speaker, told, self.policy.layout)


class Expecting(_Imitating):
    """What comes first: to encode a speaker, and what to expect of a listener's face."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.config.listening

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Speakers, some without a stream, and all that their listeners may do.

        Drawn for the whole batch, so that nothing depends on how it is shared.
        """
        count = self.config.heard
        generator = generator_of(self.seed, step)
        share = slice(rank, None, world_size)
        rows = [self.rows[index] for index in self.share(step, rank, world_size, count)]
        lost = torch.rand(count, 2, generator=generator)[share]
        order = torch.rand(count, len(self.rows), generator=generator)[share]
        return self._clips(rows, lost, order)

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """Squares, and L_s."""
        model = self.policy.model
        read = forward("read", scene_of(batch))
        labels, there = model.listener(batch["labels"]), batch["there"][..., None, None]
        average = torch.where(there, labels, 0.0).sum(1) / there.sum(1)
        answers = average[:, model.sizes.ahead * model.sizes.window :]  # what is not shown yet
        losses = {
            "expect": loss.path_loss(read.expected, answers, self.policy.layout),
            "speaker": self._speaker_loss(read, batch),
        }
        total = losses["expect"] + self.config.speaker * losses["speaker"]
        return total, {name: value.detach() for name, value in losses.items()}


class Reacting(_Imitating):
    """Algorithm 1 over the clips.

    All M samples bear all losses, where the paper's second and third bear diversity alone: the
    same in expectation, with less noise.
    """

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Speakers, some without a stream, the reactions to be near to, and noise.

        Drawn for the whole batch, so that nothing depends on how it is shared.
        """
        config = self.config
        sizes = self.policy.model.sizes
        generator = generator_of(self.seed, step)
        rows = [self.rows[index] for index in self.share(step, rank, world_size)]
        share = slice(rank, None, world_size)
        drawn = (config.batch_size, config.samples)
        windows = max(self.policy.windows(row["frames"]) for row in rows)
        noise = torch.randn(*drawn, windows, sizes.latent, generator=generator)
        lost = torch.rand(config.batch_size, 2, generator=generator)[share]
        picked = torch.rand(drawn, generator=generator)
        order = torch.rand(config.batch_size, len(self.rows), generator=generator)[share]
        drawn_anew = {"noise": noise[share], "picked": picked[share]}
        return self._clips(rows, lost, order) | drawn_anew

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """Eq. 18; without L_s where the speaker is encoded as `Expecting` taught."""
        config = self.config
        model = self.policy.model
        layout = self.policy.layout
        made, read = forward("react", scene_of(batch), batch["noise"])
        labels = model.listener(batch["labels"])
        frames = labels.shape[2]
        samples = torch.unflatten(made.frames[:, :frames], 0, (-1, config.samples))
        energy = config.spread == "energy"
        apart = (loss.energy_distances if energy else loss.distances)(samples, labels, layout)
        losses = {
            "appropriate": loss.appropriate_loss(
                apart, batch["there"], config.assign, batch["picked"]
            ).mean(),
            "kl": loss.kl_loss(made.mean, made.log_std),
            "smooth": loss.smooth_loss(samples, layout),
            "diversity": loss.spread_loss(samples, layout)
            if energy
            else loss.diversity_loss(samples, config.diversity_scale, layout),
        }
        weights = {
            "appropriate": 1.0,
            "kl": config.kl,
            "smooth": config.smooth,
            "diversity": 1.0 if energy else config.diversity,
        }
        if not config.listening:
            losses["speaker"] = self._speaker_loss(read, batch)
            weights["speaker"] = config.speaker
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return total, {name: value.detach() for name, value in losses.items()}


def _kept(drawn: Tensor, absent: float) -> Tensor:
    """Which streams (clips, 2) stay, of numbers in [0, 1): each is lost by itself, never both."""
    kept = drawn >= absent
    both_lost = ~kept.any(1, keepdim=True)
    return kept | (both_lost & (drawn == drawn.amax(1, keepdim=True)))
