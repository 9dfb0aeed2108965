"""`smooth`: ways to join a policy's windows, side by side, and a PosNet for it (PFLPosNet, 4.2).

It needs no Ray: the policy answers in this process.
"""

from __future__ import annotations

from rapport.pipeline.rundir import Run
from rapport.pipeline.settings import SmoothConfig
from rapport.pipeline.steps.smoothing import compare, learn_posnet, smoothed


def run(config: SmoothConfig, run: Run) -> None:
    """Learn a PosNet on the policy's answers, and hold it beside what learns nothing."""
    asked = smoothed(run, config)
    posnet = learn_posnet(run, config, asked).artifacts["posnet"]
    compare(run, config, asked, posnet)
