"""What `--help` prints: every key of a schema with its type, default and meaning."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from llmtrain.config.data import Source
from llmtrain.config.sections import Section, iter_keys


def help_text(schema: type[Section]) -> str:
    """Every key with its type, default and meaning."""
    usage = (
        "Arguments: CONFIG [key=value ...]. CONFIG is a YAML file, or a name that `llmtrain configs` lists; a key has "
        "dots,\nas in optim.lr=1e-4; a value is YAML. The keys:"
    )
    lines = [schema.__doc__ or "", "", usage, ""]
    for key, field in iter_keys(schema):
        lines += _help_lines(key, field)
    lines += ["", "A source is a path, or a mapping of these keys:", ""]
    for name, field in Source.model_fields.items():
        lines += _help_lines(name, field)
    return "\n".join(lines)


def _help_lines(key: str, field: FieldInfo) -> list[str]:
    default = "required" if field.is_required() else f"default {yaml_scalar(field.default)}"
    return [f"{key}  ({type_name(field)}; {default})", f"    {field.description or ''}"]


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
