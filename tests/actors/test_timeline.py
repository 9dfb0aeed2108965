import pytest

from rapport.actors.timeline import START, Span, covered, shares


def test_overlapping_spans_count_once_and_only_within_the_window():
    spans = [Span("a", 5, 7), Span("a", 1, 3), Span("a", 2, 4), Span("a", 6, 6.5)]
    assert covered(spans, 0, 10) == 5  # 1-4 and 5-7
    assert covered(spans, 2.5, 6) == 2.5  # 2.5-4 and 5-6
    assert covered([], 0, 10) == 0


def test_shares_by_hand():
    # Start 0-10, of which an engine works 8-10; engine 8-20, learner 18-30, nothing 30-35, render
    # 35-40, end 40.
    spans = [
        Span(START, 0, 10),
        Span("engine", 8, 20),
        Span("learner", 18, 30),
        Span("render", 35, 40),
    ]
    found = shares(0, 40, spans)
    assert found == {
        "engine_s": 12,
        "learner_s": 12,
        "render_s": 5,
        "start_s": 8,
        "idle_s": 5,
        "idle_share": pytest.approx(5 / 32),
    }


def test_a_run_in_which_nothing_worked_is_idle():
    assert shares(3, 5, []) == {"start_s": 0, "idle_s": 2, "idle_share": 1}
    assert shares(5, 5, [])["idle_share"] == 0
