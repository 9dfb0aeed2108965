"""A cluster that is only imagined."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rapport.settings import Section


class PlanConfig(Section):
    """An imaginary cluster of equal nodes."""

    nodes: int | None = Field(None, ge=1)
    """number of nodes; empty = no plan, look at the real cluster"""
    gpus: int = Field(0, ge=0)
    """GPUs of a node"""
    cpus: int | None = Field(None, ge=1)
    """CPU cores of a node; empty = 16 for each GPU, 2 without"""
    memory_gib: float = Field(24, gt=0)
    """memory of a node, GiB; counts where there are no GPUs"""
    gpu_memory_gib: float = Field(80, gt=0)
    """memory of a GPU, GiB"""
    device: Literal["a100", "h100"] = "h100"
    """GPU whose speed is assumed"""
    bench: list[Path] = []
    """bench.json files of `bench rollout`, `dpo`, `render` on such a machine, instead of
    defaults"""

    @model_validator(mode="after")
    def _has_nodes(self) -> PlanConfig:
        given = self.model_dump(exclude_defaults=True)
        if self.nodes is None and given:
            raise ValueError(
                f"plan.{next(iter(given))} describes nodes, plan.nodes must say how many"
            )
        return self
