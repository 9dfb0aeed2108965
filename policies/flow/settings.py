"""Frozen encoders in front of AR-Flow."""

from __future__ import annotations

from pathlib import Path

from rapport.settings import Section


class EncodersConfig(Section):
    text: str | None = None
    """T5 checkpoint, path or hub name; empty = tiny, random weights"""
    audio: str | None = None
    """wav2vec2 checkpoint, path or hub name; empty = tiny, random weights"""
    cache: Path | None = None
    """folder of their features, a file per clip; empty = in the run folder"""
