"""A file beside a task's rows that says more about them: statistics of occupations, whom a stereotype is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain.config.data import Source
from llmtrain.data.sources.files import Files, resolve_rows
from llmtrain.data.sources.items import iter_items
from llmtrain.data.sources.rows import Row, Wanted
from llmtrain.tasks.task import Beside, BiasTask, RowFault, text_of


def read_beside(task: BiasTask, source: Source) -> Mapping[tuple[str, ...], Mapping[str, Any]]:
    """Key -> the fields that the file adds to rows of that key; empty without such a file.

    Raises ValueError, naming the line, for a row in another form.
    """
    if task.beside is None or (path := file_beside(task.beside, source)) is None:
        return {}
    found: dict[tuple[str, ...], Mapping[str, Any]] = {}
    here = Source(path=str(path))
    for row in iter_items(here, resolve_rows(here), Wanted(lambda row: True)):
        if not isinstance(row, Row):
            raise ValueError(f"{path}: cannot be read beside {task.name}'s rows")
        try:
            key = tuple(text_of(row.fields, name) for name in task.beside.key)
            found[key] = {name: value(row.fields) for name, value in task.beside.fields.items()}
        except RowFault as fault:
            raise ValueError(f"{row.where}: not in the form of {path.name} of {task.name}: {fault}") from None
    for_all = {name: value(list(found.values())) for name, value in task.beside.of_all.items()}
    return {key: {**fields, **for_all} for key, fields in found.items()}


def file_beside(beside: Beside, source: Source) -> Path | None:
    """In the folder of the rows, or in one next to it, the file; None if it is in none."""
    location = resolve_rows(source)
    if not isinstance(location, Files):
        return None
    for folder in dict.fromkeys(path.parent for path in location.paths):
        places = [folder / beside.name, *sorted(folder.resolve().parent.glob(f"*/{beside.name}"))]
        if there := [place for place in places if place.is_file()]:
            return there[0]
    return None
