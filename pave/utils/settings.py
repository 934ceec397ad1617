"""Merge YAML and key=value over frozen dataclasses; every error is one line with the nearest valid name."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from pave.types import UserError
from pave.utils.registry import nearest

if TYPE_CHECKING:
    from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


class Renames(NamedTuple):
    """Settings and values of an older version under their present names."""

    keys: Mapping[str, Mapping[str, str]]
    """By section, `sides` for all entries of `sides`."""
    values: Mapping[str, Mapping[str, str]]
    """By the present name of their setting."""


class Layer(NamedTuple):
    """Values that go over those of earlier layers."""

    origin: str
    """File or override, for messages."""
    values: object


def read_yaml(path: Path, interpolate: bool) -> object:
    """Read a YAML file. Without `interpolate`, `${...}` is text: the file is data, perhaps a stranger's.

    Raises UserError for broken YAML or a broken interpolation.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        if interpolate:
            return OmegaConf.to_container(OmegaConf.load(path))
        return keep_as_text(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def keep_as_text(value: object) -> object:
    """Escape `${...}` in all texts of a tree, which OmegaConf would else replace, e.g. by an environment variable."""
    if isinstance(value, dict):
        return {key: keep_as_text(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [keep_as_text(entry) for entry in value]
    if isinstance(value, str):
        return escape(value)
    return value


def escape(text: str) -> str:
    """Escape `${...}` in one text, with the backslashes before it."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def rename_old_settings(values: object, renames: Renames) -> object:
    """Put the settings of an older version under their present names and values."""
    if not isinstance(values, dict):
        return values

    renamed = _rename_section(values, "", renames)
    assert isinstance(renamed, dict)
    for section in renames.keys:
        table = values.get(section)
        if section == "sides" and isinstance(table, dict):
            renamed[section] = {name: _rename_section(entry, section, renames) for name, entry in table.items()}
        elif section in values:
            renamed[section] = _rename_section(table, section, renames)
    return renamed


def _rename_section(table: object, section: str, renames: Renames) -> object:
    if not isinstance(table, dict):
        return table
    renamed: dict[str, object] = {}
    for old_key, value in table.items():
        key = renames.keys[section].get(old_key, old_key)
        renamed[key] = renames.values.get(key, {}).get(value, value) if isinstance(value, str) else value
    return renamed


def parse_overrides(overrides: Sequence[str], literal: bool = False) -> list[Layer]:
    """Read `key=value` texts; `literal` keeps `${...}` as text. Raises UserError for a text without `=`."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    layers = []
    for override in overrides:
        if "=" not in override:
            raise UserError(f"'{override}': expected key=value, for example train.learning_rate=1e-4")
        try:
            values = OmegaConf.from_dotlist([escape(override) if literal else override])
        except (YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"'{override}': not a value: {' '.join(str(error).split())}") from error
        layers.append(Layer(override, OmegaConf.to_container(values)))
    return layers


def merge(schema: type[T], layers: Sequence[Layer], renames: Renames | None = None) -> T:
    """Merge layers over the defaults of a dataclass. Raises UserError for an unknown name or value."""
    from omegaconf import OmegaConf, read_write
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    merged = OmegaConf.structured(schema)
    for origin, values in layers:
        if not isinstance(values, dict):
            raise UserError(f"{origin}: holds a {type(values).__name__}, expected settings by name")
        try:
            merged = OmegaConf.merge(merged, values)
            if values.get("sides") == {}:
                # Merging takes no entry out; an empty table says that there are none.
                with read_write(merged):
                    merged.sides = {}
        except (ConfigKeyError, ConfigAttributeError) as error:
            raise UserError(f"{origin}: {_explain_key(error, renames)}") from error
        except OmegaConfBaseException as error:
            raise UserError(f"{origin}: {_explain_value(error, renames)}") from error

    try:
        settings = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{layers[0].origin}: {_explain_value(error, renames)}") from error
    assert isinstance(settings, schema)
    return settings


def check_minima(prefix: str, values: Mapping[str, float | None], minima: Mapping[str, float]) -> None:
    """Raises UserError for a number that is too small or not finite; None passes."""
    for name, minimum in minima.items():
        value = values[name]
        if value is not None and not minimum <= value < math.inf:
            raise UserError(f"{prefix}{name}={value}: expected a number, {minimum:g} at least")


def _explain_key(error: OmegaConfBaseException, renames: Renames | None) -> str:
    """One line about an unknown setting: its present name, or the nearest one."""
    section, _, _ = str(error.full_key).rpartition(".")
    present = renames.keys.get(section.partition(".")[0], {}).get(str(error.key)) if renames else None
    if present:
        return f"'{error.full_key}' is now '{section}{'.' if section else ''}{present}'"
    assert error.object_type is not None
    names = [field.name for field in dataclasses.fields(error.object_type)]
    return f"unknown key '{error.full_key}'; {nearest(str(error.key), names)}"


def _explain_value(error: OmegaConfBaseException, renames: Renames | None) -> str:
    """One line about a value that does not fit: its present name, the nearest one, or the type expected."""
    text = str(error).splitlines()[0]
    if not error.full_key:
        return text
    value = error.value
    if error.object_type is not None and isinstance(value, str):
        present = renames.values.get(str(error.key), {}).get(value) if renames else None
        if present:
            return f"'{error.full_key}={value}' is now '{present}'"
        choices = list(_choices(typing.get_type_hints(error.object_type).get(str(error.key))))
        if choices:
            return f"'{error.full_key}' cannot be '{value}'; {nearest(value, choices)}"
    return f"'{error.full_key}': {text}"


def _choices(hint: object) -> Iterator[str]:
    """The values of a Literal, also of an optional one."""
    for kind in (hint, *typing.get_args(hint)):
        if typing.get_origin(kind) is Literal:
            yield from typing.get_args(kind)
