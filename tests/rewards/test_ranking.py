"""Ranks by hand: ties, what is missing, the three kinds of best, and swaps."""

import pytest

from rapport.rewards import metrics
from rapport.rewards.metrics.ranking import BEST, best_of, ranks, swaps

NAN = float("nan")


def test_equal_values_share_the_better_rank_and_the_next_one_is_skipped():
    values = {"a": 0.2, "b": 0.1, "c": 0.2, "d": 0.3, "e": 0.1 + 1e-17}
    assert ranks(values, "lowest") == {"a": 3, "b": 1, "c": 3, "d": 5, "e": 1}
    assert ranks(values, "highest") == {"a": 2, "b": 4, "c": 2, "d": 1, "e": 4}


def test_nearest_counts_the_distance_to_the_ground_truth_on_either_side():
    values = {"frozen": 0.0, "shaking": 5.0, "less": 0.5, "more": 1.5}
    assert ranks(values, "nearest", truth=1.0) == {"less": 1, "more": 1, "frozen": 3, "shaking": 4}


def test_who_has_no_value_has_no_rank_and_takes_none_from_others():
    assert ranks({"a": None, "b": 2.0, "c": NAN, "d": 1.0}, "lowest") == {"b": 2, "d": 1}
    assert ranks({"a": 1.0}, "nearest", truth=None) == ranks({"a": 1.0}, "nearest", truth=NAN) == {}


def test_a_swap_needs_both_orders_to_be_strict():
    before, after = {"a": 1, "b": 2, "c": 3, "d": 3}, {"a": 2, "b": 1, "c": 3, "d": 4}
    assert swaps(before, after) == [("a", "b")]  # c and d were a tie
    assert swaps(before, before) == []
    assert swaps({"a": 1, "b": 2}, {"a": 1}) == []  # b has no rank any more


def test_every_metric_of_the_papers_has_a_best():
    assert (
        best_of("FD_exp")
        == best_of("LVE_speak")
        == best_of("L2 Affect")
        == best_of("P-FD_pose")
        == "lowest"
    )
    assert best_of("FRCorr") == "highest" and best_of("SID_neck") == "nearest"
    assert set(BEST.values()) == {"lowest", "highest", "nearest"}
    with pytest.raises(ValueError, match="no rank by 'Beauty_exp'.*ranking.BEST"):
        best_of("Beauty_exp")
    assert {"lm_listener", "unils", "reactface"} <= set(metrics.PROTOCOLS)
