"""What a sweep varies: `key=loguniform(0.01, 1)` as a distribution, before anything runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

FORMS = {
    "uniform": "uniform(LOW, HIGH)",
    "loguniform": "loguniform(LOW, HIGH), LOW > 0",
    "randint": "randint(LOW, HIGH), HIGH left out",
    "choice": "choice(A, B, ...)",
    "grid": "grid(A, B, ...)",
}
DIGITS = 4  # significant, of a sampled value: it is typed into configs and names folders


class SpaceError(ValueError):
    """A search space cannot be used; the message names the key and what would be valid."""


@dataclass(frozen=True)
class Domain:
    """The values that one config key may take.

    Args:
        kind: a key of `FORMS`, named as in Ray Tune.
        values: bounds of uniform, loguniform and randint; all values of choice and grid.
    """

    kind: str
    values: tuple[Any, ...]

    @property
    def listed(self) -> bool:
        return self.kind in ("choice", "grid")

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that are valid only if all are."""
        return (self.values[0], self.values[1] - 1) if self.kind == "randint" else self.values

    def sampler(self) -> Any:
        """The same for Ray Tune."""
        from ray import tune

        return (
            tune.choice(list(self.values))
            if self.listed
            else getattr(tune, self.kind)(*self.values)
        )


def parse_domain(key: str, text: str) -> Domain:
    """`loguniform(0.01, 1)` and the like. Raises `SpaceError`."""
    match = re.fullmatch(r"\s*(\w+)\((.*)\)\s*", text)
    forms = "; ".join(FORMS.values())
    if match is None or match[1] not in FORMS:
        raise SpaceError(f"tune.space.{key}={text}: expected one of {forms}")
    kind = match[1]
    try:
        values = yaml.safe_load(f"[{match[2]}]")
    except yaml.YAMLError:
        raise SpaceError(
            f"tune.space.{key}={text}: its values cannot be read; expected {FORMS[kind]}"
        ) from None
    values = [_number(value) for value in values]
    domain = Domain(kind, tuple(values))
    if domain.listed:
        if (
            not values
            or any(isinstance(v, (list, dict)) for v in values)
            or len(set(values)) < len(values)
        ):
            raise SpaceError(
                f"tune.space.{key}={text}: expected {FORMS[kind]}, at least one value and each once"
            )
        return domain
    number, whole = ((int,), "whole ") if kind == "randint" else ((int, float), "")
    if len(values) != 2 or any(not isinstance(v, number) or isinstance(v, bool) for v in values):
        raise SpaceError(f"tune.space.{key}={text}: expected {FORMS[kind]}, two {whole}numbers")
    low, high = values
    if low >= high or (kind == "loguniform" and low <= 0):
        raise SpaceError(
            f"tune.space.{key}={text}: it is empty; expected {FORMS[kind]}, LOW < HIGH"
        )
    return domain


def _number(value: Any) -> Any:
    """YAML takes 1e-4 for a text."""
    return (
        float(value)
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?e[-+]?\d+", value)
        else value
    )


def grid_points(space: Mapping[str, Domain]) -> Iterator[dict[str, Any]]:
    """Every combination, the last key fastest."""
    for values in itertools.product(*(domain.values for domain in space.values())):
        yield dict(zip(space, values, strict=True))


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sampled values with as many digits as anybody would type."""
    return {
        key: float(f"{v:.{DIGITS}g}") if isinstance(v, float) else v for key, v in values.items()
    }


def trial_name(values: Mapping[str, Any]) -> str:
    """What a trial is called everywhere. Trials of equal values are one: they would come to the
    same numbers.
    """
    return ",".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in sorted(values.items())
    )
