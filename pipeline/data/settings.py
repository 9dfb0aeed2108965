"""Which corpus, and how its clips are cut."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from rapport.settings import Section


class CorpusConfig(Section):
    kind: Literal["synthetic", "dualtalk", "lm_listener", "parquet"] = "synthetic"
    """synthetic dyads, DualTalk's or lm-listener's published files, or a corpus `prepare` wrote"""
    root: Path | None = None
    """folder of the files (dualtalk, lm_listener, parquet); not used by synthetic"""
    seconds: float = Field(4.0, gt=0)
    """length of a clip, seconds"""
    stride: float = Field(1.0, gt=0)
    """seconds between starts of clips cut from a recording (dualtalk, lm_listener)"""
    train_clips: int = Field(1024, ge=1)
    """training clips to generate (synthetic)"""
    test_clips: int = Field(96, ge=1)
    """held-out clips to generate (synthetic)"""
    image_size: int = Field(56, ge=14)
    """speaker frames: height and width, pixels"""
    frames: int = Field(4, ge=0)
    """speaker frames per clip, evenly spaced; 0 = none"""
    seed: int = 0
    """seed of the generator (synthetic)"""

    def moot(self) -> dict[str, tuple[str, ...]]:
        """What is generated is not cut, and the other way round."""
        generated = ("train_clips", "test_clips", "image_size", "frames", "seed")
        kind = f"corpus.kind={self.kind}"
        if self.kind == "synthetic":
            return {f"{kind} is generated, not read": ("root", "stride")}
        if self.kind == "parquet":
            return {f"{kind} takes the clips as they are there": ("stride", *generated)}
        return {f"{kind} takes what the files have": generated}
