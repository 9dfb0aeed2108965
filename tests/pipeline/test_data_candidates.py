"""Candidates on disk: what was sampled comes back, and ids tell raters nothing."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rapport.pipeline.data.candidates import (
    GROUND_TRUTH,
    POLICY,
    CandidateError,
    read_candidates,
    recorded,
    sampled,
    write_candidates,
)
from rapport.policies.vla.trajectory import Trajectory


def trajectory(prompt="p", sample=0, version=2, seed=11):
    rng = np.random.default_rng([sample, version, seed])
    return Trajectory(
        prompt, sample, rng.integers(344, 600, 6), -rng.random(6).astype(np.float32), version, seed
    )


def test_candidates_come_back_as_they_were(tmp_path):
    one, other = trajectory("b"), trajectory("a", sample=1)
    given = [sampled(one), recorded("b", one.tokens[::-1]), sampled(other)]
    assert write_candidates(tmp_path / "c.parquet", given) == 3
    groups = read_candidates(tmp_path / "c.parquet")
    assert list(groups) == ["a", "b"] and [len(g) for g in groups.values()] == [1, 2]
    for candidate in given:
        back = next(
            c for c in groups[candidate.prompt_id] if c.candidate_id == candidate.candidate_id
        )
        np.testing.assert_array_equal(back.tokens, candidate.tokens)
        assert (back.source, back.weight_version, back.seed) == (
            candidate.source,
            candidate.weight_version,
            candidate.seed,
        )
    [a] = groups["a"]
    np.testing.assert_array_equal(a.log_probs, other.log_probs)
    assert (
        a.log_probs.dtype == np.float32
        and a.tokens.dtype == np.int64
        and (a.weight_version, a.seed) == (2, 11)
    )
    truth = next(c for c in groups["b"] if c.source == GROUND_TRUTH)
    assert truth.log_probs is None and truth.weight_version is None and truth.seed is None


def test_the_order_of_writing_does_not_show(tmp_path):
    given = [sampled(trajectory(sample=k)) for k in range(4)] + [recorded("p", trajectory().tokens)]
    write_candidates(tmp_path / "a.parquet", given)
    write_candidates(tmp_path / "b.parquet", given[::-1])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_ids_are_unlike_repeatable_and_neutral():
    group = [sampled(trajectory(sample=k)) for k in range(4)] + [recorded("p", trajectory().tokens)]
    ids = [c.candidate_id for c in group]
    assert len(set(ids)) == 5 and {len(i) for i in ids} == {10}
    assert all(set(i) <= set("0123456789abcdef") for i in ids)
    assert sampled(trajectory()).candidate_id == ids[0]
    others = [trajectory("q"), trajectory(version=3), trajectory(seed=12)]
    assert not {sampled(t).candidate_id for t in others} & set(ids)
    assert [c.source for c in group] == [POLICY] * 4 + [GROUND_TRUTH]


@pytest.mark.parametrize("damage", ["absent", "cut", "no parquet", "other columns"])
def test_a_damaged_file_is_named(tmp_path, damage):
    file = tmp_path / "candidates.parquet"
    write_candidates(file, [sampled(trajectory())])
    if damage == "absent":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "no parquet":
        file.write_text("prompt_id,candidate_id\n")
    else:
        pq.write_table(pa.table({"prompt_id": ["p"], "rating": [3]}), file)
    with pytest.raises(CandidateError, match="candidates.parquet"):
        read_candidates(file)
