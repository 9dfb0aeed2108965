"""What dynamics rewards compare, and how much each FLAME group counts."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from rapport.settings import Section


class EnergyWeights(Section):
    """Weights of the components of the energy form."""

    mean: float = Field(default=1.0, ge=0)
    """where the face is on average: who somebody is, and what a prompt says"""
    path: float = Field(default=1.0, ge=0)
    """where it is at the time, smoothed: what answers the speaker"""
    slow: float = Field(default=1.0, ge=0)
    """how lively it is within 8 to 2 s"""
    middle: float = Field(default=1.0, ge=0)
    """within 2 to .5 s"""
    fast: float = Field(default=1.0, ge=0)
    """faster than that: too much of it is trembling"""
    range: float = Field(default=1.0, ge=0)
    """what lies outside the corpus' limits: grimaces"""


class PaperWeights(Section):
    """Weights of the components of the paper's form; it gives no values."""

    positional_variance: float = Field(default=1.0, ge=0)
    """standard deviations over time"""
    velocity_variance: float = Field(default=1.0, ge=0)
    """those of frame-to-frame differences"""
    mean_drift: float = Field(default=1.0, ge=0)
    """means over time"""
    mse: float = Field(default=1.0, ge=0)
    """the position at every frame"""


class RewardConfig(Section):
    """What the dynamics rewards compare, for every FLAME group by itself."""

    form: Literal["energy", "paper"] = "energy"
    """energy = distance to the recorded listener less that to the other samples; paper = the
    former alone"""
    energy: EnergyWeights = EnergyWeights()
    paper: PaperWeights = PaperWeights()

    @property
    def weights(self) -> dict[str, float]:
        """Component -> weight, of the form that is used."""
        section: Section = getattr(self, self.form)
        return {name: weight for name, weight in section.model_dump().items() if weight}

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not self.weights or not all(np.isfinite(list(self.weights.values()))):
            raise ValueError(
                f"the weights of reward.{self.form} must be finite and not all 0, got "
                f"{getattr(self, self.form).model_dump()}"
            )
        return self

    def moot(self) -> dict[str, tuple[str, ...]]:
        """The other form's weights."""
        other = "paper" if self.form == "energy" else "energy"
        return {f"reward.form={self.form}": (other,)}


class GroupWeightsConfig(Section):
    """lambda_i of the FLAME groups (Eq. 9); one that the corpus lacks has no reward."""

    expr: float = Field(default=1.0, ge=0)
    """expression coefficients"""
    jaw: float = Field(default=1.0, ge=0)
    """jaw rotation"""
    neck: float = Field(default=1.0, ge=0)
    """neck rotation"""
    eyelid: float = Field(default=1.0, ge=0)
    """eyelid closure; in clips so short that most have no blink, the penalty is least without"""
    eyepose: float = Field(default=1.0, ge=0)
    """eye rotations"""
    rot: float = Field(default=1.0, ge=0)
    """global head rotation"""
    trans: float = Field(default=1.0, ge=0)
    """head translation; the paper's corpus has none"""
