"""What of the learner needs no process group: the schedule and the file of steps."""

import importlib
import json
import subprocess
import sys

import pytest

from rapport.actors.learner import _first_cause, _lines_after, _truncate, schedule, without


def test_schedule_by_hand():
    # 100 steps: 5 of warm-up, then half a cosine from 1 to 0.1 over 95 steps.
    assert [schedule(i, 100) for i in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert schedule(5, 100) == pytest.approx(1.0)
    assert schedule(5 + 19, 100) == pytest.approx(
        0.1 + 0.9 * 0.5 * (1 + 0.80901699)
    )  # a fifth of the way: cos 36
    assert schedule(99, 100) == pytest.approx(0.1, abs=1e-3)


def test_schedule_of_very_short_runs():
    assert schedule(0, 1) == 1.0
    assert [schedule(i, 3) for i in range(3)] == pytest.approx([1.0, 1.0, 0.55])


def test_schedule_rises_once_and_falls_once():
    values = [schedule(i, 200) for i in range(200)]
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1]) and values[top:] == sorted(
        values[top:], reverse=True
    )
    assert min(values) > 0


@pytest.fixture
def steps(tmp_path):
    file = tmp_path / "steps.jsonl"
    file.write_text("".join(json.dumps({"step": i, "loss": 1 / i}) + "\n" for i in (1, 2, 3)))
    return file


def test_lines_come_once_and_a_half_written_one_waits(steps):
    assert [line["step"] for line in _lines_after(steps, 0)] == [1, 2, 3]
    with steps.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in _lines_after(steps, 2)] == [3]
    with steps.open("a") as file:
        file.write('ss": 0.5}\n')
    assert _lines_after(steps, 3) == [{"step": 4, "loss": 0.5}]
    assert _lines_after(steps, 4) == [] and _lines_after(steps.with_name("none.jsonl"), 0) == []


def test_a_resumed_learner_drops_what_it_will_do_again(steps):
    _truncate(steps, 2)
    assert [json.loads(line)["step"] for line in steps.read_text().splitlines()] == [1, 2]
    _truncate(steps, 0)
    assert steps.read_text() == ""
    _truncate(steps.with_name("none.jsonl"), 0)
    assert not steps.with_name("none.jsonl").exists()


def test_the_line_that_a_killed_learner_left_unfinished_is_dropped(steps):
    with steps.open("a") as file:
        file.write('{"step": 4, "lo')
    _truncate(steps, 3)
    assert [json.loads(line)["step"] for line in steps.read_text().splitlines()] == [1, 2, 3]
    assert steps.read_text().endswith("\n")


def test_the_workers_own_error_is_raised():
    own, wrapped = ValueError("loss is nan"), RuntimeError("worker group failed")
    wrapped.worker_failures = {1: own}
    assert _first_cause(wrapped) is own
    assert _first_cause(own) is own


def test_a_module_can_be_hidden_from_imports_but_not_one_that_is_there(tmp_path, monkeypatch):
    (tmp_path / "heavy_library.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with without("heavy_library"), pytest.raises(ImportError):
        importlib.import_module("heavy_library")
    heavy = importlib.import_module("heavy_library")
    with without("heavy_library"):
        assert importlib.import_module("heavy_library") is heavy


def test_learners_of_the_flow_policy_do_not_import_encoders_nor_tracking():
    """They cost every learner ten seconds of its start."""
    tasks = ", ".join(
        f"rapport.pipeline.objectives.{name}" for name in ("vae", "flow", "dpo", "gdpo")
    )
    heavy = "('transformers', 'mlflow', 'scipy')"
    code = f"import sys, {tasks}; print([name for name in {heavy} if name in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "[]\n"
    )
