"""`export`: a folder that anybody can host, in which an AR-Flow listens in a visitor's browser.

Nothing that a visitor says leaves their browser: ONNX Runtime computes there what a server else
does. There is no server, only files.
"""

from __future__ import annotations

from pathlib import Path

from rapport.files import atomic
from rapport.pipeline.rundir import Phase, PhaseResult, Run, phase
from rapport.pipeline.settings import ExportConfig
from rapport.pipeline.steps.exporting import check_step, open_export, write_folder


def run(config: ExportConfig, run: Run) -> None:
    """Write the folder."""
    export(run, config)


@phase("export")
def export(step: Phase, config: ExportConfig) -> PhaseResult:
    """The step is written, held against PyTorch's, and laid beside the page."""
    exported = open_export(config)
    folder = config.out or step.directory / "site"
    step.say(f"{exported.policy.kind} policy of {exported.folder}; writing its step takes a minute")
    with atomic(folder) as unfinished:
        write_folder(exported, unfinished)
        off = check_step(exported, unfinished, config.seed)
        size = sum(file.stat().st_size for file in unfinished.rglob("*") if file.is_file())
    step.say(f"frames are PyTorch's to {off:.1e} standard deviations")
    step.say(f"{folder}: {size / 1e6:.0f} MB; to see it: python -m http.server -d {folder}")
    return PhaseResult(
        artifacts={"site": Path(folder)},
        engines={"listener": f"{exported.policy.kind}, {exported.folder}"},
        metrics={"difference": off, "megabytes": size / 1e6},
    )
