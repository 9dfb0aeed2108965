"""From YAML and `key=value` to typed settings, and back.

A value is looked up in this order: `key=value` on the command line, the file given with `--config`,
the default written beside the component. The defaults are the `tiny` size, which needs no asset and
no GPU. Sections stand beside their components; `pipeline/settings.py` puts them together.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rapport.settings import ConfigError, Section

MAPPING = "mapping"  # type of a key that has keys of the user's own below it
RENAMED = {"policy": "vla"}  # sections that were called something else


class TrackingConfig(Section):
    uri: str | None = None
    """MLflow URI; empty = runs/mlflow.db beside the run folders (SQLite)"""
    experiment: str = "rapport"
    """MLflow experiment"""
    system_metrics: bool = True
    """log CPU, memory and disk during the run"""


class StorageConfig(Section):
    uri: str | None = None
    """where finished phases are copied, under the run directory's name: s3://bucket/runs, a
    folder, anything fsspec knows (s3 needs s3fs); `--resume` fetches a run directory that is
    not there"""


class RecipeConfig(Section):
    """What every recipe takes."""

    seed: int = 0
    """seeds data order, initial weights, sampling and simulated raters"""
    tracking: TrackingConfig = TrackingConfig()
    storage: StorageConfig = StorageConfig()

    def unheeded(self) -> dict[str, str]:
        """Keys that were changed and that a run with this config does not read: key -> why."""
        fields = type(self).model_fields
        defaults = _flat({name: field.get_default() for name, field in fields.items()})
        own = _flat({name: getattr(self, name) for name in fields})
        changed = [key for key, value in own.items() if defaults.get(key) != value]
        return {
            key: why
            for moot, why in _moot_keys(self)
            for key in changed
            if f"{key}.".startswith(f"{moot}.")
        }


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    plain = {
        name: value.model_dump() if isinstance(value, Section) else value
        for name, value in values.items()
    }
    return flatten(plain)


def _moot_keys(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """`moot` of a section and of those in it: dotted keys, with why."""
    for why, keys in section.moot().items():
        yield from ((prefix + key, why) for key in keys)
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _moot_keys(value, f"{prefix}{name}.")


ConfigType = TypeVar("ConfigType", bound=RecipeConfig)


def load_config(recipe: type[ConfigType], file: Path | None, overrides: list[str]) -> ConfigType:
    """Defaults, then `file`, then `key=value` overrides.

    Raises:
        ConfigError: names the key and what would be valid, or why an override would do nothing. A
            key of `file` may do nothing, as it may serve several runs; `unheeded` tells of it.
    """
    kinds = {key: kind for key, kind, *_ in describe(recipe)}
    values: dict[str, Any] = {}
    given: list[str] = []
    if file is not None:
        values = read_yaml(file)
        for key in flatten(values):
            _require_known(kinds, key, f"in {file}")
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not key=value")
        key = present_name(key)
        _require_known(kinds, key, "on the command line")
        set_key(values, key, _read_value(key, raw))
        given.append(key)
    try:
        config = recipe.model_validate(values)
    except ValidationError as error:
        lines = [_problem(problem, recipe) for problem in error.errors()]
        raise ConfigError("invalid configuration:\n" + "\n".join(lines)) from None
    for key, why in config.unheeded().items():
        if key in given:
            raise ConfigError(f"{key} would not be heeded: {why}. Leave it out")
    return config


def _problem(problem: Any, recipe: type[RecipeConfig]) -> str:
    where = ".".join(map(str, problem["loc"])) or recipe.__name__
    return f"  {where}: {problem['msg']} (got {_short(problem['input'])})"


def chosen_policy(file: Path | None, overrides: list[str]) -> str | None:
    """Which policy `policy=NAME` or `file` asks for; None = neither does.

    Raises:
        ConfigError: what the file has there is no name.
    """
    named = [text.partition("=")[2] for text in overrides if text.startswith("policy=")]
    if named:
        return named[-1]
    name = None if file is None else read_yaml(file).get("policy")
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"{file}: policy is a name, and not {name!r}")
    return name


def chosen_storage(file: Path | None, overrides: list[str]) -> str | None:
    """Where `storage.uri=URI` or `file` has runs copied to; None = neither does."""
    named = [text.partition("=")[2] for text in overrides if text.startswith("storage.uri=")]
    if named:
        return named[-1]
    uri = None if file is None else flatten(read_yaml(file)).get("storage.uri")
    return None if uri is None else str(uri)


def present_name(key: str) -> str:
    """A key as it is called now: `policy.hidden` of earlier versions is `vla.hidden`."""
    section, dot, rest = key.partition(".")
    return f"{RENAMED[section]}.{rest}" if dot and section in RENAMED else key


def describe(
    recipe: type[BaseModel], prefix: str = "", own: Section | None = None
) -> list[tuple[str, str, str, str]]:
    """`(key, type, default, meaning)` of every leaf key, in order.

    Args:
        recipe: the config.
        prefix: of the keys.
        own: whose values are the defaults; None = those that the config gives.
    """
    rows = []
    for name, field in recipe.model_fields.items():
        default = field.get_default() if own is None else getattr(own, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            rows += describe(field.annotation, f"{prefix}{name}.", default)
        else:
            shown = "" if field.is_required() and own is None else _scalar(default)
            rows.append((prefix + name, _type_name(field.annotation), shown, _meaning(field)))
    return rows


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def to_yaml(config: RecipeConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def commented_yaml(config: BaseModel, indent: str = "") -> str:
    """The config as YAML with every key's meaning beside it; `load_config` reads it back."""
    lines = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            lines.append(f"{indent}{name}:\n{commented_yaml(value, indent + '  ')}")
        else:
            # In one line, because a comment follows.
            style = None if isinstance(value, (list, dict)) else False
            only = config.model_dump(mode="json", include={name})
            plain = yaml.safe_dump(only, default_flow_style=style, width=1000).strip()
            lines.append(f"{indent}{plain}  # {_meaning(field)}\n")
    return "".join(lines)


def _read_value(key: str, raw: str) -> Any:
    try:
        return yaml.safe_load(raw)  # nothing after the = means empty
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}={raw} is not YAML: {error}") from None


def read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"no config file {file}")
    try:
        values = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold a mapping of keys to values")
    for old, new in RENAMED.items():
        if isinstance(values.get(old), dict):
            values[new] = values.pop(old)
    return values


def _require_known(kinds: Mapping[str, str], key: str, where: str) -> None:
    if any(
        key == known or (kind == MAPPING and key.startswith(known + "."))
        for known, kind in kinds.items()
    ):
        return
    raise ConfigError(f"unknown key {key!r} {where}; {near_keys(key, list(kinds))}")


def near_keys(key: str, known: list[str]) -> str:
    """What somebody who wrote `key` may have meant."""
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    near = near or [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    return f"nearest: {', '.join(near)}" if near else "run with --help for the list"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one mapping of dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= (
            flatten(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}
        )
    return flat


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested sections."""
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[leaf] = value


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is dict:
        return MAPPING
    parts = [a for a in get_args(annotation) if a is not type(None)]
    if parts:
        return "|".join(_type_name(p) for p in parts) + (
            " or empty" if len(parts) < len(get_args(annotation)) else ""
        )
    return annotation.__name__.lower()


def _scalar(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
