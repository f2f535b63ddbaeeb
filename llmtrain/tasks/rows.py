"""A task's data -> its items, in the order of the rows: of a file, of a folder that has the task's file, of the hub."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from random import Random
from typing import Generic, TypeVar

from llmtrain.config.data import Source
from llmtrain.data.sources.compressed import COMPRESSIONS
from llmtrain.data.sources.files import resolve, resolve_rows, whole_source
from llmtrain.data.sources.items import iter_items
from llmtrain.data.sources.readers import READERS
from llmtrain.data.sources.rows import BadRow, Row, Wanted
from llmtrain.data.sources.text import Document
from llmtrain.system.files import error_and_place
from llmtrain.system.paths import local_path
from llmtrain.tasks.beside import read_beside
from llmtrain.tasks.load import TASKS, is_rows, load_task, task_of_rows
from llmtrain.tasks.task import (
    AnswerItem,
    BiasItem,
    BiasTask,
    ChoiceItem,
    ContinuationItem,
    Fields,
    RowFault,
    Task,
    TextTask,
)

ItemType = TypeVar("ItemType")
HELD_OUT = (("test",), ("validation", "valid", "val", "dev"))
"""Words in the names of files, those that are taken first before the others."""


@dataclass(frozen=True)
class TaskRow(Generic[ItemType]):
    """An item, and where it is from."""

    item: ItemType
    key: str  # of what the model is asked, equal in any file
    where: str  # file:line
    fields: Fields


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task that are evaluated, and those that are examples before each."""

    task: Task
    path: str
    rows: Sequence[TaskRow[object]]
    shots: Sequence[TaskRow[object]]

    def example_text(self) -> str:
        """The examples before a prompt, each followed by an empty line; "" without."""
        return "".join(f"{example(self.task, row)}\n\n" for row in self.shots)


def read_task(task: Task, source: Source, *, limit: int | None, shots: int | None = None) -> TaskRows:
    """The items of a task. Its first `shots` rows are examples and not evaluated; None: as many as the task has.

    A `limit` takes the first rows, but of a measure of bias about as many from all over its files.

    Raises ValueError, naming the file and line, for a row in another form, and if no row is left.
    """
    num_shots = task.shots if shots is None else shots
    if isinstance(task, BiasTask):
        if shots:
            raise ValueError(f"--shots={shots}: {task.name} is asked without examples")
        rows, num_shots = spread_blocks(list(_rows(task, source)), limit), 0
    else:
        rows = list(islice(_rows(task, source), None if limit is None else limit + num_shots))
    if not rows:
        raise ValueError(f"{source.path}: holds no rows of {task.name}")
    if len(rows) <= num_shots:
        raise ValueError(
            f"{source.path}: {task.name} finds {len(rows)} rows, of which the first {num_shots} are examples, so that "
            "none is left to evaluate"
        )
    return TaskRows(task, source.path, with_unique_keys(rows[num_shots:]), rows[:num_shots])


def read_tasks(
    words: Sequence[str], key: str, data: str | None, limit: int | None, shots: int | None = None
) -> list[TaskRows]:
    """The items of tasks, each named as TASK, TASK=FILE or FILE of rows.

    A second file of rows of the same kind goes by the file's name. Raises ValueError, naming the `key` or row.
    """
    found: list[TaskRows] = []
    for word in words:
        name, _, file = word.partition("=")
        if is_rows(name):
            task, source = _task_of_file(name), Source(path=name)
        else:
            task = load_task(name, key)
            if task.hub is None and not (file or data):
                raise ValueError(f"{key}: {name} has no data on the hub: name its file, as {name}=FILE")
            source = task_source(task, file or data)
        names = {each.task.name for each in found}
        if is_rows(name) and task.name in names and (stem := Path(name).name.partition(".")[0]) not in {*names, *TASKS}:
            task = replace(task, name=stem)
        if task.name in names:
            raise ValueError(
                f"{key}: {task.name} is there twice, the second time as {word}: measure one of them at a time, or give "
                "one a name by a task of yours (FILE.py)"
            )
        found.append(read_task(task, source, limit=limit, shots=shots))
    return found


def _task_of_file(path: str) -> Task:
    try:
        return task_of_rows(first_row(path))
    except RowFault as fault:
        raise ValueError(f"{path}: {fault}") from None


def first_row(path: str) -> Fields:
    """The first row of a file. Raises ValueError if it has none."""
    source = Source(path=path)
    for row in iter_items(source, resolve_rows(source), Wanted(lambda row: True)):
        if isinstance(row, BadRow):
            raise ValueError(row.message)
        if isinstance(row, Row):
            return row.fields
    raise ValueError(f"{path}: holds no rows")


def task_source(task: Task, data: str | None) -> Source:
    """Where a task's rows are: in a file, in a folder by the task's name, else on the hub. Raises ValueError."""
    if data is None:
        if task.hub is None:
            raise ValueError(f"{task.name} has no data on the hub: name its file, as {task.name}=FILE or by --data")
        return Source(path=task.hub.path, split=task.hub.split, subset=task.hub.subset)
    folder = local_path(data)
    if not folder.is_dir() or isinstance(task, TextTask):
        return whole_source(data)
    if task.has_many_files:
        return _files_in(folder, task)
    return Source(path=str(_file_in(folder, task)))


