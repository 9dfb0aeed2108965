"""A protocol: the metrics of one paper or repository, computed as it computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

Variant = Literal["reference", "corrected"]


def require_variant(variant: str) -> None:
    """Raise `ValueError` unless `variant` is one."""
    if variant not in get_args(Variant):
        raise ValueError(f"unknown variant {variant!r}, expected one of {list(get_args(Variant))}")


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a protocol scores. Shapes and types are in the docstring of each protocol's `score`.

    Args:
        pred: what a policy predicted.
        target: what was recorded; None where a protocol has no target.
        partner: the other person's motion, or None.
        neighbours: which recorded reactions are appropriate to which speaker, or None.
        speech_mask: who speaks when, or None.
        fps: frames per second of plain arrays, or None.
        variant: "reference" = the published number, bug for bug; "corrected" = with the protocol's
            `corrections`.
        seed: of what is drawn at random.

    Raises:
        ValueError: an unknown variant.
    """

    pred: Any
    target: Any = None
    partner: Any = None
    neighbours: Any = None
    speech_mask: Any = None
    fps: float | None = None
    variant: Variant = "reference"
    seed: int = 0

    def __post_init__(self) -> None:
        require_variant(self.variant)

    @property
    def is_corrected(self) -> bool:
        """Whether the corrected variant is asked for."""
        return self.variant == "corrected"

    def refuse(self, protocol: str, *names: str) -> None:
        """Raise `ValueError` when one of the inputs `names` is there, which `protocol` ignores."""
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"protocol {protocol} makes no use of {name}: leave it out")


@dataclass(frozen=True)
class Protocol:
    """How one published evaluation turns clips into numbers.

    Args:
        name: what `rapport.rewards.metrics.evaluate` calls it.
        source: the repository or paper that it reproduces, one line.
        corrections: every deviation of the variant `corrected` by name -> what it does differently.
        score: from the inputs to metric name -> value.
    """

    name: str
    source: str
    corrections: dict[str, str]
    score: Callable[[Inputs], dict[str, float]]
