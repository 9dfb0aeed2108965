"""What held-out reactions are judged by."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rapport.policies.flow.settings import Solver, denoise_steps
from rapport.settings import Section


class HeldOutConfig(Section):
    prompts: int = Field(64, ge=1)
    """held-out prompts (fewer if the corpus has fewer)"""
    samples: int = Field(4, ge=1)
    """reactions per prompt"""


class BootstrapConfig(Section):
    split: Literal["validation", "test"] = "test"
    """whose reactions are judged: validation's for all that is chosen, test's for the one number
    that is reported"""
    bootstrap: int = Field(2000, ge=100)
    """bootstrap resamples of the confidence intervals"""


class ComparisonConfig(HeldOutConfig, BootstrapConfig):
    """Held-out prompts whose scores are compared."""


class EvaluationConfig(ComparisonConfig):
    clips: int = Field(4, ge=0)
    """videos of held-out clips: speaker, ground truth and policies side by side; 0 = none"""


class CurveConfig(Section):
    points: int = Field(2, ge=0)
    """times that a round is judged on the validation split, after equal parts of its steps: what
    the rating that was optimised has come to, beside the numbers that were not; 0 = never"""
    prompts: int = Field(32, ge=1)
    """validation prompts of a point (fewer if the corpus has fewer)"""
    samples: int = Field(2, ge=1)
    """reactions per prompt of a point"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """Nobody is asked."""
        return {} if self.points else {"curve.points=0 draws no curve": ("prompts", "samples")}


class StudyConfig(Section):
    prompts: int = Field(0, ge=0)
    """held-out prompts whose answers people are given to rate, methods side by side and blind
    (Table III); 0 = no package"""
    forms: int = Field(2, ge=1)
    """forms of the package, to be shared out among raters: each has an order of its own"""
    methods: list[str] = []
    """who is rated, by their names in the table; empty = recorded listeners and all policies"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """Nothing is handed out."""
        return {} if self.prompts else {"study.prompts=0 hands nothing out": ("forms", "methods")}


class SmoothSection(Section):
    split: Literal["validation", "test"] = "test"
    """whose speakers are answered: validation's for all that is chosen, test's for what is
    reported"""
    clips: int = Field(128, ge=1)
    """answers that are smoothed (fewer if the split has fewer moments)"""
    train_clips: int = Field(512, ge=1)
    """answers that PosNet learns on (fewer if there are fewer)"""
    frames: int | None = Field(None, ge=2)
    """frames of a window; empty = what a live session of the policy is given at once"""
    jumps: float = Field(0.0, ge=0)
    """standard deviations by which the head is put elsewhere in each window, to see what smoothers
    do where there is something to mend; 0 = answers stay as they are"""


class MovementConfig(Section):
    solver: Solver = "midpoint"
    """rule of the ODE that held-out windows are generated with; euler is the paper's"""
    evaluations: int = Field(10, ge=1)
    """evaluations of the velocity a latent: midpoint takes two a denoise step, euler one"""
    omega_speak: float = Field(1.0, ge=0)
    """guidance where the actor speaks (Eq. 6); 1 = none"""
    omega_listen: float = Field(1.0, ge=0)
    """guidance elsewhere: the expressiveness slider"""
    ablations: bool = True
    """also judge the aligned policy without text and with 4 evaluations (as in Table 4), and
    both policies by how long they wait: leads of 0, 4 and 12 frames, and the whole window"""
    omegas: list[float] = [3.0]
    """guidance scales whose effect on listeners is measured"""
    long_frames: int = Field(3600, ge=1)
    """frames of the sequence whose last window is compared with its first (the paper's)"""
    windows: int = Field(192, ge=1)
    """held-out windows (fewer if the corpus has fewer)"""
    clips: int = Field(6, ge=0)
    """held-out listeners in the report, before and after; 0 = none"""

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        denoise_steps(self.solver, self.evaluations)
        return self
