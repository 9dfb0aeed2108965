"""`listen`: a listener's motion for a recording of one's own, by the steps of a live session.

It has a run directory as every recipe, and no Ray: one process hears a recording from its beginning
to its end, and all of its samples share a pass.
"""

from __future__ import annotations

import time
from pathlib import Path

from rapport.pipeline.rundir import Phase, PhaseResult, Run, phase
from rapport.pipeline.settings import ListenConfig
from rapport.pipeline.steps.listener_files import FORMATS, Listened
from rapport.pipeline.steps.listening import Answer, Session, answer, open_session


def run(config: ListenConfig, run: Run) -> None:
    """Listen, and write what the listener did."""
    listen(run, config)


@phase("listen")
def listen(step: Phase, config: ListenConfig) -> PhaseResult:
    """Every sample is a session with a seed of its own; they hear the same."""
    session = open_session(config)
    step.say(f"{session.policy.kind} policy of {session.folder}")
    step.say(f"{session.recording.path}: {session.recording.seconds:.2f} s, hears {session.hears}")
    prompt = None if config.text is None else session.policy.told(config.text)
    states = [session.listener.start(config.seed + k, prompt) for k in range(config.samples)]
    started = time.monotonic()
    answered = answer(step, session, states)
    taken = time.monotonic() - started
    step.say(
        f"{session.frames} frames, {session.recording.seconds / taken:.1f} times as fast as it was "
        f"said; live they would be shown {answered.delay:g} s later"
    )
    files = write(config, session, answered, config.out or step.directory)
    for path in files.values():
        step.say(str(path))
    return PhaseResult(
        artifacts=files,
        counts={"listeners": config.samples, "frames": session.frames * config.samples},
        engines={"listener": f"{session.policy.kind}, {session.folder}"},
        metrics={
            "seconds": session.recording.seconds,
            "delay_s": answered.delay,
            "times_real_time": session.recording.seconds / taken,
            "hears": session.hears,
        },
    )


def write(
    config: ListenConfig, session: Session, answered: Answer, folder: Path
) -> dict[str, Path]:
    """Every sample in every format: `listener.npz`, or `listener_0.npz`, `listener_1.npz`, ..."""
    files: dict[str, Path] = {}
    for sample, motion in enumerate(answered.motions):
        name = "listener" if config.samples == 1 else f"listener_{sample}"
        listened = Listened(motion, session.recording, config.head, config.size)
        for form in config.formats:
            path = folder / f"{name}.{form}"
            FORMATS[form](listened, path)
            files[path.name] = path
    return files
