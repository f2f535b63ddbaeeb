"""The configuration of runs, what of it differs from the defaults or between runs, and what they ran on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from markupsafe import Markup
from pydantic_core import PydanticUndefined

from llmtrain.config.sections import Section as Schema
from llmtrain.config.sections import iter_keys
from llmtrain.runs.record import SCHEMAS, RunRecord
from llmtrain.runs.report.html import code, details, join, paragraph, source, table
from llmtrain.runs.report.names import short_names
from llmtrain.runs.report.section import Section
from llmtrain.runs.report.svg import plain

SHOWN_CHARACTERS = 200
NOWHERE = "not set"


def configuration(records: Sequence[RunRecord]) -> Section | None:
    """Of one run the keys that differ from the defaults; of several those that differ between them."""
    body = _of_one(records[0]) if len(records) == 1 else _of_several(records)
    return Section("Configuration", "configuration", body)


def surroundings(records: Sequence[RunRecord]) -> Section | None:
    """Versions, machine and command line of each run."""
    names = short_names([record.folder for record in records])
    parts = [
        details(
            f"Environment of {name}",
            join(
                table(
                    ("what", "value"),
                    [(code(key), plain(_written(value), SHOWN_CHARACTERS)) for key, value in flat(record.environment)],
                ),
                source("environment.json"),
            ),
        )
        for name, record in zip(names, records, strict=True)
        if record.environment
    ]
    return Section("Environment", "environment", join(*parts)) if parts else None


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a tree with its value; lists are values."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def changed_keys(record: RunRecord) -> dict[str, Any]:
    """The keys whose values are not the recipe's defaults; those that have none are always among them."""
    defaults = dict(_defaults(_schema(record)))
    return {
        key: value
        for key, value in flat(record.config)
        if key not in defaults or _plain(defaults[key]) != _plain(value)
    }


def differing_keys(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """The keys whose values differ between runs, with the value of each run."""
    trees = [dict(flat(record.config)) for record in records]
    keys = dict.fromkeys(key for tree in trees for key in tree)
    columns = {key: [tree.get(key, NOWHERE) for tree in trees] for key in keys}
    return {key: values for key, values in columns.items() if any(value != values[0] for value in values[1:])}


def _of_one(record: RunRecord) -> Markup:
    changed = changed_keys(record)
    whole = yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True)
    return join(
        paragraph("Keys that differ from the recipe's defaults:"),
        _keys(changed),
        details("All keys, ready to run again", join(Markup("<pre>{}</pre>").format(whole), source("config.yaml"))),
    )


def _keys(values: Mapping[str, Any]) -> Markup:
    rows = [(code(key), plain(_written(value), SHOWN_CHARACTERS)) for key, value in values.items()]
    return table(("key", "value"), rows)


def _of_several(records: Sequence[RunRecord]) -> Markup:
    names = short_names([record.folder for record in records])
    differing = {key: values for key, values in differing_keys(records).items() if key != "run.dir"}
    rows = [(code(key), *(plain(_written(value), 60) for value in values)) for key, values in differing.items()]
    parts = [
        paragraph("Keys that differ between the runs:") if rows else paragraph("All keys are the same but run.dir."),
        table(("key", *names), rows) if rows else Markup(""),
    ]
    for name, record in zip(names, records, strict=True):
        parts.append(details(f"Keys of {name} that differ from the defaults", _keys(changed_keys(record))))
    return join(*parts, source("config.yaml"))


def _schema(record: RunRecord) -> type[Schema]:
    return next(schema for schema, recipe in SCHEMAS.items() if recipe == record.recipe)


def _defaults(schema: type[Schema]) -> Iterator[tuple[str, Any]]:
    for key, field in iter_keys(schema):
        default = field.get_default(call_default_factory=True, validated_data={})
        if default is not PydanticUndefined:
            yield key, default


def _plain(value: Any) -> Any:
    """A value as YAML gives it back."""
    return json.loads(json.dumps(value, default=str))


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(_brief(_plain(value)), default_flow_style=True, allow_unicode=True, width=1_000_000)
    return text.strip().removesuffix("...").strip()


def _brief(value: Any) -> Any:
    """A value without what its mappings leave empty, such as most keys of a source."""
    if isinstance(value, dict):
        return {name: _brief(each) for name, each in value.items() if each not in (None, [], {})}
    return [_brief(each) for each in value] if isinstance(value, list) else value
