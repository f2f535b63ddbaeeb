"""A configuration from the command line: a YAML file and dotted overrides in, validated sections out.

Only this module parses options; `sections.py`, `rl.py` and `recipes.py` say what they may be.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from llmtrain.config.nearest import unknown_key
from llmtrain.config.sections import Section
from llmtrain.config.shipped import find_config
from llmtrain.config.which import refuse_other_recipe, verb_of
from llmtrain.system.files import FREE_RUN, one_line, write_bytes

Config = TypeVar("Config", bound=Section)

USAGE = "usage: llmtrain {} CONFIG [key=value ...]; `llmtrain {} --help` lists every key"


def load_config(schema: type[Config], argv: Sequence[str]) -> Config:
    """Read `CONFIG.yaml [key=value ...]` into a validated configuration.

    Raises ValueError naming the file and line, or the dotted key, and what is allowed; or the recipe that the file is a
    configuration of, if it is another.
    """
    file = _read_file(argv, verb_of(schema))
    tree = _overridden(file, argv[1:])
    try:
        return validate(schema, tree)
    except ValueError:
        refuse_other_recipe(schema, argv[0], file, tree)
        raise


def load_tree(argv: Sequence[str], verb: str) -> dict[str, Any]:
    """Read `CONFIG.yaml [key=value ...]` into a plain tree; `verb`: of the command, for messages.

    Raises ValueError naming the file and line, or the key.
    """
    return _overridden(_read_file(argv, verb), argv[1:])


def _read_file(argv: Sequence[str], verb: str) -> dict[str, Any]:
    """The tree of the file that a command line names first."""
    usage = USAGE.format(verb, verb)
    if not argv or "=" in argv[0]:
        raise ValueError(usage)
    if argv[0].startswith("-"):
        raise ValueError(f"unknown option {argv[0]}; {usage}")
    return read_yaml(find_config(argv[0]))


def _overridden(file: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a file's tree with `key=value` overrides in it; the last of a key counts."""
    tree = copy.deepcopy(dict(file))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"override {override!r} is not of the form key=value")
        if key.startswith("-"):
            raise ValueError(f"override {override!r}: write it without dashes, {override.lstrip('-')}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"override {override!r}: the value is not valid YAML: {one_line(error)}") from None
        _set_dotted(tree, key.strip(), value)
    return tree


def validate(schema: type[Config], tree: dict[str, Any]) -> Config:
    """A configuration from a plain tree. Raises ValueError with every fault found, in one line."""
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
        raise ValueError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: not a mapping of sections")
    return tree


def save_config(config: Section, path: str | Path) -> None:
    """Write the resolved configuration, defaults included, so that it can be run again: whole or not at all."""
    text = yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
    write_bytes(Path(path), text.encode("utf-8"), FREE_RUN)


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
        return unknown_key(schema, location)
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] in ("model_type", "model_attributes_type"):
        return f"{key} is a section: give its keys, as in {key}: {{...}}, not {fault['input']!r}"
    message = fault["msg"].removeprefix("Value error, ")
    if not key or (fault["type"] == "value_error" and not location):
        return message
    given = fault["input"]
    shown = f"={given!r}" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"{key}{shown}: {message[0].lower()}{message[1:]}"
