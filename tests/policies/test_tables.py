"""Tables on disk, and the order in which learners take their rows."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rapport.policies.tables import batch_rows, rank_share, read_table, write_table

SCHEMA = pa.schema(
    {"name": pa.string(), "ids": pa.list_(pa.int32()), "frames": pa.binary(), "score": pa.float64()}
)


def test_tables_come_back_as_they_were(tmp_path):
    rows = [
        {"name": "a", "ids": [300, 301], "frames": b"\0\1", "score": 0.75},
        {"name": "bb", "ids": [302], "frames": None, "score": 0.5},
    ]
    assert write_table(tmp_path / "t.arrow", iter(rows), SCHEMA) == 2
    assert list(read_table(tmp_path / "t.arrow")) == rows


def test_a_table_that_fails_half_way_keeps_the_old_one(tmp_path):
    old = [{"name": "a", "ids": [300], "frames": None, "score": 0.0}]
    write_table(tmp_path / "t.arrow", old, SCHEMA)

    def failing():
        yield old[0] | {"name": "b"}
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_table(tmp_path / "t.arrow", failing(), SCHEMA)
    assert list(read_table(tmp_path / "t.arrow")) == old


@given(
    size=st.integers(1, 40),
    batch_size=st.integers(1, 17),
    seed=st.integers(0, 5),
    together=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_every_row_comes_once_per_epoch(size, batch_size, seed, together):
    filled = -size % together  # by the last row
    length = size + filled
    steps = -(-3 * length // batch_size)
    batches = [batch_rows(step, batch_size, size, seed, together=together) for step in range(steps)]
    order = np.concatenate(batches)
    for epoch in range(3):
        found = sorted(order[epoch * length : (epoch + 1) * length])
        assert found == sorted([*range(size), *[size - 1] * filled])


@pytest.mark.parametrize("size", [40, 41])
def test_rows_that_belong_together_are_learnt_together(size):
    """In every epoch: where the last one is alone, it fills its block."""
    for step in range(15):
        rows = batch_rows(step, 8, size, seed=3, together=2).tolist()
        twins = [(first, min(first + 1, size - 1)) for first in rows[::2]]
        assert list(zip(rows[::2], rows[1::2], strict=True)) == twins
        assert not any(row % 2 for row in rows[::2])
    alone = np.concatenate([batch_rows(step, 8, 40, seed=3) for step in range(5)])
    assert any(a + 1 != b for a, b in zip(alone[::2], alone[1::2], strict=True))


def test_the_order_is_a_function_of_its_arguments_and_changes_with_epoch_and_seed():
    first = batch_rows(0, 32, 32, seed=0)
    np.testing.assert_array_equal(first, batch_rows(0, 32, 32, seed=0))
    assert not np.array_equal(first, batch_rows(1, 32, 32, seed=0))
    assert not np.array_equal(first, batch_rows(0, 32, 32, seed=1))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_shares_of_the_ranks_are_equal_and_together_the_batch(world_size):
    rows = np.array([5, 1, 4, 0, 3, 2])
    shares = [rank_share(rows, rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {6 // world_size}
    assert sorted(np.concatenate(shares)) == [0, 1, 2, 3, 4, 5]


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    with pytest.raises(ValueError, match="batch of 5.*2 learners"):
        rank_share(np.arange(5), 0, 2)
