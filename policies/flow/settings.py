"""Frozen encoders in front of AR-Flow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from rapport.settings import Section

ENCODERS_FILE = "encoders.json"  # in the folder of a policy


class EncodersConfig(Section):
    text: str | None = None
    """T5 checkpoint, path or hub name; empty = tiny, random weights"""
    audio: str | None = None
    """wav2vec2 checkpoint, path or hub name, which needs a GPU; empty = log-mel bands, which
    AR-Flow learns to hear by itself"""
    cache: Path | None = None
    """folder of their features, a file per clip; empty = in the run folder"""


def write_encoders(folder: Path, config: EncodersConfig) -> None:
    """Say in a checkpoint folder which encoders its policy was trained with."""
    names = config.model_dump(mode="json", include={"text", "audio"})
    (folder / ENCODERS_FILE).write_text(json.dumps(names) + "\n")


def read_encoders(folder: Path) -> EncodersConfig:
    """The encoders of a checkpoint folder."""
    return EncodersConfig(**json.loads((folder / ENCODERS_FILE).read_text()))


Solver = Literal["midpoint", "euler"]
EVALUATIONS: dict[Solver, int] = {"midpoint": 2, "euler": 1}  # of the velocity, a denoise step


def check_window(solver: Solver, evaluations: int, sigma: float, noisy: int) -> None:
    """Whether rollouts can draw `noisy` denoise steps of a sampler anew.

    Raises:
        ValueError: another sigma, or no step without noise at the end.
    """
    if not 0 < sigma <= 1:
        raise ValueError(
            f"sigma is {sigma:g}; it is the share of the remaining noise that is drawn anew, above "
            "0 and at most 1"
        )
    steps = denoise_steps(solver, evaluations)
    if not 1 <= noisy < steps:
        raise ValueError(
            f"{noisy} noisy steps of {steps}: at least 1, and the last one has none; raise the "
            f"{evaluations} evaluations"
        )


def denoise_steps(solver: Solver, evaluations: int) -> int:
    """Denoise steps that so many evaluations of the velocity make.

    Raises:
        ValueError: they make no whole step.
    """
    each = EVALUATIONS[solver]
    if evaluations < each or evaluations % each:
        raise ValueError(
            f"{evaluations} evaluations make no whole denoise steps of the {solver} rule, each of "
            f"which takes {each}"
        )
    return evaluations // each
