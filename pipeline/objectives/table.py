"""What learning tasks have in common that train on the rows of a table (part of a `learner.Task`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from rapport.policies.tables import read_table


class TableTask:
    """Base of frozen dataclasses with `table`, a file of `write_table`, and `config`, their section
    of the config.
    """

    table: str
    config: Any
    refresh_every: int | None = None

    @property
    def steps(self) -> int:
        return self.config.steps

    @property
    def learning_rate(self) -> float:
        return self.config.learning_rate

    @property
    def weight_decay(self) -> float:
        return self.config.weight_decay

    @cached_property
    def rows(self) -> Any:
        return read_table(Path(self.table))

    def refresh(
        self,
        forward: Callable[..., Any],
        state: dict[str, Tensor],
        step: int,
        rank: int,
        world_size: int,
    ) -> dict[str, float]:
        return {}

    def prepare(self, forward: Callable[..., Any], rank: int, world_size: int) -> None:
        pass
