"""Training rows as Arrow files, and the order in which learners take them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

from rapport.files import atomic


def write_table(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> int:
    """Stream rows into an Arrow file that `read_table` maps into memory; returns how many.

    The file appears whole or not at all.
    """
    count = 0
    with atomic(path) as partial, pa.ipc.new_stream(partial, schema) as stream:
        for row in rows:
            stream.write_batch(pa.RecordBatch.from_pylist([row], schema=schema))
            count += 1
    return count


def read_table(path: Path) -> datasets.Dataset:
    """Rows by index, read from the mapped file as they are asked for."""
    return datasets.Dataset.from_file(str(path))


def batch_rows(
    step: int, batch_size: int, size: int, seed: int, *, together: int = 1
) -> np.ndarray:
    """Row numbers (batch_size,) of the global batch of `step`.

    Every row comes once in an epoch, in another order in each; the last of a table that
    `together` does not divide fills its block.

    A function of its arguments alone, so a resumed run reads on where it stopped.

    Args:
        step: of the optimiser.
        batch_size: rows.
        size: rows of the table.
        seed: of the order.
        together: so many rows that follow each other stay together, where they divide the batch.
    """
    blocks = -(-size // together)
    epoch = blocks * together
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    orders = {e: _order(blocks, together, [seed, int(e)]) for e in np.unique(positions // epoch)}
    rows = np.array([orders[p // epoch][p % epoch] for p in positions])
    filled: np.ndarray = np.minimum(rows, size - 1)
    return filled


def _order(blocks: int, together: int, seed: list[int]) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(blocks)
    return (order[:, None] * together + np.arange(together)).ravel()


def rank_share(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """This rank's equal share, so that the mean over ranks is the mean over the batch."""
    if len(rows) % world_size:
        raise ValueError(
            f"a batch of {len(rows)} cannot be shared equally by {world_size} learners"
        )
    return rows[rank::world_size]


def generator_of(seed: int, step: int) -> torch.Generator:
    """Draws of a step: a function of seed and step alone, so that a resumed run draws the same."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    )
