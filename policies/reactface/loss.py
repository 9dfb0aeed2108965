"""The five losses of ReactFace (section 4.4), on channels of unit variance over the corpus.

Errors are averaged by FLAME group, so that three rotations weigh as much as fifty coefficients of
expression; and per element, so that scales do not depend on how long clips are or how wide layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rapport.policies.motion import Layout

PATH = 25  # frames that a path is averaged over, a second
TINY = 1e-8  # under a root, whose slope at 0 is endless
UNSEEN = 0.01  # standard deviations; what moves less does not move
Assign = Literal["nearest", "recorded", "random", "cover"]


def by_group(errors: Tensor, layout: Layout) -> Tensor:
    """Errors (..., dim) -> (...): means within each FLAME group, then over groups."""
    groups = [errors[..., layout.columns(name)].mean(-1) for name in layout.names]
    return torch.stack(groups).mean(0)


def speaker_loss(read: Tensor, motion: Tensor, present: Tensor, layout: Layout) -> Tensor:
    """L_s, Eq. 19: smooth L1 of the speaker's motion as it is read off the encoded speaker.

    A mean over all clips, of which those without any motion add nothing.

    Args:
        read: (batch, frames, dim), standardised.
        motion: likewise.
        present: (batch,) bool, of whom there is any motion.
        layout: of it.
    """
    errors = by_group(F.smooth_l1_loss(read, motion, reduction="none"), layout).mean(-1)
    return torch.where(present, errors, 0.0).mean()


def path_loss(expected: Tensor, motion: Tensor, layout: Layout) -> Tensor:
    """Squared error of what is expected of a listener against the slow part of what one did.

    What a speaker explains is slow: the target is the mean over the `PATH` frames around each.

    Args:
        expected: (batch, frames or more, dim), standardised.
        motion: (batch, frames, dim), standardised.
        layout: of the motion.
    """
    path = slow(motion)
    return by_group((expected[:, : path.shape[1]] - path).square(), layout).mean()


def slow(motion: Tensor) -> Tensor:
    """Means over the `PATH` frames around each of (batch, frames, dim), fewer at both ends."""
    padding = PATH // 2
    return F.avg_pool1d(motion.mT, PATH, stride=1, padding=padding, count_include_pad=False).mT


def distances(samples: Tensor, labels: Tensor, layout: Layout) -> Tensor:
    """Smooth L1 of each sample to each label, means over frames: (batch, samples, labels).

    Args:
        samples: (batch, samples, frames, dim), standardised.
        labels: (batch, labels, frames, dim), standardised.
        layout: of both.
    """
    shape = (*samples.shape[:2], labels.shape[1], *samples.shape[2:])
    expanded = samples.unsqueeze(2).expand(shape), labels.unsqueeze(1).expand(shape)
    errors = F.smooth_l1_loss(*expanded, reduction="none")
    return by_group(errors, layout).mean(-1)


def appropriate_loss(
    apart: Tensor, there: Tensor, assign: Assign, picked: Tensor | None = None
) -> Tensor:
    """L_a: what a sample has to be near to, (batch,).

    nearest: the nearest label (Eq. 20). recorded: the first label, which is the clip's own
    listener. random: a label drawn for each sample (PerFRDiff). cover: every label is met by the
    nearest sample.

    Args:
        apart: (batch, samples, labels) of `distances`.
        there: (batch, labels) bool, which labels there are; one at least.
        assign: which of them.
        picked: (batch, samples) in [0, 1), where each sample's label lies among those there
            (random).
    """
    if assign == "recorded":
        return apart[..., 0].mean(1)
    if assign == "random":
        if picked is None:
            raise ValueError("assign=random needs `picked`")
        count = there.sum(1, keepdim=True)
        order = there.long().argsort(dim=1, descending=True, stable=True)  # those there first
        label = order.gather(1, (picked * count).long())
        return apart.gather(2, label.unsqueeze(2)).squeeze(2).mean(1)
    if assign == "nearest":
        return apart.masked_fill(~there[:, None], torch.inf).amin(2).mean(1)
    met = apart.amin(1)
    return torch.where(there, met, 0.0).sum(1) / there.sum(1)


def kl_loss(mean: Tensor, log_std: Tensor) -> Tensor:
    """L_kl, Eq. 22: KL(N(mu, sigma) || N(0, I)), mean over all dims."""
    return (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).mean() / 2


def smooth_loss(frames: Tensor, layout: Layout) -> Tensor:
    """L_smo, Eq. 23: smooth L1 of each velocity to the one before.

    Args:
        frames: (..., frames, dim), standardised.
        layout: of them.
    """
    velocity = frames.diff(dim=-2)
    after, before = velocity[..., 1:, :], velocity[..., :-1, :]
    return by_group(F.smooth_l1_loss(after, before, reduction="none"), layout).mean()


def diversity_loss(samples: Tensor, scale: float, layout: Layout) -> Tensor:
    """L_div, Eq. 21: exp(-d / scale) of two samples for the same speaker, mean over pairs.

    Every channel has to be diverse by itself. Where d is a mean over all of them, as the paper's
    is, one channel that runs away makes it as large as one likes.

    Args:
        samples: (batch, M, frames, dim), M of 2 or more, standardised.
        scale: sigma_d, of the mean squared difference of a channel; two people who do not know of
            each other are 2 apart.
        layout: of the motion.
    """
    first, second = _pairs(samples)
    apart = (samples[:, first] - samples[:, second]).square().mean(-2)
    return by_group((-apart / scale).exp(), layout).mean()


def energy_distances(samples: Tensor, labels: Tensor, layout: Layout) -> Tensor:
    """Of each sample to each label, means over groups and `aspects`: as of `distances`."""
    pairs = zip(aspects(samples), aspects(labels), strict=True)
    apart = [sample.unsqueeze(2) - label.unsqueeze(1) for sample, label in pairs]
    return _energy(apart, layout)


def spread_loss(samples: Tensor, layout: Layout) -> Tensor:
    """Minus half the mean of `energy_distances` of two samples.

    With those to the recorded listener it is the energy score (Gneiting & Raftery 2007), which is
    least where samples are spread as people are: there is no weight or scale to choose.
    """
    first, second = _pairs(samples)
    apart = [aspect[:, first] - aspect[:, second] for aspect in aspects(samples)]
    return -_energy(apart, layout).mean() / 2


def aspects(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How a face rests, what it does about that, and how much it moves.

    Each is held against others by itself: faces at rest differ by more than anybody moves, and what
    two faces do at once says nothing of how much they do at all.

    Args:
        frames: (..., frames, dim), standardised.

    Returns:
        (..., 1, dim), means over the clip; (..., frames, dim), the rest; (..., 5, dim), logs of
        the root mean squares of the rest, of velocity and of acceleration, and of how far the rest
        goes up and down: a blink goes far, seldom, and one way.
    """
    means = frames.mean(-2, keepdim=True)
    rest = frames - means
    velocity = frames.diff(dim=-2)
    squares = [x.square().mean(-2) for x in (rest, velocity, velocity.diff(dim=-2))]
    moved = [(square + UNSEEN**2).sqrt() for square in squares]
    moved += [rest.amax(-2) + UNSEEN, UNSEEN - rest.amin(-2)]
    return means, rest, torch.stack(moved, dim=-2).log()


def _energy(apart: Sequence[Tensor], layout: Layout) -> Tensor:
    """Root mean squares by group of what differs in each aspect, (..., rows, dim) -> (...)."""
    squares = [aspect.square().mean(-2) for aspect in apart]
    groups = [
        (square[..., layout.columns(name)].mean(-1) + TINY).sqrt()
        for square in squares
        for name in layout.names
    ]
    return torch.stack(groups).mean(0)


def _pairs(samples: Tensor) -> Tensor:
    """(2, pairs) numbers of two samples."""
    count = samples.shape[1]
    return torch.triu_indices(count, count, offset=1, device=samples.device)
