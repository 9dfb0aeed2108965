"""Mean and spread of channels over a corpus, by which inputs are standardised."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

STILL = 1e-5  # a channel of less spread is left at scale 1


def mean_and_std(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Of every channel, (channels,) float64 each, the latter with ddof 0 and 1 where nothing moves;
    None of nothing.

    Args:
        batches: (..., channels), one by one, so that a corpus need not fit in memory.
    """
    count, mean, squares = 0, 0.0, 0.0  # squares: sum of squared distances from the mean so far
    for batch in batches:
        rows = batch.double().flatten(0, -2)
        if not len(rows):
            continue
        total, own = count + len(rows), rows.mean(0)
        apart = own - mean
        squares = (
            squares + (rows - own).square().sum(0) + apart.square() * (count * len(rows) / total)
        )
        count, mean = total, mean + apart * (len(rows) / total)
    if not count:
        return None
    std = (squares / count).sqrt()
    return mean, torch.where(std > STILL, std, 1.0)
