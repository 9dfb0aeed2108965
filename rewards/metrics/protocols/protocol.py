"""A protocol: the metrics of one paper or repository, computed as it computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

Variant = Literal["reference", "corrected"]


@dataclass(frozen=True)
class Protocol:
    """How one published evaluation turns clips into numbers.

    Args:
        name: what `rapport.rewards.metrics.evaluate` calls it.
        source: the repository or paper that it reproduces, one line.
        corrections: every deviation of the variant `corrected` by name -> what it does differently.
        score: (pred, target, partner, *, neighbours, speech_mask, fps, variant, seed) -> metric
            name -> value.
    """

    name: str
    source: str
    corrections: dict[str, str]
    score: Callable[..., dict[str, float]]


def require_variant(variant: str) -> None:
    """Raise `ValueError` unless `variant` is one."""
    if variant not in get_args(Variant):
        raise ValueError(f"unknown variant {variant!r}, expected one of {list(get_args(Variant))}")


def refuse(protocol: str, **inputs: Any) -> None:
    """Raise `ValueError` when an input is given that the protocol makes no use of."""
    for name, value in inputs.items():
        if value is not None:
            raise ValueError(f"protocol {protocol} makes no use of {name}: leave it out")
