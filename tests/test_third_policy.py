"""A policy that nothing here knows of, one file of a hundred lines, through both algorithms."""

from pathlib import Path

import pytest

from rapport import load_policy
from tests.aligned import aligned, by_both_algorithms

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]
OWN = ["policy=tests.gaussian:Gaussian", "imitate.steps=4", "imitate.batch_size=4"]


def test_it_fits_into_a_hundred_lines():
    assert len((ROOT / "tests" / "gaussian.py").read_text().splitlines()) <= 100


@pytest.mark.long
@by_both_algorithms
def test_a_third_policy_is_aligned_judged_and_reported(recipe, keys, tiny_corpus, tmp_path):
    metrics, report = aligned(recipe, tmp_path / "run", tiny_corpus, *OWN, *keys)
    before, after = metrics["compared"]
    assert (before, after) == ("SFT", {"dpo": "SFT + DPO", "gdpo": "GDPO"}[recipe])
    assert set(metrics["judgement"]) == {before, after}
    assert "How listeners move" in report
    last = load_policy(tmp_path / "run" / recipe / "policy")
    first = load_policy(tmp_path / "run" / "imitate" / "policy")
    assert not last.mean.bias.equal(first.mean.bias), "it learnt"
    reactions = last.sample([last.encode(tiny_corpus.at("test", 0))], 2, [0])
    assert last.to_motion(reactions[0][1]).layout == tiny_corpus.layout
