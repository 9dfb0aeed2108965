"""PosNet: a small network that joins a window's head to the one shown last (PFLPosNet, 4.2).

Xie et al., "Smooth Online Multiple Appropriate Facial Reaction Generation", MM 2025, Eq. 11-18 and
Fig. 3. Two convolutions read the head of a window and are averaged over time; three linear layers
make of that, and of the last head that was shown, the head of the whole window. So it knows what
the window is like and not when it does what. The face stays as it was.

Written from the paper. Two things are ours: channels are in standard deviations of a head over a
motion, so that radians and metres count alike in its losses, and it learns by Adam, not by SGD.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rapport.files import atomic
from rapport.policies.motion import Layout, LayoutError, Motion, require_same_layout
from rapport.policies.policy import CheckpointError
from rapport.policies.posnet_settings import PosNetTraining
from rapport.policies.seams import head_columns, heads, with_head

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FRAMES = 25  # of a window in the paper: windows of 50 that overlap by half
LOG_EVERY = 100  # steps


class PosNet(nn.Module):
    """Heads of windows, (batch, frames, channels), as they are to be shown.

    Args:
        layout: of the motion, whose `head_columns` are the channels.
        frames: of a window, at most.
        hidden: width; the paper's code has 512, which makes 1.4 M parameters.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layout: Layout, frames: int = FRAMES, hidden: int = 512) -> None:
        super().__init__()
        self.layout = layout
        self.frames = frames
        self.hidden = hidden
        channels = len(head_columns(layout))
        self.encoder = nn.Sequential(
            nn.Conv1d(channels, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
        )
        self.decoder = nn.Sequential(
            nn.Linear(channels + hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, frames * channels),
        )
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def forward(self, last: Tensor, window: Tensor) -> Tensor:
        """The heads of a window, Eq. 13, standardised as what it is given.

        Args:
            last: (batch, channels) the last head that was shown.
            window: (batch, time, channels) the heads that come, time up to `frames`.

        Returns:
            (batch, time, channels).
        """
        pooled = self.encoder(window.mT).mean(dim=-1)
        said = self.decoder(torch.cat([last, pooled], dim=-1))
        shown: Tensor = torch.unflatten(said, -1, (self.frames, window.shape[-1]))
        return shown[:, : window.shape[1]]

    def standardise(self, head: Tensor) -> Tensor:
        """Every channel of zero mean, and of unit variance within a motion."""
        return (head - self.mean) / self.std

    def save(self, folder: Path) -> None:
        """Write a folder that `load` reads; it appears whole or not at all."""
        sizes = {"layout": self.layout.to_json(), "frames": self.frames, "hidden": self.hidden}
        with atomic(folder) as partial:
            partial.mkdir()
            save_file(self.state_dict(), partial / WEIGHTS_FILE)
            (partial / CONFIG_FILE).write_text(json.dumps(sizes) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `save` wrote.

        Raises:
            CheckpointError: the folder holds no PosNet.
        """
        try:
            sizes = json.loads((folder / CONFIG_FILE).read_text())
            layout = Layout.from_json(sizes["layout"])
            net = cls(layout, frames=sizes["frames"], hidden=sizes["hidden"])
            net.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{folder} holds no PosNet: {error}") from error
        return net.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class ByPosNet:
    """A trained PosNet as a `rapport.policies.seams.Smoother`; the first window stays as it is.

    Args:
        net: trained.
    """

    net: PosNet
    memory: ClassVar[int] = 1

    @torch.no_grad()
    def __call__(self, shown: Motion | None, window: Motion) -> Motion:
        """See `Smoother`.

        Raises:
            LayoutError: as of `Smoother`, the network is of another layout, or of shorter windows.
        """
        net = self.net
        require_same_layout(window.layout, net.layout, "smoothing by this PosNet")
        if len(window) > net.frames:
            raise LayoutError(
                f"a window of {len(window)} frames, this PosNet makes {net.frames}: train one for "
                "these windows"
            )
        before, after = heads(shown, window)
        if not len(before):
            return window
        last, coming = (net.standardise(torch.from_numpy(part).float()) for part in (before, after))
        said = net(last[-1:], coming[None])[0]
        return with_head(window, (said * net.std + net.mean).numpy())


def train_posnet(
    given: Sequence[Motion],
    wanted: Sequence[Motion],
    *,
    frames: int = FRAMES,
    training: PosNetTraining | None = None,
    seed: int = 0,
    log: Callable[[Mapping[str, float], int], None] | None = None,
) -> PosNet:
    """A PosNet that turns motions with joints into what they should have been, in this process.

    `given` are answers of a policy and `wanted` the people whom it imitates, as in the paper; or
    recorded motion with jumps (`rapport.policies.seams.with_jumps`) and without. It learns as it is
    used: a window goes on from what it made of the one before, and the first stays as it is.

    Args:
        given: of one layout, two windows or more each; the ends of longer ones are left out.
        wanted: as long, in the same order.
        frames: of a window.
        training: None = the defaults.
        seed: of its weights and batches.
        log: takes the loss of a step, and its number.

    Raises:
        ValueError: there is nothing to learn from.
        LayoutError: unlike layouts.
    """
    training = training or PosNetTraining()
    shortest = min((len(motion) for motion in given), default=0)
    whole = shortest // frames * frames
    if whole < 2 * frames:
        raise ValueError(
            f"{len(given)} motions, the shortest of {shortest} frames: a joint needs two windows "
            f"of {frames}"
        )
    layout = given[0].layout
    for motion, other in zip(given, wanted, strict=True):
        require_same_layout(motion.layout, layout, "PosNet's input")
        require_same_layout(other.layout, layout, "PosNet's targets")
        if len(motion) != len(other):
            raise ValueError(f"{len(motion)} frames are given where {len(other)} are wanted")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = PosNet(layout, frames=frames, hidden=training.hidden)
    recorded = _heads(wanted, whole)
    net.mean.copy_(recorded.mean((0, 1)))
    std = recorded.var(1).mean(0).sqrt()
    net.std.copy_(torch.where(std > 0, std, 1.0))
    windows = torch.unflatten(net.standardise(_heads(given, whole)), 1, (-1, frames))
    targets = torch.unflatten(net.standardise(recorded), 1, (-1, frames))
    optimizer = torch.optim.Adam(net.parameters(), lr=training.learning_rate)
    # Steps that end small: what is left of the noise of batches, a head shows as trembling.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    rng = np.random.default_rng(seed)
    for step in range(training.steps):
        rows = torch.from_numpy(rng.integers(len(given), size=training.batch_size))
        loss = _sequence_loss(net, windows[rows], targets[rows], training)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if log is not None and step % LOG_EVERY == 0:
            log({"loss": loss.item()}, step)
    return net.eval().requires_grad_(False)


def _heads(motions: Sequence[Motion], frames: int) -> Tensor:
    """(motions, frames, channels)."""
    columns = head_columns(motions[0].layout)
    return torch.from_numpy(np.stack([motion.values[:frames, columns] for motion in motions]))


def _sequence_loss(
    net: PosNet, windows: Tensor, targets: Tensor, training: PosNetTraining
) -> Tensor:
    """Mean over all windows but the first, (batch, windows, frames, channels), of Eq. 18."""
    losses = []
    last = windows[:, 0, -1]
    for number in range(1, windows.shape[1]):
        said = net(last, windows[:, number])
        losses.append(posnet_loss(said, last, targets[:, number], training))
        last = said[:, -1].detach()
    return torch.stack(losses).mean()


def posnet_loss(said: Tensor, last: Tensor, target: Tensor, weights: PosNetTraining) -> Tensor:
    """Eq. 14 and Eq. 15-18.

    Args:
        said: (batch, time, channels) heads of a window.
        last: (batch, channels) the last head before it.
        target: (batch, time, channels) heads that were recorded.
        weights: of its parts.
    """
    return (
        (said - target).square().mean()
        + weights.connect * connect_loss(said, last)
        + weights.first * first_difference_loss(said)
        + weights.second * second_difference_loss(said)
    )


def connect_loss(said: Tensor, last: Tensor) -> Tensor:
    """How far the head goes at the joint, Eq. 15; least where it stands still."""
    return (said[:, 0] - last).abs().mean()


def first_difference_loss(said: Tensor) -> Tensor:
    """How far it goes from frame to frame, Eq. 16; least where it stands still."""
    return said.diff(dim=1).abs().mean()


def second_difference_loss(said: Tensor) -> Tensor:
    """How unlike the sizes of neighbouring steps are, Eq. 17.

    As printed it compares sizes, not steps, so a zigzag of even steps costs nothing. The paper's
    brackets are read as an absolute value: without one all but the first and the last step cancel.
    """
    return said.diff(dim=1).abs().diff(dim=1).abs().mean()
