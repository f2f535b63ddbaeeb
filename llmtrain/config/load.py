"""A configuration from the command line: a YAML file and dotted overrides in, validated sections out.

Only this module parses options; `sections.py`, `rl.py` and `recipes.py` say what they may be.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from llmtrain.config.nearest import unknown_key
from llmtrain.config.sections import Section
from llmtrain.config.shipped import find_config
from llmtrain.config.which import refuse_other_recipe, verb_of
from llmtrain.system.files import FREE_RUN, one_line, read_text, write_bytes
from llmtrain.system.visible import require_unicode, shortened, visible

Config = TypeVar("Config", bound=Section)

TYPES = {
    "str": "a text",
    "list[str]": "a list of texts",
    "list[int]": "a list of integers",
    "dict[str,any]": "a mapping",
}
"""What pydantic calls the types of a union, in words."""
MOST_VALUES = 1_000_000
"""Values that YAML may hold, counted as often as its aliases repeat them."""
HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of a surrogate pair; the others are bytes of names, no UTF-8
USAGE = "usage: llmtrain {} CONFIG [key=value ...]; `llmtrain {} --help` lists every key"


@dataclass(frozen=True)
class Given:
    """What a command line gives, read once, since its file may be a pipe."""

    path: str
    file: Mapping[str, Any]
    tree: dict[str, Any]  # of the file, with the overrides


def load_config(schema: type[Config], argv: Sequence[str]) -> Config:
    """Read `CONFIG.yaml [key=value ...]` into a validated configuration.

    Raises ValueError naming the file and line, or the dotted key, and what is allowed; or the recipe that the file is a
    configuration of, if it is another.
    """
    return config_of(schema, read_given(argv, verb_of(schema)))


def read_given(argv: Sequence[str], verb: str) -> Given:
    """Read `CONFIG.yaml [key=value ...]`; `verb`: of the command, for messages.

    Raises ValueError naming the file and line, or the key.
    """
    file = _read_file(argv, verb)
    return Given(argv[0], file, _overridden(file, argv[1:]))


def config_of(schema: type[Config], given: Given) -> Config:
    """The configuration that a command line gives. Raises ValueError as `load_config` does."""
    _require_characters(given.tree, ())
    try:
        return validate(schema, given.tree)
    except ValueError:
        refuse_other_recipe(schema, given.path, given.file, given.tree)
        raise


def load_tree(argv: Sequence[str], verb: str) -> dict[str, Any]:
    """Read `CONFIG.yaml [key=value ...]` into a plain tree. Raises ValueError as `read_given` does."""
    return read_given(argv, verb).tree


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
            value = parsed_yaml(text)
        except ValueError as error:
            raise ValueError(f"override {shortened(override)!r}: the value is {error}") from None
        set_dotted(tree, key.strip(), value)
    return tree


def validate(schema: type[Config], tree: dict[str, Any]) -> Config:
    """A configuration from a plain tree. Raises ValueError with every fault found, in one line."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(schema, fault) for fault in _without_branches(error.errors()))) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ValueError naming the file and line."""
    try:
        text = read_text(Path(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the configuration {path}: {error}") from None
    try:
        tree = parsed_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: not a mapping of sections")
    return tree


def parsed_yaml(text: str) -> Any:
    """The value that YAML holds. Raises ValueError saying what is wrong with it."""
    try:
        return _whole_characters(_loaded(text))
    except RecursionError:
        raise ValueError("nested too deeply to be read") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:  # of a date, a number, a tag
        raise ValueError(f"not valid YAML: {one_line(error)}") from None


def _loaded(text: str) -> Any:
    """The value that YAML holds. Raises ValueError if aliases make it too large: 26 lines can mean 2^26 letters."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None and _num_values(node, {}) > MOST_VALUES:
            raise ValueError(f"its aliases (*NAME) repeat more than {MOST_VALUES:,} values: write out what is meant")
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds. Raises RecursionError for one that holds itself."""
    if id(node) not in known:
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        held = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_num_values(each, known) for each in held)
    return known[id(node)]


def save_config(config: Section, path: str | Path) -> None:
    """Write the resolved configuration, defaults included, so that it can be run again: whole or not at all."""
    text = yaml_text(config.model_dump())
    write_bytes(Path(path), text.encode("utf-8"), FREE_RUN)


def yaml_text(tree: Any) -> str:
    """A tree as YAML that reads back as it is; letters of all languages, and what cannot be seen as YAML's escapes."""
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return text if visible(text) == text else yaml.safe_dump(tree, sort_keys=False)


def _whole_characters(value: Any) -> Any:
    """A value with the halves of a surrogate pair joined, as in JSON, which writes an emoji as two escapes.

    A half alone stays, for reports of a run that has one.
    """
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole_characters(each) for each in value]
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _require_characters(value: Any, key: tuple[str, ...]) -> None:
    """Raise ValueError for a text with half of a surrogate pair that is no byte of a file's name."""
    if isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            _require_characters(each, (*key, str(name)))
    elif isinstance(value, str) and HALF.search(value):
        require_unicode(value, f"{'.'.join(key)}: the text")


def set_dotted(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a tree, making its sections. Raises ValueError if one of them holds a value."""
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


def _without_branches(faults: Sequence[Any]) -> list[Any]:
    """The faults, of a value that fits no type of a union one in place of one for each type.

    Pydantic has them at `rewards.0.str` and `rewards.0.dict[str,any]`.
    """
    found: list[Any] = []
    types: dict[tuple[Any, ...], list[str]] = {}
    for fault in faults:
        at = next((i for i, part in enumerate(fault["loc"]) if part in TYPES), None)
        if at is None:
            found.append(fault)
            continue
        place = fault["loc"][:at]
        if place not in types:
            types[place] = []
            found.append({**fault, "loc": place})
        types[place].append(TYPES[fault["loc"][at]])
    given = {place: f"Give {' or '.join(dict.fromkeys(names))}" for place, names in types.items()}
    return [{**fault, "msg": given.get(fault["loc"], fault["msg"])} for fault in found]


def _explain(schema: type[Section], fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        return unknown_key(schema, location)
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] in ("model_type", "model_attributes_type"):
        return f"{key} is a section: give its keys, as in {key}: {{...}}, not {_quoted(fault['input'])}"
    message = fault["msg"].removeprefix("Value error, ")
    if not key or (fault["type"] == "value_error" and not location):
        return message
    given = fault["input"]
    shown = f"={_quoted(given)}" if isinstance(given, (str, int, float, bool, type(None))) else ""
    return f"{key}{shown}: {message[0].lower()}{message[1:]}"


def _quoted(given: Any) -> str:
    """A value as it was given; a long or deep one in part."""
    try:
        return shortened(repr(given))
    except RecursionError:
        return "one that is nested too deeply"
    except ValueError:  # Python writes no number of thousands of digits
        return "a number of thousands of digits"
