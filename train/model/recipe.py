"""Recipes: YAML files read into dataclasses. Unknown keys, missing keys and wrong types are refused by name."""

import dataclasses
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml

from ..files import write_text

T = TypeVar("T")


def read_recipe(kind: type[T], path: str | pathlib.Path, overrides: Iterable[str] = ()) -> T:
    """Reads a YAML file, with overrides `key.subkey=value`, as the dataclass `kind`.

    Raises ValueError for an override of another form and for everything that `make_dataclass` refuses.
    """
    values = yaml.safe_load(pathlib.Path(path).read_text(encoding="utf-8")) or {}
    for override in overrides:
        key, equals, value = override.partition("=")
        *parents, last = key.split(".")
        part = values
        for parent in parents:
            if part.get(parent) is None:
                part[parent] = {}
            part = part[parent]
            if not isinstance(part, dict):
                raise ValueError(f"{override!r}: {parent} is {part!r}, which has no keys.")
        if not equals or not last:
            raise ValueError(f"{override!r}: expected key.subkey=value.")
        part[last] = yaml.safe_load(value)
    return make_dataclass(kind, values)


def make_dataclass(kind: type[T], values: Mapping[str, Any], name: str = "") -> T:
    """Makes the dataclass `kind` of a mapping; a field that is a dataclass itself is made of a nested mapping.

    Numbers, strings and truth values are checked; "1e-3", which YAML takes for a string, is a float. Raises ValueError
    with the full name of a key, after `name`, that is unknown, missing or of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{name or kind.__name__}: expected keys and values, got {values!r}.")
    hints, prefix = typing.get_type_hints(kind), f"{name}." if name else ""
    fields = {entry.name: entry for entry in dataclasses.fields(kind) if entry.init}
    for key in values:
        if key not in fields:
            raise ValueError(f"{prefix}{key}: unknown key; expected one of {', '.join(fields)}.")
    for key, entry in fields.items():
        if key not in values and entry.default is entry.default_factory is dataclasses.MISSING:
            raise ValueError(f"{prefix}{key}: missing; this key has no default.")
    return kind(**{key: _convert(value, hints[key], prefix + key) for key, value in values.items()})


def _convert(value: Any, hint: Any, name: str) -> Any:
    """A value as its annotation wants it: a dataclass, a scalar of the right type, or anything else as it is."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    choices = typing.get_args(hint) if union else (hint,)
    if value is None and type(None) in choices:
        return None
    nested = [choice for choice in choices if dataclasses.is_dataclass(choice)]
    if nested:
        return make_dataclass(nested[0], value, name)
    scalars = tuple(choice for choice in choices if choice in (bool, int, float, str))
    if len(scalars) < len([choice for choice in choices if choice is not type(None)]) or type(value) in scalars:
        return value  # lists, mappings and whatever else a field may hold are for the dataclass to check
    if float in scalars and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    expected = " or ".join("null" if choice is type(None) else choice.__name__ for choice in choices)
    raise ValueError(f"{name}={value!r}: expected {expected}.")


def write_recipe(recipe: Any, path: str | pathlib.Path) -> None:
    """Writes a recipe as it was run, overrides and defaults included."""
    write_text(path, yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True))
