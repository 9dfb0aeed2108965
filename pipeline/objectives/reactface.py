"""Imitation by ReactFace: free running over whole clips, by its five losses (Eq. 18)."""

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
from rapport.policies.reactface.model import FACE
from rapport.policies.reactface.policy import ReactFacePolicy, scene_of
from rapport.policies.tables import generator_of

# Beside the prompt: the listener's frames as float32 bytes, the rows whose listeners fit, and, of
# who is seen in pictures, how their face moves.
EXAMPLE_COLUMNS = {"listener": pa.binary(), "fitting": pa.list_(pa.int32()), "face": pa.binary()}


class Reacting(PolicyObjective):
    """Algorithm 1 over the clips in `table` (prompt columns and EXAMPLE_COLUMNS).

    All M samples bear all losses, where the paper's second and third bear diversity alone: the
    same in expectation, with less noise.
    """

    config: ReactFaceTraining
    policy: ReactFacePolicy

    @cached_property
    def listeners(self) -> Dataset:
        """Of the table what labels are made of: prompts are large."""
        return self.rows.select_columns(["listener"])

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Speakers, some without a stream, the reactions to be near to, and noise.

        Drawn for the whole batch, so that nothing depends on how it is shared. Noise is of the
        first clips, which are answered.
        """
        config = self.config
        sizes = self.policy.model.sizes
        generator = generator_of(self.seed, step)
        count = config.batch_size + config.overheard
        rows = [self.rows[index] for index in self.share(step, rank, world_size, count)]
        share = slice(rank, None, world_size)
        drawn = (config.batch_size, config.samples)
        scene = self.policy.collate(rows)
        windows = scene["motion"].shape[1] // sizes.window
        noise = torch.randn(*drawn, windows, sizes.latent, generator=generator)
        kept = _kept(torch.rand(count, 2, generator=generator), config.absent)
        picked = torch.rand(drawn, generator=generator)
        order = torch.rand(count, len(self.rows), generator=generator)[share]
        labels, there = self._labels(rows, order)
        present = scene["present"] & kept[share].to(scene["present"].device)
        if sizes.sees == "frames":
            scene["motion"], told = self.policy.padded(rows, "face", self.policy.layout.dim)
            told &= present[:, FACE]
        else:
            told = present[:, FACE]
        return scene | {
            "present": present,
            "told": told,
            "noise": noise[share],
            "picked": picked[share],
            "labels": labels,
            "there": there,
        }

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

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """Eq. 18."""
        config = self.config
        model = self.policy.model
        layout = self.policy.layout
        scene = scene_of(batch)
        made, read = forward("react", scene, batch["noise"])
        labels = model.listener(batch["labels"])
        frames = labels.shape[2]
        samples = torch.unflatten(made.frames[:, :frames], 0, (-1, config.samples))
        answered = len(samples)
        energy = config.spread == "energy"
        apart = (loss.energy_distances if energy else loss.distances)(
            samples, labels[:answered], layout
        )
        speaker = model.speaker(scene.motion[:, :frames])
        sizes = model.sizes
        there = batch["there"][..., None, None]
        average = torch.where(there, labels, 0.0).sum(1) / there.sum(1)
        answers = average[:, sizes.ahead * sizes.window :]  # nobody expects what is shown already
        losses = {
            "appropriate": loss.appropriate_loss(
                apart, batch["there"][:answered], config.assign, batch["picked"]
            ).mean(),
            "expect": loss.path_loss(read.expected, answers, layout),
            "speaker": loss.speaker_loss(read.motion[:, :frames], speaker, batch["told"], layout),
            "kl": loss.kl_loss(made.mean, made.log_std),
            "smooth": loss.smooth_loss(samples, layout),
            "diversity": loss.spread_loss(samples, layout)
            if energy
            else loss.diversity_loss(samples, config.diversity_scale, layout),
        }
        weights = {
            "appropriate": 1.0,
            "expect": config.expect,
            "speaker": config.speaker,
            "kl": config.kl,
            "smooth": config.smooth,
            "diversity": 1.0 if energy else config.diversity,
        }
        total = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return total, {name: value.detach() for name, value in losses.items()}


def _kept(drawn: Tensor, absent: float) -> Tensor:
    """Which streams (clips, 2) stay, of numbers in [0, 1): each is lost by itself, never both."""
    kept = drawn >= absent
    both_lost = ~kept.any(1, keepdim=True)
    return kept | (both_lost & (drawn == drawn.amax(1, keepdim=True)))
