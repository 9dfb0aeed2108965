"""Typed settings: every component has a `Section` beside it, and recipes put sections together."""

from __future__ import annotations

import ipaddress
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class ConfigError(ValueError):
    """The configuration cannot be used; the message says which key and what would be valid."""


def is_loopback(host: str) -> bool:
    """Whether a name or an address can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(host: str, port: int) -> str:
    """Where somebody listens; an address of IPv6 stands in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Section(BaseModel):
    """Settings of one component. The sentence under a field is what `--help` says about its key."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def moot(self) -> dict[str, tuple[str, ...]]:
        """Keys of this section that nothing reads as others are set: why -> which.

        A key may be of a section in this one, or such a section as a whole.
        """
        return {}

    @model_validator(mode="before")
    @classmethod
    def _keep_own_defaults(cls, values: Any) -> Any:
        """A section of which some keys are given keeps the defaults `cls` has for the others."""
        if not isinstance(values, dict):
            return values
        merged = dict(values)
        for name, field in cls.model_fields.items():
            own, given = field.default, values.get(name)
            if isinstance(own, Section) and isinstance(given, dict):
                merged[name] = own.model_dump(exclude_unset=True) | given
        return merged
