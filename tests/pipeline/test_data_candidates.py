"""Candidates on disk: what was sampled comes back, and ids tell raters nothing."""

from dataclasses import replace

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
from rapport.policies.policy import Reaction
from rapport.policies.vla.policy import VlaPolicy


def trajectory(prompt="p", sample=0, version=2, seed=11):
    rng = np.random.default_rng([sample, version, seed])
    return Reaction(
        prompt,
        sample,
        rng.integers(344, 600, 6),
        -rng.random(6).astype(np.float32),
        version,
        seed,
        rest=np.linspace(-1, 1, 3) / (sample + 3),
    )


def listened(prompt="p"):
    actions = trajectory(prompt).actions[::-1]
    return Reaction(prompt, 0, actions, rest=np.array([0.1, 0.2, -1 / 3]))


@pytest.fixture(scope="module")
def policy(tiny_checkpoint):
    return VlaPolicy.load(tiny_checkpoint)


def test_candidates_come_back_as_they_were(tmp_path, policy):
    one, other = trajectory("b"), trajectory("a", sample=1)
    given = [sampled(one, policy), recorded(listened("b"), policy), sampled(other, policy)]
    assert write_candidates(tmp_path / "c.parquet", given, policy) == 3
    groups = read_candidates(tmp_path / "c.parquet")
    assert list(groups) == ["a", "b"] and [len(g) for g in groups.values()] == [1, 2]
    for candidate in given:
        back = next(
            c for c in groups[candidate.prompt_id] if c.candidate_id == candidate.candidate_id
        )
        np.testing.assert_array_equal(back.actions, candidate.actions)
        assert back.rest.dtype == np.float64 and back.rest.tolist() == candidate.rest.tolist()
        assert back.reaction.rest is back.rest
        assert (back.source, back.weight_version, back.seed) == (
            candidate.source,
            candidate.weight_version,
            candidate.seed,
        )
    [a] = groups["a"]
    np.testing.assert_array_equal(a.log_probs, other.log_probs)
    assert (
        a.log_probs.dtype == np.float32
        and a.actions.dtype == np.int64
        and (a.weight_version, a.seed) == (2, 11)
    )
    truth = next(c for c in groups["b"] if c.source == GROUND_TRUTH)
    assert truth.log_probs is None and truth.weight_version is None and truth.seed is None


def test_a_candidate_that_is_told_from_no_face_at_rest_comes_back_without(tmp_path, policy):
    given = [sampled(replace(trajectory(), rest=None), policy), recorded(listened(), policy)]
    write_candidates(tmp_path / "c.parquet", given, policy)
    [group] = read_candidates(tmp_path / "c.parquet").values()
    rests = {candidate.source: candidate.rest for candidate in group}
    assert rests[POLICY] is None and rests[GROUND_TRUTH].tolist() == [0.1, 0.2, -1 / 3]


def test_the_order_of_writing_does_not_show(tmp_path, policy):
    given = [sampled(trajectory(sample=k), policy) for k in range(4)] + [
        recorded(listened(), policy)
    ]
    write_candidates(tmp_path / "a.parquet", given, policy)
    write_candidates(tmp_path / "b.parquet", given[::-1], policy)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_ids_are_unlike_repeatable_and_neutral(policy):
    group = [sampled(trajectory(sample=k), policy) for k in range(4)] + [
        recorded(listened(), policy)
    ]
    ids = [c.candidate_id for c in group]
    assert len(set(ids)) == 5 and {len(i) for i in ids} == {10}
    assert all(set(i) <= set("0123456789abcdef") for i in ids)
    assert sampled(trajectory(), policy).candidate_id == ids[0]
    others = [trajectory("q"), trajectory(version=3), trajectory(seed=12)]
    assert not {sampled(t, policy).candidate_id for t in others} & set(ids)
    assert [c.source for c in group] == [POLICY] * 4 + [GROUND_TRUTH]


@pytest.mark.parametrize("damage", ["absent", "cut", "no parquet", "other columns"])
def test_a_damaged_file_is_named(tmp_path, damage, policy):
    file = tmp_path / "candidates.parquet"
    write_candidates(file, [sampled(trajectory(), policy)], policy)
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
