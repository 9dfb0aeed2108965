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
# Significant digits of a sampled value, which names folders and is copied into configs by hand.
DIGITS = 4


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

        if self.listed:
            return tune.choice(list(self.values))
        return getattr(tune, self.kind)(*self.values)


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
    problem = _list_problem(kind, values) if domain.listed else _range_problem(kind, values)
    if problem is not None:
        raise SpaceError(f"tune.space.{key}={text}: {problem}")
    return domain


def _list_problem(kind: str, values: list[Any]) -> str | None:
    """What is wrong with the values of choice or grid."""
    nested = any(isinstance(value, (list, dict)) for value in values)
    if not values or nested or len(set(values)) < len(values):
        return f"expected {FORMS[kind]}, at least one value and each once"
    return None


def _range_problem(kind: str, values: list[Any]) -> str | None:
    """What is wrong with the bounds of uniform, loguniform or randint."""
    numbers = (int,) if kind == "randint" else (int, float)
    if len(values) != 2 or not all(type(value) in numbers for value in values):
        whole = "whole " if kind == "randint" else ""
        return f"expected {FORMS[kind]}, two {whole}numbers"
    low, high = values
    if low >= high or (kind == "loguniform" and low <= 0):
        return f"it is empty; expected {FORMS[kind]}, LOW < HIGH"
    return None


def _number(value: Any) -> Any:
    """A number that YAML takes for a text, such as 1e-4; other values as they are."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?e[-+]?\d+", value):
        return float(value)
    return value


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
    """What a trial is called everywhere.

    Trials of equal values are one trial, because they would give the same numbers.
    """
    return ",".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in sorted(values.items())
    )
