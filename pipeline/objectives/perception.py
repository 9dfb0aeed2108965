"""Encoders learn to tell what the speaker's face does from pictures and voice.

It stands for what published DINOv2 and SigLIP bring with them: towers of random weights that learn
only by imitation end in a constant, as words are easier to learn from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rapport.pipeline.objectives.objective import Forward, Loss, TableObjective
from rapport.pipeline.objectives.settings import PerceptionTraining
from rapport.policies.vla.encoders import FrameEncoder, VoiceEncoder
from rapport.policies.vla.policy import VlaPolicy
from rapport.policies.vla.prompt import picture_shape, voice_shape

STILL = 1e-4  # radians, or shares of an expression: nothing to tell


class Told(nn.Module):
    """Encoders, and what a linear layer tells of their tokens.

    Args:
        vision: of pictures.
        voice: of sound; None where the policy hears none.
        channels: of the face.
    """

    def __init__(self, vision: FrameEncoder, voice: VoiceEncoder | None, channels: int) -> None:
        super().__init__()
        self.vision = vision
        self.voice = voice
        self.face = nn.Linear(vision.projector.fc3.out_features, channels)
        self.manner: nn.Linear | None = None
        if voice is not None:
            self.manner = nn.Linear(voice.projector.out_features, 2 * channels)

    def forward(self, frames: Tensor, voice: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the face does in each frame and in each part of a chunk.

        Args:
            frames: (n, frames, size, size, 3) uint8.
            voice: (n, time, bands) uint8.

        Returns:
            (n, frames, channels), and its mean and spread, (n, voice_tokens, 2 * channels).
        """
        tokens = self.vision.features(frames.flatten(0, 1)).mean(dim=1)
        face = self.face(tokens).unflatten(0, frames.shape[:2])
        if self.voice is None or self.manner is None:
            return face, None
        return face, self.manner(self.voice.features(voice))


class Perception(TableObjective):
    """Mean squared errors of standardised channels over the chunks in `table`.

    Args:
        initial: folder of the policy whose encoders learn.
        table: of PERCEPTION_SCHEMA.
        groups: how many channels each group has; those of a group have one unit.
        config: how they are trained.
        seed: of batches, and of the linear layers.
    """

    config: PerceptionTraining

    def __init__(
        self,
        initial: Path,
        table: Path,
        groups: Sequence[int],
        config: PerceptionTraining,
        seed: int,
    ) -> None:
        super().__init__(table, config, seed)
        self.initial = str(initial)
        self.groups = tuple(groups)

    @cached_property
    def policy(self) -> VlaPolicy:
        """The policy whose encoders learn."""
        return VlaPolicy.load(Path(self.initial))

    @cached_property
    def scales(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean of face and manner over the table, and the unit of each channel."""
        config = self.policy.model.config
        face = np.array(self.rows["face"], np.float64).reshape(len(self.rows), config.frames, -1)
        shown = [frames is not None for frames in self.rows["frames"]]
        manner = np.array(self.rows["manner"], np.float64)
        manner = manner.reshape(len(self.rows), config.voice_tokens, -1)
        return *_scale(face[shown], self.groups), *_scale(manner, 2 * self.groups)

    @cached_property
    def shares(self) -> tuple[float, float]:
        """Of the table's rows: those with pictures, and those with a voice; 1 where none has."""
        there = [[row is not None for row in self.rows[name]] for name in ("frames", "voice")]
        pictures, voice = (float(np.mean(rows)) or 1.0 for rows in there)
        return pictures, voice

    @cached_property
    def told(self) -> Told:
        """What is trained; the layers behind the encoders belong to imitation."""
        model = self.policy.model
        channels = self.scales[0].shape[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            told = Told(model.vision, model.voice, channels)
        for encoder in (told.vision, told.voice):
            if encoder is not None:
                encoder.adapter.requires_grad_(False)
        return told.train()

    def module(self) -> nn.Module:
        """What is trained."""
        return self.told

    def checkpoint_gradients(self) -> None:
        """Encoders are small: nothing is computed twice."""

    def batch(self, step: int, rank: int, world_size: int) -> dict[str, Any]:
        """Pictures and voice of chunks, and what the face did.

        What is absent is zeros and has no weight; what is there has more, the less the table has
        of it.
        """
        config = self.policy.model.config
        rows = [self.rows[index] for index in self.share(step, rank, world_size)]
        face_mean, face_scale, manner_mean, manner_scale = self.scales
        shown, spoken = self.shares
        face = torch.tensor([row["face"] for row in rows]).reshape(len(rows), config.frames, -1)
        manner = torch.tensor([row["manner"] for row in rows])
        manner = manner.reshape(len(rows), config.voice_tokens, -1)
        return {
            "frames": _bytes([row["frames"] for row in rows], picture_shape(config)),
            "voice": _bytes([row["voice"] for row in rows], voice_shape(config)),
            "seen": torch.tensor([row["frames"] is not None for row in rows]) / shown,
            "heard": torch.tensor([row["voice"] is not None for row in rows]) / spoken,
            "face": (face - face_mean) / face_scale,
            "manner": (manner - manner_mean) / manner_scale,
        }

    def loss(self, forward: Forward, batch: Mapping[str, Any]) -> Loss:
        """Errors of pictures and voice, each over the chunks that have them."""
        face, manner = forward(batch["frames"], batch["voice"])
        seen = _error(face, batch["face"], batch["seen"])
        metrics = {"pictures": seen.detach()}
        loss = seen
        if manner is not None:
            heard = _error(manner, batch["manner"], batch["heard"])
            metrics["voice"] = heard.detach()
            loss = loss + heard
        return loss, metrics

    def save(self, state: Mapping[str, Tensor], directory: Path) -> dict[str, float]:
        """Write the policy with its trained encoders; the linear layers are not kept."""
        model = self.policy.model
        kept = {n: v for n, v in state.items() if n.startswith(("vision.", "voice."))}
        weights = model.state_dict() | kept
        model.config.perception_trained = True
        self.policy.save(directory, {f"policy.{name}": value for name, value in weights.items()})
        return {}


def _scale(values: np.ndarray, groups: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean of each channel over rows and places, and the unit of its group.

    The unit is the deviation of the channel that moves most; infinite where none moves.
    """
    flat = values.reshape(-1, values.shape[-1])
    if not len(flat):
        return torch.zeros(values.shape[-1]), torch.ones(values.shape[-1])
    deviations = np.split(flat.std(axis=0), np.cumsum(groups)[:-1])
    units = [
        np.full(len(group), group.max() if group.max() > STILL else np.inf) for group in deviations
    ]
    return (
        torch.from_numpy(flat.mean(axis=0)).float(),
        torch.from_numpy(np.concatenate(units)).float(),
    )


def _error(found: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Mean over rows of their squared errors times their weights, so that batches can be cut."""
    errors = F.mse_loss(found, wanted.to(found), reduction="none").flatten(1).mean(dim=1)
    return (errors * weight).mean()


def _bytes(values: list[bytes | None], shape: tuple[int, ...]) -> Tensor:
    arrays = [
        np.zeros(shape, np.uint8) if v is None else np.frombuffer(v, np.uint8).reshape(shape)
        for v in values
    ]
    return torch.from_numpy(np.stack(arrays))
