"""What `--help` prints: every key of a schema with its type, default and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import indent, wrap
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from llmtrain.config.data import Source
from llmtrain.config.sections import Section, iter_keys
from llmtrain.config.which import verb_of


def help_text(schema: type[Section], *others: type[Section]) -> str:
    """Every key with its type, default and meaning; of other schemas of the same verb, the keys that differ."""
    usage = (
        "CONFIG is a YAML file, or a name that `llmtrain configs` lists; a key has dots, as in optim.lr=1e-4; a value\n"
        "is YAML. The keys:"
    )
    lines = [f"usage: llmtrain {verb_of(schema)} CONFIG [key=value ...]", "", schema.__doc__ or "", "", usage, ""]
    described = _keys(schema)
    lines += [line for each in described.values() for line in each]
    for other in others:
        keys = _keys(other)
        lines += ["", other.__doc__ or "", "", *_difference(described, keys)]
        changed = {key for key in described.keys() & keys.keys() if described[key] != keys[key]}
        described = keys | described | {key: [] for key in changed}  # two meanings above: the next one is shown anyway
    lines += ["", "A source is a path, or a mapping of these keys:", ""]
    for name, field in Source.model_fields.items():
        lines += _help_lines(name, field)
    return "\n".join(lines)


def _keys(schema: type[Section]) -> dict[str, list[str]]:
    return {key: _help_lines(key, field) for key, field in iter_keys(schema)}


def _difference(described: Mapping[str, list[str]], keys: Mapping[str, list[str]]) -> list[str]:
    """What a schema has besides the keys above, or otherwise than there, and what it lacks of them."""
    lines = ["The keys above, but for these, which are new or not the same:", ""]
    lines += [line for key, each in keys.items() if described.get(key) != each for line in each]
    missing = ", ".join(key for key in described if key not in keys)
    return [*lines, "", *wrap(f"and without: {missing}", 120)] if missing else lines


def _help_lines(key: str, field: FieldInfo) -> list[str]:
    default = "required" if field.is_required() else f"default {yaml_scalar(field.default)}"
    return [f"{key}  ({type_name(field)}; {default})", indent(field.description or "", "    ")]


def yaml_scalar(value: Any) -> str:
    """A value as it would be written in the YAML file."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def type_name(field: FieldInfo) -> str:
    """A field's type as a user writes it: `int`, `'auto'|'never'`, `list[Source]`."""
    return "|".join(name for name in _type_names(field.annotation) if name != "NoneType")


def _type_names(annotation: Any) -> list[str]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type_names(get_args(annotation)[0])
    if origin is Literal:
        return [repr(choice) for choice in get_args(annotation)]
    if origin in (Union, UnionType):
        return [name for option in get_args(annotation) for name in _type_names(option)]
    if origin is None:
        return [annotation.__name__ if isinstance(annotation, type) else str(annotation)]
    inner = ", ".join("|".join(_type_names(argument)) for argument in get_args(annotation))
    return [f"{origin.__name__}[{inner}]"]
