"""A configuration from the command line: a YAML file and dotted overrides in, validated sections out.

Only this module parses options; what they may be is said in `config.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from llmtrain.config.sections import Section, Source, iter_keys

Config = TypeVar("Config", bound=Section)


def load_config(schema: type[Config], argv: Sequence[str]) -> Config:
    """Read `CONFIG.yaml [key=value ...]` into a validated configuration.

    Raises ValueError naming the file and line, or the dotted key, and what is allowed.
    """
    return validate(schema, load_tree(argv))


def load_tree(argv: Sequence[str]) -> dict[str, Any]:
    """Read `CONFIG.yaml [key=value ...]` into a plain tree. Raises ValueError naming the file and line, or the key."""
    if not argv or "=" in argv[0]:
        raise ValueError("usage: CONFIG.yaml [key=value ...]; --help lists every key")
    tree = read_yaml(argv[0])
    for override in argv[1:]:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r} is not of the form key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"override {override!r}: the value is not valid YAML: {_oneline(error)}") from None
        _set_dotted(tree, key.strip(), value)
    return tree


def sections_of(argv: Sequence[str]) -> set[str]:
    """The sections that a command line gives, in its file and its overrides; of what cannot be read, none."""
    try:
        tree = read_yaml(argv[0]) if argv and "=" not in argv[0] else {}
    except ValueError:  # told when the configuration is loaded
        tree = {}
    return {*tree, *(override.split(".")[0].split("=")[0] for override in argv[1:])}


def validate(schema: type[Config], tree: dict[str, Any]) -> Config:
    """A configuration from a plain tree. Raises ValueError with one line for every fault found."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(schema, fault) for fault in error.errors())) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ValueError naming the file and line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the configuration {path}: {error}") from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {_oneline(error)}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: holds no sections")
    return tree


def save_config(config: Section, path: str | Path) -> None:
    """Write the resolved configuration, defaults included, so that it can be run again."""
    Path(path).write_text(yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def help_text(schema: type[Section]) -> str:
    """What `--help` prints: every key with its type, default and meaning."""
    usage = "Arguments: CONFIG.yaml [key=value ...], a key with dots, a value in YAML. The keys:"
    lines = [schema.__doc__ or "", "", usage, ""]
    for key, field in iter_keys(schema):
        lines += _help_lines(key, field)
    lines += ["", "A source is a path, or a mapping of these keys:", ""]
    for name, field in Source.model_fields.items():
        lines += _help_lines(name, field)
    return "\n".join(lines)


def _help_lines(key: str, field: FieldInfo) -> list[str]:
    default = "required" if field.is_required() else f"default {yaml_scalar(field.default)}"
    return [f"{key}  ({_type_name(field)}; {default})", f"    {field.description or ''}"]


def yaml_scalar(value: Any) -> str:
    """A value as it would be written in the YAML file."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _type_name(field: FieldInfo) -> str:
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


def _set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = tree
    for i, parent in enumerate(parents):
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ValueError(f"override {key}: {'.'.join(parents[: i + 1])} is not a section")
        node = child
    node[leaf] = value


def _explain(schema: type[Section], fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        known = [name for name, _ in iter_keys(schema)]
        known += sorted({name.rsplit(".", 1)[0] for name in known if "." in name})
        if any(part.isdigit() for part in location):  # a key of one of several sources
            known = [".".join([*location[:-1], name]) for name in Source.model_fields]
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        return f"unknown key {key}: the nearest is {nearest[0]}" if nearest else f"unknown key {key}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if not key or (fault["type"] == "value_error" and not location):
        return message
    given = fault["input"]
    shown = f"={given!r}" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"{key}{shown}: {message[0].lower()}{message[1:]}"


def _oneline(error: Exception) -> str:
    return " ".join(str(error).split())
