"""Ways to smooth side by side: a way that stops the head cannot pass for the best one."""

import numpy as np
import pytest

from rapport.pipeline.steps.smoothing_table import (
    LATE,
    NONE,
    RECORDED,
    UNTRAINED,
    main,
    smoothing_table,
    tabulate_smoothing,
)
from rapport.policies.motion import Layout, Motion
from rapport.policies.seams import heads, with_head, with_jumps

FRAMES = 10
LAYOUT = Layout((("expr", 2), ("rot", 3), ("trans", 3)), 25, "builtin")


class Frozen:
    """Stands where the head was last."""

    memory = 1

    def __call__(self, shown, window):
        before, after = heads(shown, window)
        return window if not len(before) else with_head(window, before[-1:].repeat(len(after), 0))


@pytest.fixture(scope="module")
def motions():
    """Recorded heads, and the same in windows that jump."""
    rng = np.random.default_rng(0)
    seconds = np.arange(100)[:, None] / 25
    recorded = [
        Motion(np.sin(2 * np.pi * rng.uniform(0.2, 0.6, 8) * (seconds + rng.random(8))), LAYOUT)
        for _ in range(6)
    ]
    jumping = [with_jumps(each, FRAMES, rng, scale=np.full(6, 0.7)) for each in recorded]
    return jumping, recorded


def test_each_way_is_a_row_beside_the_recorded_people(motions):
    rows = smoothing_table(motions[0], UNTRAINED, FRAMES, motions[1])
    assert list(rows) == [RECORDED, *UNTRAINED, LATE]
    assert all(row.keys() == rows[RECORDED].keys() for row in rows.values())
    for group in ("rot", "trans"):
        assert rows[RECORDED][f"variance_ratio/{group}"] == 1
        assert rows[NONE][f"jump/{group}"] > 3 > rows["inertialisation"][f"jump/{group}"]
        jerk = f"jerk_ratio/{group}"
        assert rows["inertialisation"][jerk] < rows[NONE][jerk] / 3
    table = tabulate_smoothing(rows, "")
    assert table.row_count == len(rows[NONE]) and len(table.columns) == 1 + len(rows)


def test_a_way_that_stops_the_head_is_seen_to(motions):
    row = smoothing_table(motions[0], {"frozen": Frozen()}, FRAMES, motions[1])["frozen"]
    assert row["jump/rot"] < 1, "it has no seam"
    assert row["path_ratio/rot"] < 0.2 and row["variance_within/rot"] < 0.2


def test_without_recorded_people_a_way_is_held_against_what_came(motions):
    rows = smoothing_table(motions[0], UNTRAINED, FRAMES)
    assert RECORDED not in rows
    for name in ("path_ratio", "jerk_ratio", "variance_within", "variance_ratio"):
        assert rows[NONE][f"{name}/rot"] == 1
    with pytest.raises(ValueError, match="no motion to smooth"):
        smoothing_table([], UNTRAINED, FRAMES)


def test_the_table_of_a_corpus_is_printed_by_one_command(tiny_corpus, capsys):
    sizes = ["--frames", "8", "--train", "8", "--clips", "4", "--steps", "3", "--hidden", "8"]
    rows = main([str(tiny_corpus.path), *sizes])
    assert list(rows) == [RECORDED, *UNTRAINED, "PosNet", LATE]
    assert all(np.isfinite(list(row.values())).all() for row in rows.values())
    assert rows[NONE]["jump/rot"] > 2 > rows["inertialisation"]["jump/rot"]
    printed = capsys.readouterr().out
    assert "variance_within/trans" in printed and "recorded heads that jump" in printed
