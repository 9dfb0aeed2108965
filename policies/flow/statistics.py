"""Mean and standard deviation of channels over a corpus, by which inputs are standardised."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

STILL = 1e-5  # a channel whose standard deviation is smaller keeps scale 1


def mean_and_std(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation of every channel, (channels,) float64 each; None of no rows.

    By Chan et al.'s update, which stays exact where a mean is large. The deviation has ddof 0, and
    is 1 where nothing moves.

    Args:
        batches: (..., channels), one by one, so that a corpus need not fit in memory.
    """
    count = 0
    mean = torch.zeros((), dtype=torch.float64)
    squares = torch.zeros((), dtype=torch.float64)  # summed squared distances from the mean
    for batch in batches:
        rows = batch.double().flatten(0, -2)
        if not len(rows):
            continue
        total = count + len(rows)
        batch_mean = rows.mean(0)
        offset = batch_mean - mean
        squares = (
            squares
            + (rows - batch_mean).square().sum(0)
            + offset.square() * (count * len(rows) / total)
        )
        mean = mean + offset * (len(rows) / total)
        count = total
    if not count:
        return None
    std = (squares / count).sqrt()
    return mean, torch.where(std > STILL, std, 1.0)
