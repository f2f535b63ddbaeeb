"""What `eval.tasks` and `eval.general_text` name, read once per configuration: to refuse it, then to measure it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from textwrap import wrap

from llmtrain.config.sections import EvalConfig
from llmtrain.tasks.rows import TaskRow, TaskRows, key_of, read_task, read_tasks, task_source, with_unique_keys
from llmtrain.tasks.texts import TEXT

GENERAL_TEXT = "general_text"
GENERAL_CHARS = 1000  # of a piece of general text: one long document is several items, whose losses differ


@dataclass(frozen=True)
class Items:
    """The items that a run measures."""

    tasks: list[TaskRows]
    general_text: TaskRows | None  # None: none is named


_READ: dict[int, tuple[EvalConfig, Items]] = {}
"""By the identity of a configuration, which is kept, so that no other one gets it."""


def items_of(config: EvalConfig) -> Items:
    """The items that a configuration asks for. Raises ValueError, naming the key or the row."""
    if id(config) not in _READ:
        tasks = read_tasks(config.tasks, "eval.tasks", config.task_data, config.task_items)
        _READ[id(config)] = config, Items(tasks, _general_text(config))
    return _READ[id(config)][1]


def _general_text(config: EvalConfig) -> TaskRows | None:
    if config.general_text is None:
        return None
    task = replace(TEXT, name=GENERAL_TEXT)
    try:
        read = read_task(task, task_source(task, config.general_text), limit=config.before_after)
    except ValueError as error:
        raise ValueError(f"eval.general_text: {error}") from None
    pieces = (
        TaskRow[object](piece, key_of(piece), row.where, row.fields)
        for row in read.rows
        for piece in _pieces(str(row.item), config.before_after)
    )
    return replace(read, rows=with_unique_keys(list(islice(pieces, config.before_after))))


def _pieces(text: str, count: int) -> list[str]:
    """The beginning of a text in at most so many pieces, cut at white space where there is some."""
    cut = wrap(
        text[: GENERAL_CHARS * count], GENERAL_CHARS, expand_tabs=False, replace_whitespace=False, drop_whitespace=False
    )
    return [piece for piece in cut if piece.strip()]
