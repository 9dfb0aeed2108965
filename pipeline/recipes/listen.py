"""`listen`: a listener's motion for a recording of one's own, by the steps of a live session.

It has a run directory as every recipe, and no Ray: one process hears a recording from its beginning
to its end, and all of its samples share a pass.
"""

from __future__ import annotations

import time
from pathlib import Path

from rapport.pipeline.rundir import Phase, PhaseResult, Run, phase
from rapport.pipeline.settings import ListenConfig
from rapport.pipeline.steps.listener_files import write_files
from rapport.pipeline.steps.listening import answer, begin, open_session, smoother_of


def run(config: ListenConfig, run: Run) -> None:
    """Listen, and write what the listener did."""
    listen(run, config)


@phase("listen")
def listen(step: Phase, config: ListenConfig) -> PhaseResult:
    """Every sample is a session with a seed of its own; they hear the same."""
    session = open_session(config)
    step.say(f"{session.policy.kind} policy of {session.name}")
    step.say(f"{session.recording.path}: {session.recording.seconds:.2f} s, hears {session.hears}")
    states = begin(session, config)
    smoother = smoother_of(config.smoother, session.policy.layout)
    started = time.monotonic()
    answered = answer(session, states, step.say, smoother)
    taken = time.monotonic() - started
    step.say(
        f"{session.frames} frames, {session.recording.seconds / taken:.1f} times as fast as it was "
        f"said; live they would be shown {answered.delay:g} s later"
    )
    files: dict[str, Path] = {}
    folder = config.out or step.directory
    for path in write_files(config, session.recording, answered.motions, folder):
        step.say(str(path))
        files[path.name] = path
    return PhaseResult(
        artifacts=files,
        counts={"listeners": config.samples, "frames": session.frames * config.samples},
        engines={"listener": f"{session.policy.kind}, {session.name}"},
        metrics={
            "seconds": session.recording.seconds,
            "delay_s": answered.delay,
            "times_real_time": session.recording.seconds / taken,
            "hears": session.hears,
        },
    )
