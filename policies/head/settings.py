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
