"""ReactFace as a `Policy`: an action is z* of a window, whose distribution is a Gaussian.

Its face depends on the speaker as well as on z*. So that a reaction tells by itself how the face
moves, and what the next window goes on from, a row of its actions holds the frames of the window
behind its z*. Only z* has a probability: aligning changes how it is distributed, given what was
heard and done, and never what is made of it. So the CIE alone learns; encoders, decoder and SLBS
stay as imitation left them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.utils.rnn import pad_sequence

from rapport.files import atomic
from rapport.policies.clip import AUDIO_RATE, Clip
from rapport.policies.flow.encoders import LogMel
from rapport.policies.flow.sampling import window_noise
from rapport.policies.flow.training import from_bytes, to_bytes
from rapport.policies.motion import Layout, Motion
from rapport.policies.pictures import evenly_taken, newest, resized
from rapport.policies.policy import Forward, Likelihood, Policy, Reaction, Row, write_kind
from rapport.policies.reactface import checkpoint
from rapport.policies.reactface.config import ReactFaceSizes, reactface_config, streams_of
from rapport.policies.reactface.model import ReactFace, Scene, initialised

if TYPE_CHECKING:
    from rapport.policies.reactface.live import LiveReactFace

BATCH = 32  # prompts answered at once
GPU_BATCH = 256
SCENE = tuple(Scene.__dataclass_fields__)
# Parts that encode a speaker and say what to expect of a listener.
LISTENS = ("sight", "see", "hear", "align", "speaker_head", "expectation")


@dataclass(frozen=True, eq=False)
class ReactFacePrompt:
    """What is seen and heard of a clip.

    Args:
        prompt_id: of the clip.
        frames: of it.
        motion: (frames, dim) of the speaker as float32 bytes; None = absent, or not seen.
        voice: (frames, audio_dim) log-mel bands of their voice, likewise.
        pictures: (n, pixels, pixels, 3) uint8 bytes, evenly spaced; None = absent, or not seen.
    """

    prompt_id: str
    frames: int
    motion: bytes | None
    voice: bytes | None
    pictures: bytes | None = None


class ReactFacePolicy(Policy):
    """ReactFace, with its own past as its only memory of what it did.

    Args:
        model: its networks.
    """

    kind = "reactface"
    reads = streams_of("motion")  # of one that sees pictures, those
    supervised = "ReactFace"
    aligned = {"dpo": "ReactFace + DPO", "gdpo": "ReactFace + GDPO"}
    prompt_columns = {
        "prompt_id": pa.string(),
        "frames": pa.int32(),
        "motion": pa.binary(),
        "voice": pa.binary(),
        "pictures": pa.binary(),
    }
    action_type = pa.list_(pa.list_(pa.float32()))
    tells_recorded = False

    def __init__(self, model: ReactFace) -> None:
        self.model = model
        self.layout = model.sizes.layout
        self.audio = LogMel()
        self.reads = streams_of(model.sizes.sees)

    # -- Reacting --

    def encode(self, clip: Clip) -> ReactFacePrompt:
        """The speaker's motion or pictures of them, and the bands of their voice."""
        frames = len(clip.listener)
        sizes = self.model.sizes
        motion = voice = pictures = None
        if sizes.sees == "frames" and clip.speaker_frames is not None and len(clip.speaker_frames):
            pictures = resized(clip.speaker_frames, sizes.pixels).tobytes()
        if sizes.sees == "motion":
            motion = self.motion_of(clip.speaker, frames)
        if clip.speaker_audio is not None:
            samples = round(frames * AUDIO_RATE / self.layout.fps)
            sound = clip.speaker_audio[:samples]
            voice = to_bytes(self.audio(sound, frames, self.layout.fps))
        return ReactFacePrompt(clip.clip_id, frames, motion, voice, pictures)

    def motion_of(self, speaker: Motion | None, frames: int) -> bytes | None:
        """The first frames of a speaker, (frames, dim) as float32 bytes; None = absent."""
        if speaker is None:
            return None
        return to_bytes(speaker.window(0, frames).subset(self.layout).values)

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[ReactFacePrompt], samples: int, seeds: Sequence[int]
    ) -> list[list[Reaction]]:
        """Free running; noise of a window is a function of seed, sample and number."""
        self.model.eval()
        groups: list[list[Reaction]] = []
        size = GPU_BATCH if self._device.type == "cuda" else BATCH
        for first in range(0, len(prompts), size):
            batch = slice(first, first + size)
            groups += self._sampled(prompts[batch], samples, seeds[batch])
        return groups

    def _sampled(
        self, prompts: Sequence[ReactFacePrompt], samples: int, seeds: Sequence[int]
    ) -> list[list[Reaction]]:
        sizes = self.model.sizes
        scene = scene_of(self.collate([vars(prompt) for prompt in prompts]))
        windows = scene.motion.shape[1] // sizes.window
        noise = window_noise(seeds, samples, windows, sizes.latent).to(self._device)
        made, _ = self.model.react(scene, noise, heed=sizes.heed)
        frames = self.model.listener.back(made.frames)
        log_probs = log_density(made.drawn, torch.stack([made.mean, made.log_std], dim=-2))
        rows = zip(made.drawn.cpu().numpy(), frames.cpu().numpy(), log_probs.cpu(), strict=True)
        groups = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            count = self.windows(prompt.frames)
            group = []
            for k in range(samples):
                drawn, values, nats = next(rows)
                group.append(
                    Reaction(
                        prompt.prompt_id,
                        k,
                        self._actions(drawn[:count], values[: prompt.frames]),
                        log_probs=nats[:count].numpy(),
                        seed=seed,
                        failed=not np.isfinite(values).all(),
                    )
                )
            groups.append(group)
        return groups

    def windows(self, frames: int) -> int:
        """Windows that so many frames take; what the last is too long by, is left out."""
        return -(-frames // self.model.sizes.window)

    def _actions(self, drawn: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """(windows, latent + window x dim) of z* and frames; NaN where a clip has ended."""
        whole = np.full((len(drawn) * self.model.sizes.window, self.layout.dim), np.nan, np.float32)
        whole[: len(frames)] = frames
        return np.concatenate([drawn, whole.reshape(len(drawn), -1)], axis=1)

    def to_motion(self, reaction: Reaction) -> Motion:
        """The frames that its actions hold."""
        actions = np.asarray(reaction.actions, np.float32)
        frames = actions[:, self.model.sizes.latent :].reshape(-1, self.layout.dim)
        ended = np.isnan(frames).all(axis=1)
        return Motion(frames[~ended], self.layout)

    def recorded(self, clip: Clip) -> Reaction:
        """There is none in its own terms.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a recorded listener was not drawn from ReactFace: it has no z*, and no probability. "
            "Leave it out, as with dpo.contrast_of=sampled"
        )

    def live(self) -> LiveReactFace:
        """See `rapport.policies.reactface.live`."""
        from rapport.policies.reactface.live import LiveReactFace  # which imports this module

        return LiveReactFace(self)

    # -- Learning --

    def module(self) -> nn.Module:
        """All of it; its forward pass is that of `ReactFace`."""
        return self.model

    def prepare_training(self, config: Any, part: str = "all") -> None:
        """Of "listening" what encodes a speaker and expects learns, of "reacting" the rest."""
        super().prepare_training(config, part)
        if part == "all":
            return
        if part not in ("listening", "reacting"):
            raise ValueError(f"ReactFace has no part {part!r}: all, listening, reacting")
        for name, weight in self.model.named_parameters():
            listens = name.partition(".")[0] in LISTENS
            weight.requires_grad_(listens == (part == "listening"))

    def prompt_row(self, prompt: ReactFacePrompt) -> dict[str, Any]:
        """Its fields are columns."""
        return dict(vars(prompt))

    def prompt_of(self, row: Row) -> ReactFacePrompt:
        """The prompt of a row."""
        return ReactFacePrompt(*(row[name] for name in self.prompt_columns))

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The fields of `Scene`: whole windows, as many as the longest takes.

        Zeros stand where there is nothing, to be masked, and after the end of a clip, where nobody
        knows of them but frames that are left out.
        """
        sizes, fps = self.model.sizes, self.layout.fps
        motion, moves = self.padded(rows, "motion", self.layout.dim)
        voice, heard = self.padded(rows, "voice", sizes.audio_dim)
        batch = {"motion": motion, "voice": voice}
        if sizes.sees == "motion":
            return batch | {"present": torch.stack([moves, heard], dim=1)}
        size = (sizes.pixels, sizes.pixels, 3)
        shown = []
        for row in rows:
            pictures = np.frombuffer(row["pictures"] or b"", np.uint8).reshape(-1, *size)
            shown.append((pictures, evenly_taken(len(pictures), row["frames"] / fps)))
        there = torch.tensor([len(pictures) > 0 for pictures, _ in shown]).to(self._device)
        looked_at = seen(shown, motion.shape[1], fps)
        batch |= {name: values.to(self._device) for name, values in looked_at.items()}
        return batch | {"present": torch.stack([there, heard], dim=1)}

    def padded(self, rows: Sequence[Row], column: str, dim: int) -> tuple[Tensor, Tensor]:
        """A column of float32 bytes, (rows, frames, dim), and where there is one, (rows,) bool.

        Frames are those of whole windows, as many as the longest row takes.
        """
        frames = max(self.windows(row["frames"]) for row in rows) * self.model.sizes.window
        whole = torch.zeros(len(rows), frames, dim)
        for place, row in zip(whole, rows, strict=True):
            if row[column] is not None:
                place[: row["frames"]] = from_bytes(row[column], -1, dim)
        there = torch.tensor([row[column] is not None for row in rows])
        return whole.to(self._device), there.to(self._device)

    def action_log_probs(self, forward: Forward, batch: Mapping[str, Tensor]) -> Tensor:
        """Log N(z*; mu, sigma | own past) of each window, (prompts, reactions, windows)."""
        return log_density(self._drawn(batch), self._density(forward, batch))

    def likelihood(self, forward: Forward, batch: Mapping[str, Tensor]) -> Likelihood:
        """The same of one prompt, (samples, windows); the density is mu and log sigma."""
        density = self._density(forward, batch)
        return Likelihood(log_density(self._drawn(batch), density)[0], density[0])

    def kl(self, policy: Likelihood, reference: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """In closed form, window by window."""
        return kl_divergence(_normal(policy.density), _normal(reference)).sum(-1)

    def _density(self, forward: Forward, batch: Mapping[str, Tensor]) -> Tensor:
        sizes = self.model.sizes
        done = batch["actions"][..., sizes.latent :]
        frames = torch.unflatten(done, -1, (sizes.window, -1))
        density: Tensor = forward("density", scene_of(batch), frames)
        return density

    def _drawn(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["actions"][..., : self.model.sizes.latent]

    def of_actions(self, frames: np.ndarray) -> Tensor:
        """(..., windows): means over the frames of each window."""
        window = self.model.sizes.window
        values = torch.as_tensor(frames, dtype=torch.float64)
        count = self.windows(values.shape[-1])
        means = [values[..., i * window : (i + 1) * window].mean(-1) for i in range(count)]
        return torch.stack(means, dim=-1)

    @property
    def _device(self) -> torch.device:
        return self.model.head.weight.device

    # -- Files --

    @classmethod
    def untrained(
        cls, layout: Layout, clips: Iterable[Clip], seed: int, sizes: ReactFaceSizes | None = None
    ) -> Self:
        """Random weights, and the statistics of what clips show and say.

        Args:
            layout: of the motion.
            clips: of training.
            seed: of the weights.
            sizes: None = tiny.
        """
        sizes = sizes or reactface_config("tiny", layout, LogMel().dim)
        policy = cls(initialised(sizes, seed))
        listeners, speakers, voices = [], [], []
        for clip in clips:
            listeners.append(torch.from_numpy(clip.listener.subset(layout).values))
            prompt = policy.encode(clip)
            if clip.speaker is not None:
                speakers.append(torch.from_numpy(clip.speaker.subset(layout).values))
            if prompt.voice is not None:
                voices.append(from_bytes(prompt.voice, -1, sizes.audio_dim))
        policy.model.listener.fit(listeners)
        policy.model.axes.fit(map(policy.model.listener, listeners))
        policy.model.speaker.fit(speakers)
        policy.model.sound.fit(voices)
        return policy

    def save(self, path: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """A folder with sizes and weights."""
        with atomic(path) as partial:
            partial.mkdir()
            checkpoint.write(self.model.sizes, self.weights(state), partial)
            write_kind(partial, self.kind)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The policy in a folder."""
        return cls(checkpoint.read(Path(path)))


def scene_of(batch: Mapping[str, Tensor]) -> Scene:
    """What `collate` made, as the model takes it."""
    return Scene(**{name: batch[name] for name in SCENE if name in batch})


def seen(
    shown: Sequence[tuple[np.ndarray, np.ndarray]], frames: int, fps: float
) -> dict[str, Tensor]:
    """`pictures` and `newest` of a `Scene`.

    Args:
        shown: of each speaker, pictures (n, pixels, pixels, 3) uint8, and when they were taken,
            (n,) seconds from the first frame on.
        frames: of the scene.
        fps: frames a second.
    """
    own = [torch.from_numpy(pictures.copy()) for pictures, _ in shown]
    pictures = pad_sequence(own, batch_first=True)
    numbers = [newest(taken, frames, fps) for _, taken in shown]
    return {"pictures": pictures, "newest": torch.from_numpy(np.stack(numbers))}


def log_density(drawn: Tensor, density: Tensor) -> Tensor:
    """Log N(z*; mu, sigma), summed over dims: (...).

    Args:
        drawn: (..., latent), z*.
        density: (..., 2, latent), mu and log sigma.
    """
    mean, log_std = density.unbind(-2)
    away = (drawn - mean) / log_std.exp()
    return -(away.square() / 2 + log_std + math.log(2 * math.pi) / 2).sum(-1)


def _normal(density: Tensor) -> Normal:
    """Of mu and log sigma, (..., 2, latent)."""
    mean, log_std = density.unbind(-2)
    return Normal(mean, log_std.exp())
