"""What held-out reactions are judged by."""

from __future__ import annotations

from pydantic import Field

from rapport.settings import Section


class HeldOutConfig(Section):
    prompts: int = Field(96, ge=1)
    """held-out prompts (fewer if the corpus has fewer)"""
    samples: int = Field(4, ge=1)
    """reactions per prompt"""


class BootstrapConfig(Section):
    bootstrap: int = Field(2000, ge=100)
    """bootstrap resamples of the confidence intervals"""


class ComparisonConfig(HeldOutConfig, BootstrapConfig):
    """Held-out prompts whose scores are compared."""


class EvaluationConfig(ComparisonConfig):
    clips: int = Field(4, ge=0)
    """videos of held-out clips: speaker, ground truth and policies side by side; 0 = none"""


class MovementConfig(Section):
    steps: int = Field(10, ge=1)
    """denoise steps of the ODE that held-out windows are generated with"""
    omega_speak: float = Field(1.0, ge=0)
    """guidance where the actor speaks (Eq. 6); 1 = none"""
    omega_listen: float = Field(1.0, ge=0)
    """guidance elsewhere: the expressiveness slider"""
    ablations: bool = True
    """also judge the aligned policy without text, with 4 denoise steps, and without anything
    after the present frame (as in Table 4)"""
    omegas: list[float] = [3.0]
    """guidance scales whose effect on listeners is measured"""
    long_frames: int = Field(3600, ge=1)
    """frames of the sequence whose last window is compared with its first (the paper's)"""
    windows: int = Field(192, ge=1)
    """held-out windows (fewer if the corpus has fewer)"""
    clips: int = Field(6, ge=0)
    """held-out listeners in the report, before and after; 0 = none"""
