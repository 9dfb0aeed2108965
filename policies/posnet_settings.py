"""How a PosNet is trained."""

from __future__ import annotations

from pydantic import Field

from rapport.settings import Section


class PosNetTraining(Section):
    """How a PosNet is trained."""

    hidden: int = Field(512, ge=1)
    """width of its layers; 512 make 1.4 M parameters, as in the paper's code"""
    steps: int = Field(1500, ge=1)
    """optimiser steps"""
    batch_size: int = Field(8, ge=1)
    """motions per step"""
    learning_rate: float = Field(1e-3, gt=0)
    """of Adam, at first; it goes to 0 by a cosine"""
    connect: float = Field(1.0, ge=0)
    """weight of the step over the joint (Eq. 15)"""
    first: float = Field(1.0, ge=0)
    """weight of the steps within a window (Eq. 16)"""
    second: float = Field(0.2, ge=0)
    """weight of how unlike neighbouring steps are (Eq. 17)"""
