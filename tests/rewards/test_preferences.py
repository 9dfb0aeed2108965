"""Win rates and Bradley-Terry strengths by hand and against a general optimiser."""

import numpy as np
import pytest
from scipy.optimize import minimize

from rapport.rewards.metrics.preferences import Comparison, bradley_terry, from_scores, win_rates


def compared(a, b, *outcomes):
    return [Comparison(f"p{i}", a, b, outcome) for i, outcome in enumerate(outcomes)]


def test_two_methods_by_hand():
    strengths = bradley_terry(compared("ours", "theirs", 1, 1, 1, 0))
    assert strengths == pytest.approx({"ours": np.log(3) / 2, "theirs": -np.log(3) / 2}), (
        "odds of 3 to 1"
    )
    assert bradley_terry(compared("ours", "theirs", 0.5, 0.5)) == pytest.approx(
        {"ours": 0, "theirs": 0}
    )
    assert bradley_terry(compared("ours", "theirs", 1, 0.5)) == pytest.approx(strengths), (
        "1.5 to 0.5"
    )


def test_strengths_maximise_the_likelihood():
    rng = np.random.default_rng(0)
    true = np.array([1.0, 0.3, -0.4, -0.9])
    comparisons = []
    for i in range(200):
        a, b = rng.choice(4, 2, replace=False)
        a_wins = rng.random() < 1 / (1 + np.exp(true[b] - true[a]))
        comparisons.append(Comparison(str(i), f"m{a}", f"m{b}", float(a_wins)))

    def loss(theta):
        gaps = [theta[int(c.a[1])] - theta[int(c.b[1])] for c in comparisons]
        return sum(
            np.logaddexp(0, -g) if c.outcome else np.logaddexp(0, g)
            for g, c in zip(gaps, comparisons, strict=True)
        )

    best = minimize(loss, np.zeros(4)).x
    strengths = bradley_terry(comparisons)
    assert list(strengths.values()) == pytest.approx(list(best - best.mean()), abs=1e-3)
    assert bradley_terry(comparisons[::-1]) == pytest.approx(strengths)
    turned = [Comparison(c.prompt_id, c.b, c.a, 1 - c.outcome) for c in comparisons]
    assert bradley_terry(turned) == pytest.approx(strengths), "left and right do not matter"
    assert bradley_terry(comparisons * 3) == pytest.approx(strengths)


def test_strengths_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="no finite.*'a'.*'b'"):
        bradley_terry(compared("a", "b", 1, 1))
    apart = compared("a", "b", 1, 0) + compared("c", "d", 1, 0)
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*\['c', 'd'\].*never met"):
        bradley_terry(apart)
    with pytest.raises(ValueError, match="no comparison"):
        bradley_terry([])
    with pytest.raises(ValueError, match="'a' is compared with itself"):
        Comparison("p", "a", "a", 1)
    with pytest.raises(ValueError, match="outcome 2"):
        Comparison("p", "a", "b", 2)


def test_win_rates_count_prompts_once_and_ties_half():
    comparisons = compared("a", "b", 1, 1, 0.5, 0) + [
        Comparison("p0", "a", "b", 0)
    ]  # p0 twice, once won
    rates = win_rates(comparisons)
    assert rates["a"].mean == pytest.approx((0.5 + 1 + 0.5 + 0) / 4) and rates["a"].n == 4
    assert rates["a"].mean + rates["b"].mean == pytest.approx(1)
    assert rates["a"].low <= rates["a"].mean <= rates["a"].high
    with pytest.raises(ValueError, match="at least 2 prompts"):
        win_rates(compared("a", "b", 1))


def test_comparisons_from_scores():
    found = from_scores(
        {"a": {"x": 3.0, "y": 1.0}, "b": {"x": 2.0, "y": 1.0, "z": 5.0}, "c": {"z": 4.0}}
    )
    assert found == [
        Comparison("x", "a", "b", 1.0),
        Comparison("y", "a", "b", 0.5),
        Comparison("z", "b", "c", 1.0),
    ]
