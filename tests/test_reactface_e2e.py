"""A ReactFace through imitation and both algorithms, as short as it goes."""

import pytest

from rapport import load_policy
from tests.aligned import aligned, by_both_algorithms

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
OWN = ["policy=reactface", "reactface.steps=4", "reactface.batch_size=4", "reactface.span=2"]


@by_both_algorithms
def test_a_reactface_is_aligned_judged_and_reported(recipe, keys, tiny_corpus, tmp_path):
    metrics, _ = aligned(recipe, tmp_path / "run", tiny_corpus, *OWN, *keys)
    before, after = metrics["compared"]
    assert (before, after) == ("ReactFace", f"ReactFace + {recipe.upper()}")
    last, first = (
        load_policy(tmp_path / "run" / phase / "policy").model for phase in (recipe, "imitate")
    )
    assert not last.prior.equal(first.prior), "it learnt"
    assert last.head.weight.equal(first.head.weight), "what is made of z* stays"