def example(task: Task, row: TaskRow[object]) -> str:
    """An item with its right answer, as an example before others. Raises ValueError if the row has none."""
    match row.item:
        case ChoiceItem(contexts, continuations, gold, _):
            return contexts[gold] + continuations[gold]
        case ContinuationItem(context, continuation):
            return context + continuation
        case AnswerItem(prompt, answer) if answer is not None:
            return prompt + answer
    raise ValueError(f"{row.where}: {task.name} has no answer to show as an example: set --shots 0")


def _file_in(folder: Path, task: Task) -> Path:
    """The one file in a folder, or below it, that is called after a task, or is in a folder called so."""
    names = {_plain(name) for name in (task.name, *task.aliases)}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _kind(path) in READERS)
    found = [path for path in files if _plain(path.name.partition(".")[0]) in names]
    found = found or [path for path in files if any(_plain(part) in names for part in path.relative_to(folder).parts)]
    for words in HELD_OUT:
        if held_out := [path for path in found if set(words) & set(_plain(path.name).split("_"))]:
            found = held_out
            break
    if len(found) != 1:
        listed = ", ".join(str(path.relative_to(folder)) for path in found[:4]) or "none"
        raise ValueError(f"{folder}: which file is {task.name}'s? ({listed}): name it, as {task.name}=FILE")
    return found[0]


def _files_in(folder: Path, task: Task) -> Source:
    """The files in one folder, or below it, that are called as a task's files are; of several folders `data`."""
    names = {_plain(name) for name in (task.name, *task.aliases)}
    files = [path for path in folder.rglob("*") if path.is_file() and _kind(path) in READERS]
    found = [path for path in files if _plain(path.name.partition(".")[0]) in names]
    places = sorted({path.parent for path in found})
    if len(places) > 1:
        places = [place for place in places if place.name == "data"] or places
    if len(places) != 1:
        listed = ", ".join(map(str, places[:4])) or "none"
        raise ValueError(
            f"{folder}: which folder holds {task.name}'s files? ({listed}): name it, as {task.name}=FOLDER"
        )
    others = sorted({path.name for path in places[0].iterdir() if path.is_file()} - {path.name for path in found})
    return Source(path=str(places[0]), split="all", exclude=others)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


def _kind(path: Path) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    return suffixes[-1].lower() if suffixes else ""


def spread_blocks(rows: Sequence[TaskRow[object]], limit: int | None) -> list[TaskRow[object]]:
    """About `limit` rows from all over them, so many at least: a draw of whole blocks that is always the same.

    The first blocks of a shuffle in which each stratum is spread evenly, so any number of them has its share of each.
    """
    blocks: dict[str, list[TaskRow[object]]] = {}
    for number, row in enumerate(rows):
        assert isinstance(row.item, BiasItem)
        blocks.setdefault(row.item.block or f"row {number}", []).append(row)
    if limit is None or limit >= len(rows):
        return list(rows)
    each = list(blocks.values())
    strata: dict[tuple[str, ...], list[int]] = {}
    for number in Random(0).sample(range(len(each)), len(each)):
        strata.setdefault(_strata(each[number]), []).append(number)
    spread = sorted(
        ((place + 0.5) / len(numbers), stratum, number)
        for stratum, numbers in strata.items()
        for place, number in enumerate(numbers)
    )
    wanted = min(len(each), -(-limit * len(each) // len(rows)))
    return [row for number in sorted(number for _, _, number in spread[:wanted]) for row in each[number]]


def _strata(block: Sequence[TaskRow[object]]) -> tuple[str, ...]:
    return tuple(sorted({row.item.stratum for row in block if isinstance(row.item, BiasItem)} - {""}))


def _rows(task: Task, source: Source) -> Iterator[TaskRow[object]]:
    beside = read_beside(task, source) if isinstance(task, BiasTask) else {}

    def is_row(row: Row) -> bool:
        try:
            task.item(row.fields)
        except Exception:  # a user's task raises what it likes
            return False
        return True

    location = resolve(source) if isinstance(task, TextTask) else resolve_rows(source)
    for row in iter_items(source, location, Wanted(is_row)):
        if isinstance(row, Document):
            text = "".join(row.pieces())
            if text.strip():
                yield TaskRow(text, key_of(text), row.where, {"text": text})
            continue
        if isinstance(row, BadRow):
            raise ValueError(row.message)
        fields = row.fields
        try:
            if isinstance(task, BiasTask) and task.beside is not None:
                fields = {**fields, **beside.get(task.beside.key_of(fields), {})}
            item = task.item(fields)
        except RowFault as fault:
            raise ValueError(f"{row.where}: not in the form of {task.name}: {fault}") from None
        except Exception as error:
            raise ValueError(f"{row.where}: the item of {task.name} fails: {error_and_place(error)}") from error
        yield TaskRow(item, key_of(item), row.where, fields)


def key_of(item: object) -> str:
    """What an item is known by: a hash of all that the model is asked, and of the right answer."""
    return blake2b(repr(item).encode(errors="surrogatepass"), digest_size=8).hexdigest()


def with_unique_keys(rows: Sequence[TaskRow[object]]) -> list[TaskRow[object]]:
    """The rows, a repeated key with its number: the third of equal items is `KEY-3`."""
    keys = numbered_keys([row.key for row in rows])
    return [row if row.key == key else replace(row, key=key) for row, key in zip(rows, keys, strict=True)]


def numbered_keys(keys: Sequence[str]) -> list[str]:
    """Keys, from the second of equal ones on with a number: `a`, `a-2`, `a-3`."""
    seen: Counter[str] = Counter()
    numbered = []
    for key in keys:
        seen[key] += 1
        numbered.append(key if seen[key] == 1 else f"{key}-{seen[key]}")
    return numbered
