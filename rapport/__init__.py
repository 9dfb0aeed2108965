"""Rapport: listening faces, aligned with people's preferences.

    from rapport import Corpus, Motion, evaluate, load_head, load_policy

Metrics need neither torch nor Ray; what does is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout the packages stand beside this folder; in a wheel they are inside it.
_CHECKOUT = Path(__file__).resolve().parents[1]
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "pipeline" / "run.py").is_file():
    __path__.append(str(_CHECKOUT))

if TYPE_CHECKING:
    from rapport.pipeline.data.store import Corpus
    from rapport.policies.head.asset import load_head
    from rapport.policies.motion import Motion
    from rapport.policies.policy import load_policy
    from rapport.rewards.metrics import evaluate

_HOMES = {
    "Corpus": "rapport.pipeline.data.store",
    "Motion": "rapport.policies.motion",
    "evaluate": "rapport.rewards.metrics",
    "load_head": "rapport.policies.head.asset",
    "load_policy": "rapport.policies.policy",
}
__all__ = ["Corpus", "Motion", "evaluate", "load_head", "load_policy"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rapport' has no {name!r}, only {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
