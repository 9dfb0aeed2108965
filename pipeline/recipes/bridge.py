"""`bridge`: a server's listener hears somebody, and other programs show its face as it moves."""

from __future__ import annotations

import asyncio

from rapport.pipeline.rundir import Phase, PhaseResult, Run, phase
from rapport.pipeline.serve.bridge import bridge
from rapport.pipeline.settings import BridgeConfig


def run(config: BridgeConfig, run: Run) -> None:
    """Listen and send, until nothing more is said."""
    send(run, config)


@phase("bridge")
def send(step: Phase, config: BridgeConfig) -> PhaseResult:
    """One session, in real time."""
    done = asyncio.run(bridge(config, step.say))
    if done.simulated:
        step.say(f"{done.policy} was trained on synthetic people")
    if done.late:
        step.say(
            f"{done.late} of {done.frames + done.late} frames came after their time and were not "
            f"sent: a longer buffer_s than {config.buffer_s:g} waits for them"
        )
    return PhaseResult(
        counts={"chunks": done.chunks, "frames": done.frames, "late": done.late},
        engines={"listener": f"{done.policy}, {config.server}"},
        metrics={
            "delay_s": done.delay_s,
            "sessions": done.sessions,
            "simulated": done.simulated,
            "places": done.places,
        },
    )
