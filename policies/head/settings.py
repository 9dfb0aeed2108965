"""Which head is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rapport.settings import Section


class HeadConfig(Section):
    path: Path | None = None
    """FLAME 2020/2023 model file; empty = the built-in CC0 head"""
    topology: Literal["flame2020", "flame2023"] | None = None
    """which FLAME the file is, when it does not say so itself"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """The built-in head says what it is."""
        if self.path is not None:
            return {}
        return {"without head.path the head is the built-in one": ("topology",)}
