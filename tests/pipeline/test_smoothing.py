"""`smooth`: ways to smooth side by side; a way that stops the head cannot pass for the best one."""

import json

import numpy as np
import pytest
import torch

from rapport.pipeline.run import main
from rapport.pipeline.rundir import RunError
from rapport.pipeline.settings import SmoothConfig
from rapport.pipeline.steps.smoothing import (
    LATE,
    POSNET,
    RECORDED,
    Answers,
    Smoothed,
    corpus_of,
    smoothing_table,
    tabulate_smoothing,
)
from rapport.policies.motion import Layout, Motion
from rapport.policies.posnet import PosNet
from rapport.policies.reactface.policy import ReactFacePolicy
from rapport.policies.seams import SMOOTHERS, heads, with_head, with_jumps
from tests.gaussian import Gaussian

FRAMES = 10
LAYOUT = Layout((("expr", 2), ("rot", 3), ("trans", 3)), 25, "builtin")


def untrained(corpus):
    return ReactFacePolicy.untrained(corpus.layout, corpus.clips("train"), seed=0)


class Frozen:
    """Stands where the head was last."""

    memory = 1

    def __call__(self, shown, window):
        before, after = heads(shown, window)
        return window if not len(before) else with_head(window, before[-1:].repeat(len(after), 0))


@pytest.fixture(scope="module")
def answers():
    """Of a policy that makes half of what people do, in windows that jump."""
    rng = np.random.default_rng(0)
    seconds = np.arange(100)[:, None] / 25
    recorded = [
        Motion(np.sin(2 * np.pi * rng.uniform(0.2, 0.6, 8) * (seconds + rng.random(8))), LAYOUT)
        for _ in range(6)
    ]
    made = [Motion(motion.values / 2, LAYOUT) for motion in recorded]
    given = [with_jumps(each, FRAMES, rng, scale=np.full(6, 0.35)) for each in made]
    return Answers(made, given, recorded)


def test_each_way_is_a_row_beside_the_recorded_people(answers):
    rows = smoothing_table(answers, SMOOTHERS, FRAMES)
    assert list(rows) == [RECORDED, *SMOOTHERS, LATE]
    for group in ("rot", "trans"):
        assert rows[RECORDED][f"variance_ratio/{group}"] == 1
        assert rows["none"][f"jump/{group}"] > 3 > rows["inertialise"][f"jump/{group}"]
        jerk = f"jerk_ratio/{group}"
        assert rows["inertialise"][jerk] < rows["none"][jerk] / 3
    table = tabulate_smoothing(rows, "")
    assert table.row_count == len(rows["none"]) and len(table.columns) == 1 + len(rows)


def test_what_is_kept_is_of_the_policy_and_all_else_of_people(answers):
    whole = Answers(answers.made, answers.made, answers.recorded)
    row = smoothing_table(whole, SMOOTHERS, FRAMES)["none"]
    assert row["variance_kept/rot"] == 1
    assert row["variance_ratio/rot"] == pytest.approx(1 / 4), "half the motion"
    assert row["path_ratio/rot"] == row["jerk_ratio/rot"] == pytest.approx(1 / 2)


def test_a_way_that_stops_the_head_is_seen_to(answers):
    row = smoothing_table(answers, {"frozen": Frozen()}, FRAMES)["frozen"]
    assert row["jump/rot"] < 1, "it has no seam"
    assert row["path_ratio/rot"] < 0.1 and row["variance_within/rot"] < 0.1
    with pytest.raises(ValueError, match="no motion to smooth"):
        smoothing_table(Answers([], [], []), SMOOTHERS, FRAMES)


def test_answers_are_broken_where_windows_meet_and_nowhere_else(tiny_corpus):
    policy = untrained(tiny_corpus)
    asked = Smoothed(policy, 8, tiny_corpus)
    as_made = asked.answers(SmoothConfig(), "test", 3)
    assert as_made.given is as_made.made
    config = SmoothConfig.model_validate({"smooth": {"jumps": 0.7}})
    broken = asked.answers(config, "test", 3)
    for made, again, given in zip(as_made.made, broken.made, broken.given, strict=True):
        np.testing.assert_array_equal(made.values, again.values)
        moved = np.abs(np.diff(given.group("rot") - made.group("rot"), axis=0)).max(axis=1)
        at = np.flatnonzero(moved > 1e-6) + 1
        np.testing.assert_array_equal(at, np.arange(8, len(made), 8))
        np.testing.assert_array_equal(made.group("expr"), given.group("expr"))


SIZES = ["smooth.train_clips=8", "smooth.clips=4", "posnet.steps=3", "posnet.hidden=8"]


def test_one_command_tabulates_and_leaves_a_posnet(tiny_corpus, tmp_path, capsys):
    untrained(tiny_corpus).save(tmp_path / "policy")
    keys = [f"policy={tmp_path / 'policy'}", *SIZES]
    keys += ["corpus.kind=parquet", f"corpus.root={tiny_corpus.path}"]
    assert main(["smooth", *keys, "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = summary["metrics"]["smooth"]
    assert list(rows) == [RECORDED, *SMOOTHERS, POSNET, LATE]
    assert rows["none"]["variance_kept/rot"] == 1
    assert summary["counts"]["window_frames"] == 8, "ReactFace's own"
    net = PosNet.load(tmp_path / "run" / summary["artifacts"]["posnet"])
    assert (net.frames, net.hidden) == (8, 8)
    printed = capsys.readouterr().out
    assert "variance_kept/trans" in printed and "4 answers of reactface" in printed


def test_the_corpus_is_that_of_the_run(tmp_path, capsys):
    (tmp_path / "summary.json").write_text(json.dumps({"artifacts": {"corpus": "corpus"}}))
    with pytest.raises(RunError, match=r"its corpus is no longer where .* corpus.root=FOLDER"):
        corpus_of(tmp_path)
    (tmp_path / "corpus").mkdir()
    assert corpus_of(tmp_path) == tmp_path / "corpus"
    assert corpus_of(None) is None
    assert main(["smooth", f"policy={tmp_path}", "corpus.seconds=4", "--print-config"]) == 2
    assert "policy=RUN_DIR brings its own corpus" in capsys.readouterr().err


def test_a_policy_that_has_no_live_form_is_asked_for_the_length_of_its_windows(
    tiny_corpus, tmp_path, capsys
):
    layout = tiny_corpus.layout
    Gaussian(layout, 8, torch.zeros(4 * layout.dim)).save(tmp_path / "own")
    assert main(["smooth", f"policy={tmp_path / 'own'}"]) == 2
    assert "smooth.frames=FRAMES" in capsys.readouterr().err
